"""Deformable attention against one bilinear lookup, one query and one key at a time."""

import pytest
import torch
from torch import Tensor

from spt_d2.ops import deformable
from spt_d2.ops.deformable import (
    deformable_attention,
    deformed_points,
    displacement_bias,
    reference_points,
    sample_tokens,
)
from tests import deformable_reference, reference

BATCH, GROUPS, HEADS, HEAD_DIM = 2, 2, 4, 3


def positions(rows: int, columns: int, reach: float = 1.3, dtype: torch.dtype = torch.float64) -> Tensor:
    """Anywhere, and beyond the map too."""
    drawn = torch.rand(BATCH, GROUPS, rows, columns, 2, dtype=dtype)
    return ((2 * drawn - 1) * reach).requires_grad_()


def inputs(height: int, width: int, rows: int, columns: int, table: int = 4) -> dict[str, Tensor]:
    def tokens(count: int) -> Tensor:
        return torch.randn(BATCH, HEADS, count, HEAD_DIM, dtype=torch.float64, requires_grad=True)

    return {
        "q": tokens(height * width),
        "k": tokens(rows * columns),
        "v": tokens(rows * columns),
        "positions": positions(rows, columns, reach=1.0),
        "table": torch.randn(HEADS, 2 * table - 1, 2 * table - 1, dtype=torch.float64, requires_grad=True),
    }


def same_with_gradients(actual: Tensor, expected: Tensor, **leaves: Tensor) -> None:
    reference.close(actual, expected)
    truth = reference.gradients(expected, **leaves)
    for name, gradient in reference.gradients(actual, **leaves).items():
        assert truth[name].abs().sum() > 0, name
        reference.close(gradient, truth[name])


def test_reference_points_are_the_centres_of_equal_cells():
    points = reference_points((2, 4), torch.device("cpu"))
    assert points.shape == (2, 4, 2)
    assert points[:, 0, 0].tolist() == [-0.5, 0.5] and points[0, :, 1].tolist() == [-0.75, -0.25, 0.25, 0.75]
    assert reference_points((1, 1), torch.device("cpu")).tolist() == [[[0.0, 0.0]]]


@pytest.mark.parametrize("offset_range", [0.5, 2.0])
def test_a_point_moves_by_at_most_the_range_in_halves_of_its_cell(offset_range):
    centres = reference_points((3, 5), torch.device("cpu"), torch.float64)
    cell = torch.tensor([2 / 3, 2 / 5], dtype=torch.float64)
    for offset in (-1e3, 1e3):
        moved = deformed_points(torch.full((1, 1, 3, 5, 2), offset, dtype=torch.float64), offset_range)
        reference.close(moved[0, 0], centres + torch.tensor(offset).sign() * offset_range * cell / 2)
    assert torch.equal(deformed_points(torch.zeros(1, 1, 3, 5, 2, dtype=torch.float64), offset_range)[0, 0], centres)


def test_without_a_range_points_go_anywhere_within_the_map():
    offsets = torch.randn(2, 2, 3, 5, 2, dtype=torch.float64)
    moved = deformed_points(offsets, 0)
    centres = reference_points((3, 5), torch.device("cpu"), torch.float64)
    reference.close(moved, (centres + offsets).clamp(-1, 1))
    assert moved.abs().max() == 1


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_positions_are_finer_than_half_precision(dtype):
    offsets = torch.zeros(1, 1, 1, 1000, 2, dtype=dtype)
    points = deformed_points(offsets, 2.0)
    assert points.dtype == torch.float32 and points[..., 1].unique().numel() == 1000
    x = torch.randn(1, 1, 1000, 2, dtype=dtype)
    assert sample_tokens(x, points).dtype == dtype


@pytest.mark.parametrize("height, width", [(4, 6), (1, 5), (1, 1), (7, 2)])
@pytest.mark.parametrize("rows, columns", [(2, 3), (1, 1)])
def test_sampling_equals_a_loop_of_bilinear_lookups(height, width, rows, columns):
    x = torch.randn(BATCH, height, width, GROUPS * 3, dtype=torch.float64, requires_grad=True)
    places = positions(rows, columns)
    actual, expected = sample_tokens(x, places), deformable_reference.sample(x, places)
    assert actual.shape == (BATCH, rows * columns, GROUPS * 3)
    reference.close(actual, expected)
    truth = reference.gradients(expected, x=x, places=places)
    for name, gradient in reference.gradients(actual, x=x, places=places).items():
        reference.close(gradient, truth[name])


def test_samples_at_the_tokens_are_the_tokens():
    x = torch.randn(1, 3, 5, 4, dtype=torch.float64)
    axes = [torch.linspace(-1, 1, n, dtype=torch.float64) for n in (3, 5)]
    places = torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1)[None, None]
    reference.close(sample_tokens(x, places), x.flatten(1, 2))


@pytest.mark.parametrize("height, width, rows, columns", [(3, 4, 2, 2), (1, 1, 1, 1), (2, 5, 1, 3)])
def test_bias_equals_a_loop_of_lookups_in_the_table(height, width, rows, columns):
    table = torch.randn(HEADS, 5, 5, dtype=torch.float64, requires_grad=True)
    places = positions(rows, columns)
    queries = reference_points((height, width), places.device, torch.float64).flatten(0, 1)
    actual = displacement_bias(table, queries, places)
    assert actual.shape == (BATCH, HEADS, height * width, rows * columns)
    same_with_gradients(actual, deformable_reference.bias(table, height, width, places), table=table, places=places)


def test_bias_of_no_displacement_is_the_middle_of_the_table_on_maps_of_any_size():
    table = torch.randn(1, 27, 27)
    for size in ((1, 1), (3, 8), (40, 25)):
        points = reference_points(size, table.device)
        bias = displacement_bias(table, points.flatten(0, 1), points[None, None])
        reference.close(bias[0, 0].diagonal(), table[0, 13, 13].expand(size[0] * size[1]))


@pytest.mark.parametrize("height, width, rows, columns", [(3, 4, 2, 2), (1, 3, 1, 2), (2, 2, 2, 2)])
@pytest.mark.parametrize("max_pairs", [1, 100, 10**6])
def test_attention_equals_one_query_at_a_time_however_it_is_cut(height, width, rows, columns, max_pairs):
    leaves = inputs(height, width, rows, columns)
    expected = deformable_reference.attention(
        leaves["q"],
        leaves["k"],
        leaves["v"],
        deformable_reference.bias(leaves["table"], height, width, leaves["positions"]),
    )
    same_with_gradients(
        deformable_attention(**leaves, grid_size=(height, width), max_pairs=max_pairs), expected, **leaves
    )
    with torch.no_grad():
        unrecorded = deformable_attention(**leaves, grid_size=(height, width), max_pairs=max_pairs)
    reference.close(unrecorded, expected.detach())


@pytest.mark.parametrize("record", [True, False], ids=["grad", "no_grad"])
def test_no_more_pairs_have_a_bias_at_a_time_than_allowed(record, monkeypatch):
    held = []

    def counted(*arguments: Tensor) -> Tensor:
        bias = displacement_bias(*arguments)
        held.append(bias.numel())
        return bias

    monkeypatch.setattr(deformable, "displacement_bias", counted)
    leaves = inputs(6, 7, 3, 4)
    limit = 5 * BATCH * HEADS * 12
    with torch.set_grad_enabled(record):
        out = deformable_attention(**leaves, grid_size=(6, 7), max_pairs=limit + 3)
        # Nine parts, five queries in each but the last.
        assert held == [limit] * 8 + [limit * 2 // 5]
        if record:
            out.sum().backward()
            assert len(held) == 18, "recomputed, not kept"


def test_dropout_is_the_same_when_recomputed():
    leaves = inputs(3, 4, 2, 2)
    weight = torch.randn(BATCH, HEADS, 12, HEAD_DIM, dtype=torch.float64)

    def loss(values: Tensor) -> Tensor:
        torch.manual_seed(5)
        out = deformable_attention(**{**leaves, "v": values}, grid_size=(3, 4), max_pairs=100, dropout=0.5)
        return (out * weight).sum()

    # Linear in the values: the gradient times them is the loss, if both saw the same weights dropped.
    total = loss(leaves["v"])
    (gradient,) = torch.autograd.grad(total, leaves["v"])
    reference.close((gradient * leaves["v"]).sum(), total)
    assert not torch.allclose(total, (deformable_attention(**leaves, grid_size=(3, 4)) * weight).sum())


@pytest.mark.parametrize("change", ["q", "k", "positions"])
def test_shapes_that_do_not_go_together_are_an_error(change):
    leaves = inputs(3, 4, 2, 2)
    other = {
        "q": leaves["q"][:, :, 1:],
        "k": leaves["k"][:, :, 1:],
        "positions": leaves["positions"].repeat(1, 4, 1, 1, 1),
    }
    leaves[change] = other[change]
    with pytest.raises(ValueError, match=r"a query for every token(.|\n)*grid_size      : \(3, 4\)"):
        deformable_attention(**leaves, grid_size=(3, 4))
