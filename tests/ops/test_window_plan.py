"""Windows as indices are those of padding, rolling and partitioning a map."""

import pytest
import torch

from spt_d2.ops.window_plan import window_plan
from spt_d2.ops.windows import shifted_window_mask, window_partition

CPU = torch.device("cpu")
SIZES = [(14, 21), (13, 20), (7, 7), (8, 7), (3, 5), (1, 1), (28, 1)]


@pytest.mark.parametrize("step", (1, 4, 100))
@pytest.mark.parametrize("shift", (0, 3))
@pytest.mark.parametrize("size", SIZES)
def test_windows_hold_the_tokens_that_partitioning_a_rolled_map_puts_there(size, shift, step):
    batch, (height, width) = 2, size
    plan = window_plan(batch, height, width, 7, shift, step, CPU)
    tokens = 1 + torch.arange(batch * height * width, dtype=torch.float64).view(batch, height, width, 1)
    padded = torch.nn.functional.pad(tokens, (0, 0, 0, -width % 7, 0, -height % 7)).roll((-shift, -shift), (1, 2))
    windows, padded_size = window_partition(padded, 7)
    expected = windows.squeeze(-1).long() - 1
    masks = torch.zeros(len(expected), 49, 49)
    if shift:
        masks = shifted_window_mask(padded_size, 7, shift, CPU, torch.float32).repeat(batch, 1, 1)
    by_window = {tuple(row): mask for row, mask in zip(expected.tolist(), masks)}
    assert len(by_window) == len(expected)
    plain = True
    for chunk in plan.chunks:
        assert 1 <= chunk.windows <= step
        slots = torch.full((chunk.windows * 49,), -1, dtype=torch.long)
        slots[slice(None) if chunk.filled is None else chunk.filled] = chunk.places
        rows = slots.view(-1, 49)
        assert (chunk.filled is None) == bool((rows >= 0).all())
        seen = torch.zeros(len(rows), 49, 49) if chunk.mask is None else chunk.mask
        for row, mask in zip(rows.tolist(), seen):
            # Every window once.
            assert torch.equal(mask, by_window.pop(tuple(row)))
            whole = -1 not in row and not bool(mask.any())
            assert whole <= plain, "a whole window comes after one at the border"
            plain = whole
    assert not by_window
    assert torch.equal(plan.order, torch.cat([chunk.places for chunk in plan.chunks]))
    assert torch.equal(plan.order[plan.inverse], torch.arange(batch * height * width))


def test_a_map_of_whole_windows_is_one_kind_of_chunk():
    plan = window_plan(3, 14, 21, 7, 0, 5, CPU)
    assert [chunk.windows for chunk in plan.chunks] == [5, 5, 5, 3]
    assert all(chunk.filled is None and chunk.mask is None for chunk in plan.chunks)
