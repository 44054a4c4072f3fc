"""
Swin's (shifted) windows as indices into a map, a few at a time: no padding, rolling or partitioning of features.

Shape shorthand in this module:

    B: images    H, W: token grid    N = H * W    M: window size    L = M * M    n: windows    t: tokens in them
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from spt_d2.ops.shape_cache import shape_cache
from spt_d2.ops.windows import shifted_window_mask, window_partition


@dataclass(frozen=True)
class WindowChunk:
    """
    A few windows of a batch.

    Attributes:
        windows: n.
        places: (t,) long, into the flattened (B * N) tokens: those of the windows, window after window.
        filled: (t,) long, the slot of each token among the n * L slots of the windows; None where every slot has one.
        mask: (n, L, L) float32, 0 or -100: what Swin adds to the scores of windows of several regions; None where there
            are none.
    """

    windows: int
    places: Tensor
    filled: Tensor | None
    mask: Tensor | None


@dataclass(frozen=True)
class WindowPlan:
    """
    All windows of a batch of maps of one size: first those that are whole and of one region, then those at the border.

    Attributes:
        chunks: of the windows.
        order: (B * N,) long: the places of all chunks.
        inverse: (B * N,) long: where each token is in ``order``.
    """

    chunks: tuple[WindowChunk, ...]
    order: Tensor
    inverse: Tensor


@shape_cache(maxsize=64)
def window_plan(
    batch: int, height: int, width: int, window_size: int, shift_size: int, step: int, device: torch.device
) -> WindowPlan:
    """
    Where the windows of a block lie, as padding, rolling and partitioning a map would place them.

    Args:
        batch: B.
        height, width: token grid.
        window_size: M, in tokens.
        shift_size: 0, or M // 2.
        step: windows of a chunk.

    Returns:
        a plan. Cached: do not write into it.
    """
    padded = (-(-height // window_size) * window_size, -(-width // window_size) * window_size)
    places = torch.full((1, *padded, 1), -1, dtype=torch.long, device="cpu")
    places[:, :height, :width] = torch.arange(height * width, device="cpu").view(1, height, width, 1)
    if shift_size:
        places = places.roll((-shift_size, -shift_size), dims=(1, 2))
    places = window_partition(places, window_size)[0].squeeze(-1)
    border, mask = (places < 0).any(dim=1), None
    if shift_size:
        mask = shifted_window_mask(padded, window_size, shift_size, torch.device("cpu"), torch.float32)
        border |= (mask != 0).flatten(1).any(dim=1)
        mask = mask[border].repeat(batch, 1, 1).to(device)
    first = torch.arange(batch, device="cpu")[:, None, None] * (height * width)
    chunks = [
        WindowChunk(len(part), part.flatten().to(device), None, None)
        for part in (places[~border] + first).flatten(0, 1).split(step)
        if len(part)
    ]
    # Padding stays -1 in every image.
    at_border = torch.where(places[border] < 0, -1, places[border] + first).flatten(0, 1)
    for start in range(0, len(at_border), step):
        slots = at_border[start : start + step].flatten()
        filled = (slots >= 0).nonzero().squeeze(1)
        chunks.append(
            WindowChunk(
                windows=len(slots) // window_size**2,
                places=slots[filled].to(device),
                filled=None if len(filled) == len(slots) else filled.to(device),
                mask=None if mask is None else mask[start : start + step],
            )
        )
    order = torch.cat([chunk.places for chunk in chunks])
    return WindowPlan(tuple(chunks), order, torch.argsort(order))
