"""Windows as tensors and as an order of tokens, against loops."""

import itertools

import pytest
import torch

from spt_d2.ops import windows as ops
from tests import reference

CPU = torch.device("cpu")
SIZES = [(1, 1), (7, 7), (8, 15), (14, 21), (3, 10), (5, 1)]


@pytest.mark.parametrize("height, width", SIZES)
@pytest.mark.parametrize("window_size", [1, 3, 7])
def test_partition_lists_windows_row_by_row_padded_with_zeros(height, width, window_size):
    x = torch.randn(2, height, width, 3)
    actual, (padded_height, padded_width) = ops.window_partition(x, window_size)
    assert padded_height % window_size == 0 and 0 <= padded_height - height < window_size
    assert padded_width % window_size == 0 and 0 <= padded_width - width < window_size
    padded = torch.zeros(2, padded_height, padded_width, 3)
    padded[:, :height, :width] = x
    expected = [
        padded[b, top : top + window_size, left : left + window_size].reshape(-1, 3)
        for b in range(2)
        for top in range(0, padded_height, window_size)
        for left in range(0, padded_width, window_size)
    ]
    assert torch.equal(actual, torch.stack(expected))


@pytest.mark.parametrize("height, width", SIZES)
@pytest.mark.parametrize("contiguous", [True, False])
def test_unpartition_undoes_partition(height, width, contiguous):
    x = torch.randn(2, height, width, 3)
    if not contiguous:
        x = torch.randn(3, width, height, 2).permute(3, 2, 1, 0)
    cut, padded = ops.window_partition(x, 7)
    assert torch.equal(ops.window_unpartition(cut, 7, padded, (height, width)), x)


@pytest.mark.parametrize(
    "height, width, window_size, shift_size", [(7, 7, 7, 3), (14, 21, 7, 3), (4, 6, 2, 1), (9, 3, 3, 2)]
)
def test_shifted_mask_separates_what_the_roll_brought_together(height, width, window_size, shift_size):
    mask = ops.shifted_window_mask((height, width), window_size, shift_size, CPU, torch.float64)
    window = 0
    for top, left in itertools.product(range(0, height, window_size), range(0, width, window_size)):
        # Where each token of the rolled window was before the roll.
        rolled = [(top + i, left + j) for i in range(window_size) for j in range(window_size)]
        home = [((i + shift_size) % height, (j + shift_size) % width) for i, j in rolled]
        offset = [(y - i, x - j) for (y, x), (i, j) in zip(home, rolled)]
        expected = torch.tensor([[0.0 if a == b else -100.0 for b in offset] for a in offset], dtype=torch.float64)
        assert torch.equal(mask[window], expected)
        window += 1
    assert window == mask.shape[0]


def test_relative_position_index_follows_swins_numbering():
    size = 3
    index = ops.relative_position_index(size, CPU)
    places = list(itertools.product(range(size), repeat=2))
    for (q, (qy, qx)), (k, (ky, kx)) in itertools.product(enumerate(places), repeat=2):
        assert index[q, k] == (qy - ky + size - 1) * (2 * size - 1) + (qx - kx + size - 1)
    assert sorted(index.unique().tolist()) == list(range((2 * size - 1) ** 2))


def test_relative_position_rows_clamp_far_offsets_to_the_tables_border():
    offsets = torch.tensor([[0, 0], [2, -2], [9, -40], [-3, 3]])
    assert ops.relative_position_rows(offsets, 3).tolist() == [12, 20, 20, 4]


@pytest.mark.parametrize("order", ops.ORDERS)
@pytest.mark.parametrize("window_size, shift_size", [(7, 0), (7, 3), (3, 1), (2, 1), (1, 0)])
@pytest.mark.parametrize("height, width", [*SIZES, (2, 2)])
def test_token_order_follows_the_loop(height, width, window_size, shift_size, order):
    places, windows, num_windows = ops.token_order(height, width, window_size, shift_size, order, CPU)
    expected = reference.token_sequence(height, width, window_size, shift_size, order)
    assert [divmod(place, width) for place in places.tolist()] == expected
    assert sorted(places.tolist()) == list(range(height * width))
    # The same number means the same window, and the numbers run row by row over the windows.
    names = [reference.window_number(i, j, (height, width), window_size, shift_size) for i, j in expected]
    number = {name: k for k, name in enumerate(sorted(set(names)))}
    assert windows.tolist() == [number[name] for name in names]
    assert num_windows == len(number)


@pytest.mark.parametrize("height, width, window_size, shift_size", [(14, 21, 7, 3), (4, 6, 2, 1), (7, 7, 7, 3)])
def test_shifted_order_groups_tokens_as_swins_masked_windows_do(height, width, window_size, shift_size):
    places, windows, _ = ops.token_order(height, width, window_size, shift_size, "window", CPU)
    of_token = torch.zeros(height * width, dtype=torch.long).scatter_(0, places, windows)
    mine = of_token[:, None] == of_token[None, :]
    tokens = torch.arange(height * width).view(1, height, width, 1)
    rolled, padded = ops.window_partition(tokens.roll((-shift_size, -shift_size), (1, 2)), window_size)
    mask = ops.shifted_window_mask(padded, window_size, shift_size, CPU, torch.float32)
    swins = torch.zeros_like(mine)
    for members, row in zip(rolled.squeeze(-1), mask):
        swins[members[:, None], members[None, :]] = row == 0
    assert torch.equal(mine, swins)


def test_the_mask_of_some_windows_is_that_part_of_the_whole_mask():
    whole = ops.shifted_window_mask((14, 21), 7, 3, CPU, torch.float32)
    for places in (torch.tensor([5, 0, 2, 5]), torch.tensor([], dtype=torch.long)):
        assert torch.equal(ops.shifted_window_mask((14, 21), 7, 3, CPU, torch.float32, places), whole[places])


@pytest.mark.parametrize(
    "ask",
    [
        lambda: ops.relative_position_index(5, CPU),
        lambda: ops.token_order(11, 13, 5, 2, "window", CPU)[0],
        lambda: ops.shifted_window_mask((10, 15), 5, 2, CPU, torch.float32),
    ],
    ids=["relative_position_index", "token_order", "shifted_window_mask"],
)
def test_geometry_first_asked_for_in_inference_mode_serves_training(ask):
    with torch.inference_mode():
        ask()
    assert not ask().is_inference()


def test_unknown_order_is_an_error():
    with pytest.raises(ValueError, match=r"token_order\(order=\) expects one of \('window', 'raster'\)\. Got 'spiral'"):
        ops.token_order(2, 2, 2, 0, "spiral", CPU)
