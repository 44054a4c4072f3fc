"""Blocks whose tokens are padded to the batch's fullest image: the result of packed ones, computed on padded rows."""

import functools
import itertools

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from spt_d2.layers.block import Decision, SelectPackBlock
from spt_d2.layers.select_pack_attention import FFN_TOKENS, POSITIONS, PROJ_TOKENS, SelectPackOptions
from spt_d2.ops import attention as ops
from spt_d2.ops.gating import GATINGS
from tests import reference
from tests.layers.test_block import DIM, HEADS, make_block, slow_block

KINDS = (*reference.ORDERS_AND_SEGMENTS, ("window", "image"), ("raster", "image"))


def run(block: SelectPackBlock, keep: Tensor, seed: int = 0, slow: bool = False) -> tuple[Tensor, dict[str, Tensor]]:
    """
    The output for a decision given, of the block or of its slow truth, and the gradients of every input.

    The gate is left out of it: a block without one follows what it is given.
    """
    generator = torch.Generator().manual_seed(seed)
    drawn = (torch.randn(*keep.shape, size, dtype=torch.float64, generator=generator) for size in (DIM, DIM, 1))
    x, weight, score = (t.to(keep.device) for t in drawn)
    x, score = x.requires_grad_(), score.squeeze(-1).requires_grad_()
    soft = torch.sigmoid(score)
    torch.manual_seed(seed)
    if slow:
        out = slow_block(block, x, keep, score, soft)
    else:
        out = block(x, torch.ones_like(keep), decision=Decision(score, keep, soft))[0]
    inputs = {"x": x, "score": score, **dict(block.named_parameters())}
    # Without a factor of the gate, the score has no part in the output.
    gradients = torch.autograd.grad((out * weight).sum(), list(inputs.values()), allow_unused=True)
    return out, {name: g for name, g in zip(inputs, gradients) if g is not None}


def pair(**values) -> tuple[SelectPackBlock, SelectPackBlock]:
    """Padded and packed, of the same weights."""
    return make_block(has_gate=False, packing="padded", **values), make_block(has_gate=False, **values)


def ragged_batch(height: int = 5, width: int = 4) -> Tensor:
    """Images that keep few tokens, none, and many: a row's place is then not that of its tokens in the sequence."""
    keep = torch.zeros(3, height, width, dtype=torch.bool)
    keep[0, 1, 1:] = True
    keep[2] = torch.rand(height, width, generator=torch.Generator().manual_seed(5)) < 0.9
    return keep


CHOICES = [
    pytest.param(*choice, *kind, shift, id="-".join(map(str, (*choice, *kind, shift))))
    for choice, (kind, shift) in zip(
        itertools.product(GATINGS, POSITIONS, PROJ_TOKENS, FFN_TOKENS),
        itertools.cycle(itertools.product(KINDS, (0, 1))),
    )
    # Whole images have no table of relative positions.
    if not (choice[1] == "relative_bias" and kind[1] == "image")
]


@pytest.mark.parametrize("gating, position, proj_tokens, ffn_tokens, order, segment, shift_size", CHOICES)
def test_padded_block_equals_the_slow_truth(
    gating, position, proj_tokens, ffn_tokens, order, segment, shift_size, device
):
    options = {"gating": gating, "position": position, "proj_tokens": proj_tokens, "ffn_tokens": ffn_tokens}
    block = make_block(shift_size, False, packing="padded", order=order, segment=segment, **options).to(device)
    keep = ragged_batch().to(device)
    # Angles of rope are float32.
    tolerance = {"atol": 1e-4, "rtol": 1e-4} if position == "rope" else reference.TOLERANCE[torch.float64]
    actual, gradients = run(block, keep)
    expected, truth = run(block, keep, slow=True)
    reference.close(actual, expected, **tolerance)
    assert set(gradients) == set(truth) == {"x", "score", *dict(block.named_parameters())}
    for name, gradient in gradients.items():
        reference.close(gradient, truth[name], **tolerance)


EDGES = {
    "nothing": torch.zeros(3, 5, 4, dtype=torch.bool),
    "everything": torch.ones(3, 5, 4, dtype=torch.bool),
    "ragged": ragged_batch(),
    "an_empty_image_first": ragged_batch().roll(-1, 0),
    "one_token": dict(reference.keep_masks(3, 5, 4))["one_token"],
    "a_batch_of_one": ragged_batch()[:1],
    "an_empty_batch_of_one": ragged_batch()[1:2],
}


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("order, segment", KINDS)
@pytest.mark.parametrize("edge", EDGES)
def test_padding_changes_neither_outputs_nor_gradients(edge, order, segment, training):
    for position, ffn_tokens in itertools.product(POSITIONS, FFN_TOKENS):
        if position == "relative_bias" and segment == "image":
            continue
        values = {"order": order, "segment": segment, "position": position, "ffn_tokens": ffn_tokens}
        padded, packed = (block.train(training) for block in pair(gating="sigmoid", **values))
        out, gradients = run(padded, EDGES[edge])
        expected, truth = run(packed, EDGES[edge])
        reference.close(out, expected)
        assert set(gradients) == set(truth)
        for name, gradient in gradients.items():
            reference.close(gradient, truth[name])


@pytest.mark.parametrize("ffn_tokens", FFN_TOKENS)
@pytest.mark.parametrize("edge", EDGES)
def test_every_parameter_gets_a_gradient(edge, ffn_tokens):
    for position in POSITIONS:
        block = make_block(has_gate=False, packing="padded", position=position, ffn_tokens=ffn_tokens)
        gradients = run(block, EDGES[edge])[1]
        assert {name for name, _ in block.named_parameters()} <= set(gradients)


@pytest.mark.parametrize("proj_tokens", PROJ_TOKENS)
@pytest.mark.parametrize("ffn_tokens", FFN_TOKENS)
def test_stochastic_depth_drops_the_same_images(proj_tokens, ffn_tokens):
    padded, packed = pair(proj_tokens=proj_tokens, ffn_tokens=ffn_tokens)
    keep = torch.rand(8, 5, 4, generator=torch.Generator().manual_seed(2)) < torch.rand(8, 1, 1)
    for block in (padded, packed):
        block.drop_path.rate = 0.5
    outs = [run(block, keep, seed=3)[0] for block in (padded, packed)]
    reference.close(*outs)
    padded.drop_path.rate = 0.0
    assert not torch.allclose(run(padded, keep, seed=3)[0], outs[0])


@pytest.mark.parametrize("proj_tokens", PROJ_TOKENS)
@pytest.mark.parametrize("ffn_tokens", FFN_TOKENS)
def test_the_packed_branch_runs_on_rows_of_the_fullest_image(ffn_tokens, proj_tokens, monkeypatch):
    seen: dict[str, tuple[int, ...]] = {}

    def record(name, _, inputs):
        seen[name] = tuple(inputs[0].flatten(0, -2).shape)

    kernel = F.scaled_dot_product_attention

    def spy(q, *args, **kwargs):
        seen["containers"] = tuple(q.shape)
        return kernel(q, *args, **kwargs)

    monkeypatch.setattr(ops.F, "scaled_dot_product_attention", spy)
    keep, total = ragged_batch(), 3 * 5 * 4
    most, kept = int(keep.flatten(1).sum(1).max()), int(keep.sum())
    assert most % 9 and kept < 3 * most
    for packing, slots in (("padded", 3 * most), ("containers", kept)):
        block = make_block(has_gate=False, packing=packing, ffn_tokens=ffn_tokens, proj_tokens=proj_tokens)
        for name in ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2"):
            block.get_submodule(name).register_forward_pre_hook(functools.partial(record, name))
        run(block, keep)
        assert seen["attn.qkv"] == (slots, DIM)
        assert seen["attn.proj"] == (total if proj_tokens == "all" else slots, DIM)
        assert seen["mlp.fc1"] == (total if ffn_tokens == "all" else slots, DIM)
        assert seen["mlp.fc2"] == (total if ffn_tokens == "all" else slots, 2 * DIM)
        per_image = [-(-most // 9)] * 3 if packing == "padded" else [-(-int(image.sum()) // 9) for image in keep]
        assert seen["containers"] == (sum(per_image), HEADS, 9, DIM // HEADS)


def test_bfloat16_autocast_keeps_the_residual_stream_in_float32():
    block = make_block(packing="padded", ffn_tokens="light", gating="sigmoid", dtype=torch.float32)
    x, valid = torch.randn(2, 6, 6, DIM, requires_grad=True), torch.ones(2, 6, 6, dtype=torch.bool)
    valid[1, 2:] = False
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out, decision, layout = block(x, valid)
    assert layout.rows.num_tokens > layout.num_tokens > 0
    assert out.dtype == torch.float32 and decision.score.dtype == torch.float32
    out.square().mean().backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in block.parameters())


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("position", POSITIONS)
@pytest.mark.parametrize("case", reference.KEEP_CASES)
def test_autocast_trains_every_parameter(case, position, dtype):
    keep = dict(reference.keep_masks(2, 14, 14))[case].cuda()
    options = SelectPackOptions(position=position, gating="sigmoid", ffn_tokens="selected", packing="padded")
    block = SelectPackBlock(64, 2, options, shift_size=3).cuda()
    with torch.no_grad():
        block.gate.proj.bias.fill_(-30.0)
    x = torch.randn(2, 14, 14, 64, device="cuda", requires_grad=True)
    with torch.autocast("cuda", dtype=dtype):
        out, decision, _ = block(x, torch.ones_like(keep), torch.where(keep, 3.0, -40.0))
    assert torch.equal(decision.keep_mask, keep)
    out.float().square().mean().backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in block.parameters())
