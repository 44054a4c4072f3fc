"""On a GPU the host waits for the device once for each decision on tokens, and nowhere else."""

import warnings

import pytest
import torch

pytest.importorskip("detectron2", reason="detectron2 is not installed")

from tests.modeling.nano import nano_dynamic_swin, nano_spt, nano_svit_gated_swin


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("training", (False, True), ids=("inference", "training"))
@pytest.mark.parametrize("gate", ("per_block", "per_stage"))
@pytest.mark.parametrize("segment", ("container", "shared", "window", "image"))
def test_the_host_waits_once_for_each_decision(segment, gate, training):
    assert_waits(nano_spt(torch.float32, segment=segment, gate=gate).cuda().train(training))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("training", (False, True), ids=("inference", "training"))
@pytest.mark.parametrize("make", (nano_dynamic_swin, nano_svit_gated_swin))
def test_peers_that_pack_tokens_wait_once_for_each_decision_too(make, training):
    assert_waits(make(torch.float32).cuda().train(training), least=0 if training else 1)


def assert_waits(model, least=1):
    x, sizes = torch.randn(2, 3, 75, 102, device="cuda"), [(75, 102), (61, 90)]
    # Geometry is cached, and kernels are probed, at the first call.
    model.forward_with_selections(x, sizes)
    torch.cuda.synchronize()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            _, selections = model.forward_with_selections(x, sizes)
        finally:
            torch.cuda.set_sync_debug_mode("default")
    waits = [str(warning.message) for warning in caught if "synchroniz" in str(warning.message)]
    # Of DynamicSwin, only some blocks have a predictor before them.
    blocks = sum(selection.block is not None and getattr(selection, "leads", True) for selection in selections)
    # A stage with one gate packs anew in every block, for its shifted blocks have another order.
    assert least <= len(waits) <= blocks, waits
