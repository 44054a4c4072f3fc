"""Swin's window attention against one window at a time."""

import pytest
import torch

from spt_d2.layers.window_attention import WindowAttention
from tests import reference

DIM, HEADS, WINDOW = 8, 2, 4


def slow(attention: WindowAttention, x: torch.Tensor) -> torch.Tensor:
    """The truth on the map padded to whole windows, cut back."""
    height, width = x.shape[1:3]
    padded = torch.zeros(x.shape[0], -(-height // WINDOW) * WINDOW, -(-width // WINDOW) * WINDOW, DIM).to(x)
    padded[:, :height, :width] = x
    out = reference.swin_window_attention(
        padded,
        attention.qkv.weight,
        attention.qkv.bias,
        attention.proj.weight,
        attention.proj.bias,
        attention.relative_position_bias_table,
        HEADS,
        WINDOW,
        attention.shift_size,
    )
    return out[:, :height, :width]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("shift_size", [0, 2])
@pytest.mark.parametrize("height, width", [(4, 4), (8, 12), (5, 10), (1, 3)])
def test_equals_attention_window_by_window(height, width, shift_size, dtype, device):
    attention = reference.randomise_(WindowAttention(DIM, HEADS, WINDOW, shift_size)).to(device, dtype)
    x = torch.randn(2, height, width, DIM, dtype=dtype, device=device, requires_grad=True)
    inputs = {"x": x, **dict(attention.named_parameters())}
    actual, expected = attention(x), slow(attention, x)
    reference.close(actual, expected)
    with torch.no_grad():
        reference.close(attention(x), expected.detach())
    truth = reference.gradients(expected, **inputs)
    for name, gradient in reference.gradients(actual, **inputs).items():
        reference.close(gradient, truth[name])


def test_images_do_not_see_each_other():
    attention = reference.randomise_(WindowAttention(DIM, HEADS, WINDOW, 2)).double()
    x = torch.randn(3, 6, 9, DIM, dtype=torch.float64)
    alone = torch.cat([attention(image[None]) for image in x])
    reference.close(attention(x), alone)


def test_dropout_acts_in_training_only():
    attention = WindowAttention(DIM, HEADS, WINDOW, 2, attn_drop=0.5, proj_drop=0.5)
    plain = WindowAttention(DIM, HEADS, WINDOW, 2)
    plain.load_state_dict(attention.state_dict())
    x = torch.randn(1, 8, 8, DIM)
    assert not torch.equal(attention(x), attention(x))
    assert torch.equal(attention.eval()(x), plain(x))


@pytest.mark.parametrize("shift_size", [0, 2])
@pytest.mark.parametrize("record", [True, False], ids=["grad", "no_grad"])
def test_attention_dropout_alone_acts_in_training_only(record, shift_size):
    attention = WindowAttention(DIM, HEADS, WINDOW, shift_size, attn_drop=0.5)
    x = torch.randn(1, 8, 8, DIM)
    with torch.set_grad_enabled(record):
        assert not torch.equal(attention(x), attention(x))
        assert torch.equal(attention.eval()(x), attention(x))


def test_attention_dropout_keeps_the_mean():
    attention = reference.randomise_(WindowAttention(DIM, HEADS, WINDOW, 0, attn_drop=0.3)).double()
    x = torch.randn(1, 4, 4, DIM, dtype=torch.float64)
    mean = attention(x.expand(4000, -1, -1, -1)).mean(dim=0)
    reference.close(mean, attention.eval()(x)[0], atol=0.03, rtol=0.0)


def test_channels_that_heads_do_not_share_are_an_error():
    with pytest.raises(ValueError, match="WindowAttention expects dim to be a multiple of num_heads. Got 8 and 3"):
        WindowAttention(8, 3)
