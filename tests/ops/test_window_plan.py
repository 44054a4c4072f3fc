"""Windows as indices are those of padding, rolling and partitioning a map."""

import pytest
import torch

from spt_d2.ops.window_plan import window_plan
from spt_d2.ops.windows import shifted_window_mask, window_partition

CPU = torch.device("cpu")
SIZES = [(14, 21), (13, 20), (7, 7), (8, 7), (3, 5), (1, 1), (28, 1)]


@pytest.mark.parametrize("shift", (0, 3))
@pytest.mark.parametrize("size", SIZES)
def test_windows_hold_the_tokens_that_partitioning_a_rolled_map_puts_there(size, shift):
    batch, (height, width) = 2, size
    plan = window_plan(batch, height, width, 7, shift, CPU)
    tokens = 1 + torch.arange(batch * height * width, dtype=torch.float64).view(batch, height, width, 1)
    padded = torch.nn.functional.pad(tokens, (0, 0, 0, -width % 7, 0, -height % 7)).roll((-shift, -shift), (1, 2))
    windows, padded_size = window_partition(padded, 7)
    expected = windows.squeeze(-1).long() - 1
    seen = torch.cat((plan.whole, plan.border))
    # Every window once, whole ones first: as a set of rows.
    assert sorted(map(tuple, seen.tolist())) == sorted(map(tuple, expected.tolist()))
    assert bool((plan.whole >= 0).all())
    masks = torch.zeros(len(expected), 49, 49)
    if shift:
        masks = shifted_window_mask(padded_size, 7, shift, CPU, torch.float32).repeat(batch, 1, 1)
    by_window = {tuple(row): mask for row, mask in zip(expected.tolist(), masks)}
    assert all(not by_window[tuple(row)].any() for row in plan.whole.tolist())
    for i, row in enumerate(plan.border.tolist()):
        mask = torch.zeros(49, 49) if plan.mask is None else plan.mask[i]
        assert torch.equal(mask, by_window[tuple(row)])
        assert -1 in row or bool(mask.any()), "a window without padding or mask is not at the border"


def test_a_map_of_whole_windows_has_no_border():
    plan = window_plan(3, 14, 21, 7, 0, CPU)
    assert plan.whole.shape == (18, 49) and len(plan.border) == 0 and plan.mask is None
