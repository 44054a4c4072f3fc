"""Windows ranked and chosen, against loops over tokens."""

import pytest
import torch

from spt_d2.ops.window_selection import (
    choose_windows,
    count_windows,
    kept_windows,
    rank_windows,
    spread_ratios,
    token_activations,
    window_mask,
    window_scores,
    window_tokens,
)
from tests import reference, slow_windows

GRIDS = [(8, 12, 4, 0), (8, 12, 4, 2), (9, 13, 4, 0), (9, 13, 4, 2), (1, 1, 4, 2), (3, 5, 7, 3), (6, 14, 3, 1)]


@pytest.mark.parametrize("height, width, window_size, shift_size", GRIDS)
def test_every_token_has_a_slot_in_the_window_that_swin_puts_it_in(height, width, window_size, shift_size):
    slots, windows = window_tokens(height, width, window_size, shift_size, torch.device("cpu"))
    columns = -(-width // window_size)
    assert slots.shape == (-(-height // window_size) * columns, window_size**2)
    assert sorted(slots[slots < height * width].tolist()) == list(range(height * width))
    assert slots.max() <= height * width
    for token in range(height * width):
        row, column = slow_windows.window_of(divmod(token, width), (height, width), window_size, shift_size)
        assert windows[token] == row * columns + column
        assert token in slots[windows[token]]


@pytest.mark.parametrize("height, width, window_size, shift_size", GRIDS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_windows_are_ranked_and_chosen_as_loops_do(height, width, window_size, shift_size, dtype):
    x = torch.randn(3, height, width, 5).to(dtype)
    shown = [(height, width), (-(-height // 2), -(-width // 3)), (1, 1)]
    valid = torch.zeros(3, height, width, dtype=torch.bool)
    for one, (rows, columns) in zip(valid, shown):
        one[:rows, :columns] = True
    slots, windows = window_tokens(height, width, window_size, shift_size, x.device)
    order = rank_windows(window_scores(token_activations(x, valid), slots), valid, windows)
    sizes = [(4 * rows - 3, 4 * columns) for rows, columns in shown]
    counts = count_windows(sizes, (height, width), 4, 3, window_size, shift_size)
    num_columns = -(-width // window_size)
    activations = x.double().abs().mean(dim=-1)
    for b in range(3):
        expected = slow_windows.windows_of_image(activations[b], shown[b], window_size, shift_size)
        assert counts[b] == len(expected)
        assert order[b, : counts[b]].tolist() == [row * num_columns + column for row, column in expected]
    kept = [1, *counts[1:]]
    chosen = choose_windows(order, kept)
    assert len(chosen) == sum(kept)
    mask = window_mask(chosen, windows, valid, slots.shape[0])
    assert torch.equal(mask[1:], valid[1:]), "all windows of an image are its valid tokens"
    assert torch.equal(mask[0].flatten(), windows == order[0, 0])


def test_scores_are_norms_over_windows_of_means_over_channels_by_hand():
    x = torch.tensor([[[3.0, -1.0], [0.0, 0.0], [1.0, 1.0]]])[None]
    slots, _ = window_tokens(1, 3, 2, 0, x.device)
    activations = token_activations(x, torch.ones(1, 1, 3, dtype=torch.bool))
    assert activations.tolist() == [[2.0, 0.0, 1.0]]
    assert window_scores(activations, slots).tolist() == [[2.0, 1.0]]
    hidden = token_activations(x, torch.tensor([[[False, True, True]]]))
    assert window_scores(hidden, slots).tolist() == [[0.0, 1.0]]


def test_ranking_takes_no_gradient_and_keeps_the_precision_of_float64():
    x = torch.randn(1, 2, 2, 3, dtype=torch.float64, requires_grad=True)
    valid = torch.ones(1, 2, 2, dtype=torch.bool)
    activations = token_activations(x, valid)
    assert not activations.requires_grad and activations.dtype == torch.float64
    assert token_activations(x.bfloat16(), valid).dtype == torch.float32


def test_equal_windows_keep_their_order():
    valid = torch.ones(2, 4, 4, dtype=torch.bool)
    slots, windows = window_tokens(4, 4, 2, 0, valid.device)
    scores = window_scores(token_activations(torch.ones(2, 4, 4, 1), valid), slots)
    assert rank_windows(scores, valid, windows).tolist() == [[0, 1, 2, 3]] * 2


def test_padding_comes_last_even_behind_an_image_of_zeros():
    valid = torch.zeros(1, 4, 4, dtype=torch.bool)
    valid[:, 2:] = True
    slots, windows = window_tokens(4, 4, 2, 0, valid.device)
    scores = window_scores(token_activations(torch.zeros(1, 4, 4, 1), valid), slots)
    assert rank_windows(scores, valid, windows).tolist() == [[2, 3, 0, 1]]


def test_without_sizes_every_window_counts():
    for height, width, window_size, shift_size in GRIDS:
        total = -(-height // window_size) * -(-width // window_size)
        assert count_windows(None, (height, width), 8, 2, window_size, shift_size) == [total, total]


@pytest.mark.parametrize("tenths", range(10))
def test_the_number_of_kept_windows_is_that_of_exact_arithmetic(tenths):
    ratio = tenths / 10
    for windows in range(1, 700):
        assert kept_windows(windows, ratio) == slow_windows.number_kept(windows, ratio)
    # Where floating point loses one: int(10 * (1 - 0.9)) is 0, int(690 * (1 - 0.8)) is 137.
    assert kept_windows(10, 0.9) == 1 and kept_windows(690, 0.8) == 138


@pytest.mark.parametrize(
    "ratios, depth, expected",
    [
        ([0.3], 2, (0.3, 0.3)),
        ([0.1, 0.2, 0.2], 6, (0.1, 0.1, 0.2, 0.2, 0.2, 0.2)),
        ([0.0, 0.5, 0.8], 4, (0.0, 0.0, 0.5, 0.8)),
        ([0, 0.25], 2, (0.0, 0.25)),
    ],
)
def test_ratios_are_spread_over_the_blocks(ratios, depth, expected):
    assert spread_ratios(ratios, depth, "ratios") == expected


@pytest.mark.parametrize(
    "ratios, message",
    [
        ([], "expects 1 to 3 values, as many as the stage has blocks"),
        ([0.1] * 4, "expects 1 to 3 values"),
        ([0.1, 1.0], r"expects shares of windows in \[0, 1\)"),
        ([-0.1, 0.1], r"expects shares of windows in \[0, 1\)"),
        ([0.2, 0.1], r"expects values that do not decrease(.|\n)*Got \[0.2, 0.1\]"),
    ],
)
def test_ratios_that_no_stage_can_have_are_errors(ratios, message):
    with pytest.raises(ValueError, match=f"mine {message}"):
        spread_ratios(ratios, 3, "mine")


def test_tensors_agree_on_every_device(device):
    x = torch.randn(2, 9, 13, 8, device=device)
    valid = torch.ones(2, 9, 13, dtype=torch.bool, device=device)
    slots, windows = window_tokens(9, 13, 4, 2, device)
    own = window_scores(token_activations(x, valid), slots)
    there = window_scores(token_activations(x.cpu(), valid.cpu()), slots.cpu())
    reference.close(own.cpu(), there)
    assert rank_windows(own, valid, windows).device.type == device.type
