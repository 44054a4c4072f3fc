"""Attention over packed tokens with its positions, and the options of the method."""

import pytest
import torch
import torch.nn.functional as F

from spt_d2.layers.select_pack_attention import SelectPackAttention, SelectPackOptions
from spt_d2.ops.packing import pack_layout
from tests import reference

DIM, HEADS, WINDOW = 8, 2, 3


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("position", ["none", "rope", "relative_bias"])
@pytest.mark.parametrize("order, segment", reference.ORDERS_AND_SEGMENTS)
@pytest.mark.parametrize("shift_size", [0, 1])
def test_equals_dense_attention_over_the_map(order, segment, shift_size, position, dtype, device):
    options = SelectPackOptions(window_size=WINDOW, order=order, segment=segment, position=position)
    attention = reference.randomise_(SelectPackAttention(DIM, HEADS, options)).to(device, dtype)
    rule = {
        "container_size": options.container_length,
        "window_size": WINDOW,
        "shift_size": shift_size,
        "order": order,
        "segment": segment,
    }
    height, width = 5, 7
    parameters = {name: p for name, p in attention.named_parameters() if not name.startswith("proj.")}
    # Rotation angles are float32 in every dtype.
    tolerance = {"atol": 1e-4, "rtol": 1e-4} if position == "rope" else reference.TOLERANCE[dtype]
    for case, keep in reference.keep_masks(2, height, width):
        x = torch.randn(2, height, width, DIM, dtype=dtype, device=device, requires_grad=True)
        layout = pack_layout(keep.to(device), **rule)
        packed = attention(x.flatten(0, 2)[layout.keep_indices], layout)
        actual = torch.zeros(keep.numel(), DIM, dtype=dtype, device=device).index_copy(0, layout.keep_indices, packed)

        q, k, v = F.linear(x.flatten(0, 2), attention.qkv.weight, attention.qkv.bias).view(-1, 3, HEADS, 4).unbind(1)
        if position == "rope":
            q, k = reference.rotate(q, height, width), reference.rotate(k, height, width)
        table = attention.relative_position_bias_table
        bias = None if table is None else reference.position_bias(table, 2, height, width, WINDOW)
        mask = reference.attention_mask(keep, **rule).to(device)
        expected = reference.dense_attention(q, k, v, mask, bias).flatten(1)

        reference.close(actual, expected, **tolerance)
        truth = reference.gradients(expected, x=x, **parameters)
        for name, gradient in reference.gradients(actual, x=x, **parameters).items():
            reference.close(gradient, truth[name], **tolerance), (case, name)


def test_dropout_acts_in_training_only():
    options = SelectPackOptions(window_size=WINDOW)
    attention = SelectPackAttention(DIM, HEADS, options, attn_drop=0.5)
    layout = pack_layout(torch.ones(1, 6, 6, dtype=torch.bool), container_size=9, window_size=WINDOW)
    x = torch.randn(36, DIM)
    assert not torch.equal(attention(x, layout), attention(x, layout))
    plain = SelectPackAttention(DIM, HEADS, options)
    plain.load_state_dict(attention.state_dict())
    assert torch.equal(attention.eval()(x, layout), plain(x, layout))


def test_queries_keys_and_values_may_go_without_bias():
    attention = SelectPackAttention(DIM, HEADS, SelectPackOptions(), qkv_bias=False)
    assert attention.qkv.bias is None


def test_container_size_zero_stands_for_a_window():
    assert SelectPackOptions(window_size=5).container_length == 25
    assert SelectPackOptions(window_size=5, container_size=30).container_length == 30


@pytest.mark.parametrize(
    "values, message",
    [
        ({"gate": "per_token"}, r"gate expects one of \('per_block', 'per_stage'\). Got 'per_token'"),
        ({"gating": "relu"}, "gating expects one of .*Got 'relu'"),
        ({"select": "best"}, "select expects one of .*Got 'best'"),
        ({"noise": "white"}, "noise expects one of .*Got 'white'"),
        ({"order": "spiral"}, "order expects one of .*Got 'spiral'"),
        ({"packing": "sorted"}, r"packing expects one of \('containers', 'padded'\). Got 'sorted'"),
        ({"position": "sine"}, "position expects one of .*Got 'sine'"),
        ({"proj_tokens": "some"}, "proj_tokens expects one of .*Got 'some'"),
        ({"ffn_tokens": "some"}, "ffn_tokens expects one of .*Got 'some'"),
        ({"attention_backend": "flash"}, "attention_backend expects one of .*Got 'flash'"),
        ({"threshold": 1.0}, r"threshold expects a probability in \[0, 1\). Got 1.0"),
        ({"threshold": -0.1}, "threshold expects a probability"),
        ({"gating": "centred", "threshold": 0.0}, "gating='centred' expects a threshold above 0"),
        ({"keep_ratio": 0.0}, r"keep_ratio expects a fraction in \(0, 1\]. Got 0.0"),
        ({"keep_ratio": 1.1}, "keep_ratio expects a fraction"),
        ({"gate_prior": 0.0}, r"gate_prior expects a fraction in \(0, 1\). Got 0.0"),
        ({"tau": 0.0}, "tau expects a temperature above 0. Got 0.0"),
        ({"container_size": -1}, r"container_size expects 0 \(window_size squared\) or more tokens. Got -1"),
        ({"segment": "bag"}, "segment expects one of .*Got 'bag'"),
        ({"segment": "window", "order": "raster"}, "segment='window' expects order='window'"),
        ({"segment": "window", "container_size": 48}, "segment='window' puts whole windows into containers"),
    ],
)
def test_options_that_make_no_sense_are_errors(values, message):
    with pytest.raises(ValueError, match=message):
        SelectPackOptions(**values)


def test_dimensions_that_do_not_divide_are_errors():
    with pytest.raises(ValueError, match="SelectPackAttention expects dim to be a multiple of num_heads. Got 8, 3"):
        SelectPackAttention(8, 3, SelectPackOptions())
    with pytest.raises(ValueError, match="position='rope' expects a head dim that is a multiple of 4. Got 6"):
        SelectPackAttention(12, 2, SelectPackOptions(position="rope"))
