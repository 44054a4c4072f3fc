"""On a GPU the host waits for the device once for each decision on tokens, and nowhere else."""

import warnings

import pytest
import torch

pytest.importorskip("detectron2", reason="detectron2 is not installed")

from tests.modeling.nano import nano_dat, nano_dynamic_swin, nano_sparse_vit, nano_spt, nano_svit_gated_swin, nano_swin


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("training", (False, True), ids=("inference", "training"))
@pytest.mark.parametrize("gate", ("per_block", "per_stage"))
@pytest.mark.parametrize("segment", ("container", "shared", "window", "image"))
def test_the_host_waits_once_for_each_decision(segment, gate, training):
    model = nano_spt(torch.float32, segment=segment, gate=gate).cuda().train(training)
    # Windows are others in every second block, and so is what is kept of each.
    assert_waits(model, each_block=segment == "window")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("options", ({"token_budget": 8}, {"packing": "padded"}, {"select": "topk"}), ids=str)
def test_nor_does_it_wait_more_for_budgets_padding_and_ratios(options):
    assert_waits(nano_spt(torch.float32, **options).cuda().eval())


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("training", (False, True), ids=("inference", "training"))
@pytest.mark.parametrize("make", (nano_dynamic_swin, nano_svit_gated_swin))
def test_peers_that_pack_tokens_wait_once_for_each_decision_too(make, training):
    assert_waits(make(torch.float32).cuda().train(training), least=0 if training else 1)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("training", (False, True), ids=("inference", "training"))
@pytest.mark.parametrize("make", (nano_dat, nano_sparse_vit, nano_swin))
def test_backbones_that_know_their_numbers_beforehand_do_not_wait(make, training):
    model = make().float().cuda().train(training)
    x = torch.randn(2, 3, 75, 102, device="cuda")
    assert not waits_of(lambda: model(x))


@pytest.mark.parametrize("segment", ("container", "shared", "image", "window"))
def test_blocks_without_a_gate_take_the_numbers_of_the_first(segment, monkeypatch):
    """The same on a CPU, by what is asked of the keep mask."""
    asked, tolist = [], torch.Tensor.tolist
    model = nano_spt(gate="per_stage", segment=segment).eval()
    x = torch.randn(2, 3, 75, 102, dtype=torch.float64)
    monkeypatch.setattr(torch.Tensor, "tolist", lambda tensor: asked.append(tensor.shape) or tolist(tensor))
    with torch.no_grad():
        _, selections = model.forward_with_selections(x, [(75, 102), (61, 90)])
    blocks = [(s.stage, s.block) for s in selections if s.block is not None]
    stages = {stage for stage, _ in blocks}
    assert len(stages) < len(blocks) and len(asked) == len(blocks if segment == "window" else stages)


def waits_of(run):
    # Geometry is cached, and kernels are probed, at the first call.
    run()
    torch.cuda.synchronize()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            run()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    # Turning it on warns, too.
    return [str(warning.message) for warning in caught if "called a synchronizing" in str(warning.message)]


def assert_waits(model, least=1, each_block=False):
    x, sizes = torch.randn(2, 3, 75, 102, device="cuda"), [(75, 102), (61, 90)]
    found = []
    waits = waits_of(lambda: found.append(model.forward_with_selections(x, sizes)[1]))
    # Of DynamicSwin, only some blocks have a predictor before them.
    leading = [s for s in found[-1] if s.block is not None and getattr(s, "leads", True)]
    # Blocks without a gate follow the decision of their stage's first.
    most = len(leading) if each_block else len({id(selection.keep_mask) for selection in leading})
    assert least <= len(waits) <= most, waits
