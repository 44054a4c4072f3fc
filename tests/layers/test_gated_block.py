"""SViT's block on Swin: its masked form of training against loops, its packed form of inference against that."""

import pytest
import torch
import torch.nn.functional as F

from spt_d2.layers.block import SwinBlock
from spt_d2.layers.gated_block import GatedSwinBlock
from tests import reference
from tests.ops.test_masked_windows import WINDOW, slow_mask

DIM, HEADS = 8, 2
MAPS = [(6, 9), (7, 4), (1, 2)]


def make(shift_size: int = 0, **values) -> GatedSwinBlock:
    block = GatedSwinBlock(DIM, HEADS, WINDOW, shift_size, mlp_ratio=2.0, **values)
    return reference.randomise_(block).double()


def tokens(height: int, width: int, batch: int = 2) -> torch.Tensor:
    return torch.randn(batch, height, width, DIM, dtype=torch.float64, requires_grad=True)


def learned(block: torch.nn.Module) -> dict[str, torch.nn.Parameter]:
    return {name: p for name, p in block.named_parameters() if not name.startswith("gate.")}


def slow_block(block: GatedSwinBlock, x: torch.Tensor, keep_mask: torch.Tensor, shift_size: int) -> torch.Tensor:
    """What the block makes of every token, kept or not: dense attention with a mask, nothing of the package called."""
    part, (batch, height, width, _) = dict(block.named_parameters()), x.shape
    normed = F.layer_norm(x, (DIM,), part["norm1.weight"], part["norm1.bias"]).reshape(-1, DIM)
    q, k, v = (
        F.linear(normed, part["attn.qkv.weight"], part["attn.qkv.bias"]).view(-1, 3, HEADS, DIM // HEADS).unbind(1)
    )
    bias = reference.position_bias(part["attn.relative_position_bias_table"], batch, height, width, WINDOW)
    attended = reference.dense_attention(q, k, v, slow_mask(keep_mask, shift_size), bias).flatten(1)
    out = x + F.linear(attended, part["attn.proj.weight"], part["attn.proj.bias"]).view(x.shape)
    hidden = F.layer_norm(out, (DIM,), part["norm2.weight"], part["norm2.bias"])
    hidden = F.gelu(F.linear(hidden, part["mlp.fc1.weight"], part["mlp.fc1.bias"]))
    return out + F.linear(hidden, part["mlp.fc2.weight"], part["mlp.fc2.bias"])


@pytest.mark.parametrize("shift_size", [0, 1])
@pytest.mark.parametrize("height, width", MAPS)
@pytest.mark.parametrize("case", reference.KEEP_CASES)
def test_training_equals_the_slow_truth_gradient_of_the_decision_included(case, height, width, shift_size):
    block, x = make(shift_size), tokens(height, width)
    keep_mask = dict(reference.keep_masks(2, height, width))[case]
    policy = keep_mask.double().requires_grad_()
    actual = block(x, keep_mask, policy)
    full = slow_block(block, x, keep_mask, shift_size)
    expected = policy[..., None] * full + (1 - policy[..., None]) * x
    reference.close(actual, expected)
    fast, slow = (reference.gradients(out, x=x, policy=policy, **learned(block)) for out in (actual, expected))
    for name, gradient in slow.items():
        reference.close(fast[name], gradient)
    # Skipped tokens tell the gate what they missed.
    assert (slow["policy"] != 0).all()


@pytest.mark.parametrize("shift_size", [0, 1])
@pytest.mark.parametrize("height, width", MAPS)
@pytest.mark.parametrize("case", reference.KEEP_CASES)
def test_inference_equals_training_given_the_same_decision(case, height, width, shift_size):
    block, x = make(shift_size), tokens(height, width)
    keep_mask = dict(reference.keep_masks(2, height, width))[case]
    trained = block(x, keep_mask, keep_mask.double())
    packed = block.eval().packed(x, block.attn.layout(keep_mask))
    reference.close(packed, trained)
    fast, slow = (reference.gradients(out, x=x, **learned(block)) for out in (packed, trained))
    for name, gradient in slow.items():
        reference.close(fast[name], gradient)


@pytest.mark.parametrize("case", reference.KEEP_CASES)
def test_skipped_tokens_leave_exactly_as_they_came(case):
    block, x = make(1, drop=0.5, attn_drop=0.5, drop_path=0.5), tokens(7, 4)
    keep_mask = dict(reference.keep_masks(2, 7, 4))[case]
    for out in (block(x, keep_mask, keep_mask.double()), block.eval().packed(x, block.attn.layout(keep_mask))):
        assert torch.equal(out[~keep_mask], x[~keep_mask])


@pytest.mark.parametrize("shift_size", [0, 1])
def test_everything_kept_is_swins_block_on_whole_windows(shift_size):
    block, x = make(shift_size), tokens(6, 9)
    dense = SwinBlock(DIM, HEADS, WINDOW, shift_size, mlp_ratio=2.0).double()
    dense.load_state_dict({name: value for name, value in block.state_dict().items() if not name.startswith("gate.")})
    expected = dense(x)
    truth = reference.gradients(expected, x=x, **dict(dense.named_parameters()))
    everything = torch.ones(2, 6, 9, dtype=torch.bool)
    for actual in (block(x, everything, everything.double()), block.packed(x, block.attn.layout(everything))):
        reference.close(actual, expected)
        for name, gradient in reference.gradients(actual, x=x, **learned(block)).items():
            reference.close(gradient, truth[name])


def test_everything_kept_differs_from_swins_block_where_windows_are_padded_alone():
    block, x = make(), tokens(6, 8)
    dense = SwinBlock(DIM, HEADS, WINDOW, 0, mlp_ratio=2.0).double()
    dense.load_state_dict({name: value for name, value in block.state_dict().items() if not name.startswith("gate.")})
    everything = torch.ones(2, 6, 8, dtype=torch.bool)
    same = torch.isclose(block.packed(x, block.attn.layout(everything)), dense(x), atol=1e-10).all(dim=-1)
    # Columns 6 and 7 share their windows with padding, which Swin attends to.
    assert same[:, :, :6].all() and not same[:, :, 6:].any()


def test_an_image_is_dropped_as_a_whole():
    block, x = make(drop_path=0.5), tokens(6, 6, batch=16)
    everything = torch.ones(16, 6, 6, dtype=torch.bool)
    block.attn.proj.weight.data.zero_(), block.attn.proj.bias.data.zero_()
    moved = (block(x, everything, everything.double()) != x).flatten(1).double().mean(dim=1)
    assert set(moved.tolist()) == {0.0, 1.0}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_residual_stream_keeps_its_dtype_under_autocast(dtype):
    block = make().float()
    x = torch.randn(1, 6, 6, DIM, dtype=dtype)
    keep_mask = dict(reference.keep_masks(1, 6, 6))["some"]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        outs = block(x, keep_mask, keep_mask.float()), block.packed(x, block.attn.layout(keep_mask))
    assert [out.dtype for out in outs] == [dtype, dtype]
    reference.close(outs[1].float(), outs[0].float(), atol=0.1, rtol=0.1)
