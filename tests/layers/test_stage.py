"""Stages: blocks in turn, shared decisions, recomputed activations."""

import pytest
import torch

from spt_d2.layers.select_pack_attention import SelectPackOptions
from spt_d2.layers.stage import SelectPackStage, SwinStage
from spt_d2.ops import linear
from spt_d2.ops.window_plan import window_plan
from spt_d2.ops.windows import _window_regions, relative_position_index, token_order
from tests import reference

DIM, HEADS, WINDOW = 8, 2, 3


def make_stage(gate: str = "per_block", use_checkpoint: bool = False, depth: int = 3, drop_path: float = 0.0, **values):
    options = SelectPackOptions(window_size=WINDOW, threshold=0.4, gate=gate, **values)
    stage = SelectPackStage(
        dim=DIM, depth=depth, num_heads=HEADS, options=options, drop_path=[drop_path] * depth, downsample=True, stage=3,
        use_checkpoint=use_checkpoint, drop=drop_path,
    )  # fmt: skip
    return reference.randomise_(stage).double()


def some_input(batch: int = 2):
    valid = torch.ones(batch, 6, 5, dtype=torch.bool)
    valid[-1, :, 4:] = False
    return torch.randn(batch, 6, 5, DIM, dtype=torch.float64, requires_grad=True), valid


def test_every_second_block_is_shifted():
    assert [block.shift_size for block in make_stage(depth=4).blocks] == [0, 1, 0, 1]
    swin = SwinStage(DIM, 3, HEADS, 7, [0.0, 0.1, 0.2], False)
    assert [block.attn.shift_size for block in swin.blocks] == [0, 3, 0]
    assert [block.drop_path.rate for block in swin.blocks] == [0.0, 0.1, 0.2]


def test_a_stage_runs_its_blocks_in_turn_and_reports_each():
    stage = make_stage().eval()
    x, valid = some_input()
    score_up = torch.randn(2, 6, 5, dtype=torch.float64)
    out, selections = stage(x, valid, score_up)
    expected = x
    for i, block in enumerate(stage.blocks):
        expected, decision, layout = block(expected, valid, score_up)
        assert (selections[i].stage, selections[i].block, selections[i].stride) == (3, i, 16)
        assert torch.equal(selections[i].score, decision.score) and selections[i].valid is valid
        assert torch.equal(selections[i].keep_mask, decision.keep_mask)
        assert torch.equal(selections[i].layout.keep_indices, layout.keep_indices)
    assert torch.equal(out, expected)
    assert len({selection.keep_mask.sum().item() for selection in selections}) > 1


def test_one_decision_serves_the_stage_where_asked_for():
    stage = make_stage("per_stage", noise="logistic")
    assert [block.gate is not None for block in stage.blocks] == [True, False, False]
    x, valid = some_input()
    out, selections = stage(x, valid)
    for selection in selections[1:]:
        assert torch.equal(selection.keep_mask, selections[0].keep_mask)
        assert torch.equal(selection.score, selections[0].score)
    # The shifted block packs the same tokens in another order.
    first, second = (selection.layout.keep_indices for selection in selections[:2])
    assert torch.equal(first.sort().values, second.sort().values) and not torch.equal(first, second)
    # Every block's tokens carry the gate's slope: the last block alone gives it a gradient.
    out.square().sum().backward()
    assert stage.blocks[0].gate.proj.weight.grad.abs().sum() > 0


@pytest.mark.parametrize("gate", ["per_block", "per_stage"])
@pytest.mark.parametrize("drop_path", [0.0, 0.4])
def test_recomputed_activations_give_the_same_gradients(gate, drop_path):
    """With noise, dropout and stochastic depth too: the recomputation sees the same random numbers."""
    results = []
    for use_checkpoint in (False, True):
        stage = make_stage(gate, use_checkpoint, drop_path=drop_path, noise="logistic", gating="sigmoid")
        torch.manual_seed(5)
        x, valid = some_input()
        out, selections = stage(x, valid, torch.zeros(2, 6, 5, dtype=torch.float64))
        loss = out.square().sum() + sum(selection.score.square().sum() for selection in selections)
        loss.backward()
        gradients = {name: p.grad for name, p in stage.named_parameters() if p.grad is not None}
        results.append((out.detach(), x.grad, gradients))
    assert torch.equal(results[0][0], results[1][0])
    reference.close(results[1][1], results[0][1])
    assert results[0][2].keys() == results[1][2].keys() and len(results[0][2]) > 10
    for name, gradient in results[0][2].items():
        reference.close(results[1][2][name], gradient)


def test_activations_are_recomputed_in_training_only(monkeypatch):
    calls = []
    monkeypatch.setattr(
        "spt_d2.layers.stage.checkpoint", lambda block, *inputs, **kwargs: calls.append(kwargs) or block(*inputs)
    )
    stage = make_stage(use_checkpoint=True)
    x, valid = some_input()
    stage(x, valid)
    assert calls == [{"use_reentrant": False}] * 3
    calls.clear()
    with torch.no_grad():
        stage(x, valid)
    stage.eval()(x, valid)
    assert calls == []


def test_swin_stage_recomputes_to_the_same_gradients():
    gradients = []
    for use_checkpoint in (False, True):
        stage = SwinStage(DIM, 2, HEADS, WINDOW, [0.5, 0.5], False, use_checkpoint, drop=0.2, attn_drop=0.2)
        reference.randomise_(stage).double()
        torch.manual_seed(5)
        x = torch.randn(2, 6, 5, DIM, dtype=torch.float64, requires_grad=True)
        stage(x).square().sum().backward()
        gradients.append([x.grad, *(p.grad for p in stage.parameters())])
    for plain, recomputed in zip(*gradients):
        reference.close(recomputed, plain)


def test_merging_belongs_to_the_stage_but_runs_outside():
    assert make_stage().downsample is not None
    assert SwinStage(DIM, 1, HEADS, WINDOW, [0.0], False).downsample is None
    stage = make_stage()
    x, valid = some_input()
    assert stage(x, valid)[0].shape == x.shape


@pytest.mark.parametrize("kind", ("swin", "spt"))
def test_another_default_device_changes_nothing_for_a_model_that_is_elsewhere(kind):
    """Geometry is made on the CPU, and cached: it must not be of the device that happened to be the default."""
    x, valid = torch.randn(1, 11, 13, 8), torch.ones(1, 11, 13, dtype=torch.bool)
    if kind == "swin":
        stage = SwinStage(dim=8, depth=2, num_heads=2, window_size=5, drop_path=[0.0] * 2, downsample=False)
    else:
        options = SelectPackOptions(window_size=5, position="relative_bias")
        stage = SelectPackStage(
            options=options, stage=3, dim=8, depth=2, num_heads=2, drop_path=[0.0] * 2, downsample=False
        )
    inputs = (x,) if kind == "swin" else (x, valid)
    for cached in (window_plan, _window_regions, relative_position_index, token_order):
        cached.cache_clear()
    stage.eval()
    for grad in (True, False):
        linear._is_there.cache_clear()
        with torch.set_grad_enabled(grad), torch.device("meta"):
            out = stage(*inputs)
        expected = stage(*inputs)
        if kind == "spt":
            out, expected = out[0], expected[0]
        torch.testing.assert_close(out, expected)


def test_another_default_dtype_when_it_is_asked_first_does_not_turn_fusing_off():
    linear._is_there.cache_clear()
    there = linear._is_there()
    linear._is_there.cache_clear()
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        assert linear._is_there() == there
    finally:
        torch.set_default_dtype(before)
