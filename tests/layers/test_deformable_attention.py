"""The layer of deformable attention against an explicit loop over windows, samples, heads, queries and keys."""

import pytest
import torch

from spt_d2.layers.deformable_attention import DeformableAttention, DeformableOptions
from tests import deformable_reference, reference

DIM, HEADS = 8, 4
# Groups, kernel, stride, range, table.
CASES = {
    "third_stage": DeformableOptions(2, 5, 2, 2.0, 4),
    "fourth_stage": DeformableOptions(4, 3, 1, 2.0, 2),
    "anywhere": DeformableOptions(1, 3, 2, 0.0, 3),
    "sparse": DeformableOptions(2, 7, 4, 1.0, 1),
}


def make(options: DeformableOptions, dtype: torch.dtype = torch.float64, **values) -> DeformableAttention:
    """With offsets that move points by a good part of their cells."""
    return reference.randomise_(DeformableAttention(DIM, HEADS, options, **values)).to(dtype)


@pytest.mark.parametrize("height, width", [(4, 3), (1, 5), (1, 1)])
@pytest.mark.parametrize("case", CASES)
def test_equals_an_explicit_loop(case, height, width):
    layer = make(CASES[case])
    x = torch.randn(2, height, width, DIM, dtype=torch.float64, requires_grad=True)
    leaves = {"x": x, **dict(layer.named_parameters())}
    actual, expected = layer(x), deformable_reference.deformable_attention(layer, x)
    reference.close(actual, expected)
    with torch.no_grad():
        reference.close(layer.eval()(x), expected.detach())
    truth = reference.gradients(expected, **leaves)
    for name, gradient in reference.gradients(actual, **leaves).items():
        reference.close(gradient, truth[name], atol=1e-9, rtol=1e-8)


def test_equals_the_loop_without_a_bias_of_queries_keys_and_values():
    layer = make(CASES["third_stage"], qkv_bias=False)
    x = torch.randn(1, 3, 4, DIM, dtype=torch.float64)
    assert layer.qkv.bias is None
    reference.close(layer(x), deformable_reference.deformable_attention(layer, x))


@pytest.mark.parametrize("case", CASES)
def test_gradients_flow_to_everything_that_finds_the_samples(case):
    layer = make(CASES[case])
    layer(torch.randn(2, 6, 7, DIM, dtype=torch.float64)).square().sum().backward()
    for name, parameter in layer.named_parameters():
        assert parameter.grad is not None and torch.isfinite(parameter.grad).all(), name
        assert parameter.grad.abs().sum() > 0, name


def test_a_descent_on_the_offsets_alone_moves_a_sample_to_where_the_map_is_brightest():
    layer = make(DeformableOptions(groups=1, kernel_size=3, stride=4, offset_range=2.0, table_size=2))
    with torch.no_grad():
        # Values are the tokens, and nothing is done to them.
        layer.qkv.weight[2 * DIM :], layer.qkv.bias[2 * DIM :] = torch.eye(DIM), 0.0
        layer.proj.weight.copy_(torch.eye(DIM))
    steps = torch.arange(4.0, dtype=torch.float64)
    # Brightest at its first token, and dark beyond its border.
    x = (2.0 - 0.25 * (steps[:, None] + steps))[None, :, :, None].repeat(1, 1, 1, DIM)
    q = torch.nn.functional.linear(x, layer.qkv.weight[:DIM], layer.qkv.bias[:DIM])
    before = layer.positions(q).detach()
    learned = list(layer.offset.parameters())
    for _ in range(120):
        slopes = torch.autograd.grad(layer(x).mean(), learned)
        with torch.no_grad():
            for parameter, slope in zip(learned, slopes):
                parameter += 0.1 * slope
    # The first token is at (-1, -1).
    assert (layer.positions(q) + 1).norm() < 0.3 * (before + 1).norm()


def test_images_do_not_see_each_other():
    layer = make(CASES["third_stage"])
    x = torch.randn(3, 5, 6, DIM, dtype=torch.float64)
    reference.close(layer(x), torch.cat([layer(image[None]) for image in x]))


def test_groups_are_sampled_at_positions_of_their_own():
    layer = make(CASES["third_stage"])
    positions = layer.positions(torch.randn(1, 6, 8, DIM, dtype=torch.float64))
    assert positions.shape == (1, 2, 3, 4, 2)
    assert (positions[:, 0] - positions[:, 1]).abs().max() > 0.1


@pytest.mark.parametrize("which", ["attn_drop", "proj_drop"])
def test_dropout_acts_in_training_only(which):
    layer = make(CASES["third_stage"], torch.float32, **{which: 0.5})
    x = torch.randn(1, 6, 8, DIM)
    assert not torch.equal(layer(x), layer(x))
    layer.eval()
    assert torch.equal(layer(x), layer(x))
    reference.close(layer(x), make(CASES["third_stage"], torch.float32)(x))


def test_mixed_precision_stays_close_and_keeps_positions_fine():
    layer = make(CASES["third_stage"], torch.float32)
    x = torch.randn(2, 6, 8, DIM)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = layer(x)
        assert layer.positions(x).dtype == torch.float32
    assert mixed.dtype == torch.bfloat16
    reference.close(mixed.float(), layer(x), atol=0.1, rtol=0.1)
    mixed.float().square().sum().backward()
    assert all(torch.isfinite(p.grad).all() and p.grad.dtype == torch.float32 for p in layer.parameters())


@pytest.mark.parametrize("dim, heads, groups", [(8, 3, 1), (12, 4, 3)])
def test_channels_and_heads_that_are_not_shared_evenly_are_an_error(dim, heads, groups):
    with pytest.raises(ValueError, match=f"and num_heads one of the groups. Got {dim}, {heads} and {groups}"):
        DeformableAttention(dim, heads, DeformableOptions(groups))


@pytest.mark.parametrize(
    "values, message",
    [
        ({"groups": 0}, r"groups=\) expects at least 1. Got 0"),
        ({"stride": 0}, r"stride=\) expects at least 1"),
        ({"table_size": 0}, r"table_size=\) expects at least 1"),
        ({"kernel_size": 4}, r"kernel_size=\) expects an odd number. Got 4"),
        ({"offset_range": -1.0}, r"offset_range=\) expects a range above 0, or 0 for none. Got -1.0"),
    ],
)
def test_options_out_of_range_are_errors(values, message):
    with pytest.raises(ValueError, match=message):
        DeformableOptions(**values)
