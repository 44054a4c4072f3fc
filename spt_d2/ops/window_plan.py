"""
Swin's (shifted) windows as indices into a map: no padding, rolling or partitioning of features.

Shape shorthand in this module:

    B: images    H, W: token grid    M: window size    L = M * M tokens    n: windows
"""

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from spt_d2.ops.windows import shifted_window_mask, window_partition


@dataclass(frozen=True)
class WindowPlan:
    """
    The windows of a batch of maps of one size, those that are whole apart from those at the border.

    Attributes:
        whole: (n, L) long, into the flattened (B * H * W) tokens: windows without padding whose tokens all see each
            other.
        border: (n', L) long: the other windows; -1 stands for padding.
        mask: (n', L, L) float32, 0 or -100: what Swin adds to the border windows' scores; None without a shift.
    """

    whole: Tensor
    border: Tensor
    mask: Tensor | None


@lru_cache(maxsize=64)
@torch.inference_mode(mode=False)
def window_plan(
    batch: int, height: int, width: int, window_size: int, shift_size: int, device: torch.device
) -> WindowPlan:
    """
    Where the windows of a block lie, as padding, rolling and partitioning a map would place them.

    Args:
        batch: B.
        height, width: token grid.
        window_size: M, in tokens.
        shift_size: 0, or M // 2.

    Returns:
        a plan. Cached: do not write into it.
    """
    grid = torch.arange(height * width).view(1, height, width, 1)
    padded = (-(-height // window_size) * window_size, -(-width // window_size) * window_size)
    places = torch.full((1, *padded, 1), -1, dtype=torch.long)
    places[:, :height, :width] = grid
    if shift_size:
        places = places.roll((-shift_size, -shift_size), dims=(1, 2))
    places = window_partition(places, window_size)[0].squeeze(-1)
    border = (places < 0).any(dim=1)
    mask = None
    if shift_size:
        mask = shifted_window_mask(padded, window_size, shift_size, torch.device("cpu"), torch.float32)
        border |= (mask != 0).flatten(1).any(dim=1)
        mask = mask[border].repeat(batch, 1, 1).to(device)
    first = torch.arange(batch)[:, None, None] * (height * width)
    whole = (places[~border] + first).flatten(0, 1)
    # Padding stays -1 in every image.
    at_border = torch.where(places[border] < 0, -1, places[border] + first).flatten(0, 1)
    return WindowPlan(whole.to(device), at_border.to(device), mask)
