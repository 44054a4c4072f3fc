"""Position embeddings at another grid, against a filter written out pixel by pixel and against timm."""

import math

import pytest
import torch
from torch import Tensor

from spt_d2.ops.positions import resize_positions
from tests import reference


def cubic(x: float) -> float:
    """Keys' kernel with a = -0.5."""
    x = abs(x)
    if x < 1:
        return 1.5 * x**3 - 2.5 * x**2 + 1
    return -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2 if x < 2 else 0.0


def slow_filter(old: int, new: int) -> Tensor:
    """(new, old) weights: the kernel, widened where the grid shrinks, normalised over the places there are."""
    weights = torch.zeros(new, old, dtype=torch.float64)
    scale = old / new
    width = max(scale, 1.0)
    for i in range(new):
        centre = (i + 0.5) * scale
        for j in range(max(0, math.floor(centre - 2 * width + 0.5)), min(old, math.floor(centre + 2 * width + 0.5))):
            weights[i, j] = cubic((j + 0.5 - centre) / width)
    return weights / weights.sum(dim=1, keepdim=True)


@pytest.mark.parametrize("size", [(4, 4), (7, 5), (3, 9), (2, 2), (1, 1), (11, 3)], ids=str)
def test_equals_the_filter_written_out(size, device):
    positions = torch.randn(1, 16, 3, dtype=torch.float64, device=device)
    rows, columns = (slow_filter(4, new).to(device) for new in size)
    expected = torch.einsum("yi,xj,bijc->byxc", rows, columns, positions.view(1, 4, 4, 3))
    reference.close(resize_positions(positions, size), expected)


@pytest.mark.parametrize("size", [(14, 14), (20, 11), (50, 80)], ids=str)
def test_equals_timm(size):
    timm = pytest.importorskip("timm.layers")
    positions = torch.randn(1, 196, 8)
    expected = timm.resample_abs_pos_embed(positions, list(size), num_prefix_tokens=0)
    assert torch.equal(resize_positions(positions, size).flatten(1, 2), expected)


def test_gradients_reach_every_position():
    positions = torch.randn(1, 9, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda p: resize_positions(p, (5, 2)), positions)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision_is_filtered_in_single(dtype):
    positions = torch.randn(1, 16, 3).to(dtype)
    resized = resize_positions(positions, (7, 5))
    assert resized.dtype == dtype
    assert torch.equal(resized, resize_positions(positions.float(), (7, 5)).to(dtype))


@pytest.mark.parametrize("shape", [(1, 15, 3), (2, 16, 3), (16, 3)], ids=str)
def test_positions_that_are_no_square_are_an_error(shape):
    with pytest.raises(ValueError, match=r"for each token of a square grid.\n  expected: \(1, n \* n, C\)"):
        resize_positions(torch.zeros(shape), (4, 4))
