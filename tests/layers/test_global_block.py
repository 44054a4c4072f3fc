"""Blocks of a plain ViT against attention over all pairs of tokens, and against each other."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from spt_d2.layers.global_block import GlobalAttention, GlobalBlock, GlobalSelectPackBlock
from spt_d2.layers.select_pack_attention import FFN_TOKENS, PROJ_TOKENS, SelectPackOptions
from spt_d2.ops.gating import GATINGS
from tests import reference

from .test_block import make_block, slow_block, slow_decision

DIM, HEADS = 8, 2


def slow_global_block(block: GlobalBlock, x: Tensor) -> Tensor:
    weights = dict(block.named_parameters())

    def norm(t, name):
        return F.layer_norm(t, (DIM,), weights[f"{name}.weight"], weights[f"{name}.bias"])

    def linear(t, name):
        return F.linear(t, weights[f"{name}.weight"], weights.get(f"{name}.bias"))

    q, k, v = linear(norm(x, "norm1").flatten(0, 2), "attn.qkv").view(-1, 3, HEADS, DIM // HEADS).unbind(1)
    image = torch.arange(x.shape[0]).repeat_interleave(x.shape[1] * x.shape[2]).to(x.device)
    attended = reference.dense_attention(q, k, v, image[:, None] == image[None, :]).flatten(1)
    x = x + linear(attended, "attn.proj").view_as(x)
    return x + linear(F.gelu(linear(norm(x, "norm2"), "mlp.fc1")), "mlp.fc2")


@pytest.mark.parametrize("qkv_bias", [True, False])
@pytest.mark.parametrize("height, width", [(5, 4), (1, 1)])
def test_dense_block_equals_the_slow_truth(height, width, qkv_bias, device):
    block = reference.randomise_(GlobalBlock(DIM, HEADS, mlp_ratio=2.0, qkv_bias=qkv_bias)).double().to(device)
    x = torch.randn(3, height, width, DIM, dtype=torch.float64, device=device, requires_grad=True)
    inputs = {"x": x, **dict(block.named_parameters())}
    actual, expected = block(x), slow_global_block(block, x)
    reference.close(actual, expected)
    truth = reference.gradients(expected, **inputs)
    for name, gradient in reference.gradients(actual, **inputs).items():
        reference.close(gradient, truth[name])


@pytest.mark.parametrize("gating", GATINGS)
@pytest.mark.parametrize("proj_tokens", PROJ_TOKENS)
@pytest.mark.parametrize("ffn_tokens", FFN_TOKENS)
@pytest.mark.parametrize("position", ["none", "rope", "conv"])
def test_selected_tokens_of_an_image_attend_to_each_other_and_to_no_others(gating, proj_tokens, ffn_tokens, position):
    block = make_block(
        1, segment="image", gating=gating, proj_tokens=proj_tokens, ffn_tokens=ffn_tokens, position=position
    )
    x = torch.randn(2, 5, 4, DIM, dtype=torch.float64, requires_grad=True)
    valid = torch.ones(2, 5, 4, dtype=torch.bool)
    valid[1, 3:] = False
    inputs = {"x": x, **dict(block.named_parameters())}
    actual, _, layout = block(x, valid)
    score, soft, keep = slow_decision(block, x, valid, None)
    assert 5 < keep.sum() < 30 and layout.num_tokens == keep.sum()
    expected = slow_block(block, x, keep, score, soft)
    # Angles of rope are float32.
    tolerance = {"atol": 1e-4, "rtol": 1e-4} if position == "rope" else reference.TOLERANCE[torch.float64]
    reference.close(actual, expected, **tolerance)
    truth = reference.gradients(expected, **inputs)
    for name, gradient in reference.gradients(actual, **inputs).items():
        reference.close(gradient, truth[name], **tolerance)


@pytest.mark.parametrize("proj_tokens", PROJ_TOKENS)
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_everything_kept_it_is_the_dense_block(training, proj_tokens):
    dense = reference.randomise_(GlobalBlock(DIM, HEADS)).double().train(training)
    options = SelectPackOptions(window_size=3, segment="image", select="all", proj_tokens=proj_tokens)
    packed = GlobalSelectPackBlock(DIM, HEADS, options, shift_size=1).double().train(training)
    missing, unexpected = packed.load_state_dict(dense.state_dict(), strict=False)
    assert not unexpected and missing == ["gate.proj.weight", "gate.proj.bias"]
    x = torch.randn(2, 5, 4, DIM, dtype=torch.float64, requires_grad=True)
    actual, _, _ = packed(x, torch.ones(2, 5, 4, dtype=torch.bool))
    expected = dense(x)
    reference.close(actual, expected)
    own = dict(packed.named_parameters())
    weights = dict(dense.named_parameters())
    truth = reference.gradients(expected, x=x, **weights)
    for name, gradient in reference.gradients(actual, x=x, **{n: own[n] for n in weights}).items():
        reference.close(gradient, truth[name])


def test_dropout_acts_in_training_only():
    attention = GlobalAttention(DIM, HEADS, attn_drop=0.5)
    plain = GlobalAttention(DIM, HEADS)
    plain.load_state_dict(attention.state_dict())
    x = torch.randn(1, 4, 4, DIM)
    assert not torch.equal(attention(x), attention(x))
    assert torch.equal(attention.eval()(x), plain(x))


def test_errors_name_the_cure():
    with pytest.raises(ValueError, match="GlobalAttention expects dim to be a multiple of num_heads. Got 8 and 3"):
        GlobalAttention(8, 3)
    with pytest.raises(ValueError, match=r"position='relative_bias' expects(.|\n)*HINT: position 'rope' or 'conv'"):
        SelectPackOptions(segment="image", position="relative_bias")
