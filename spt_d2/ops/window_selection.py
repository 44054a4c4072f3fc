"""
Windows ranked by the size of their activations, and what keeps a share of them (SparseViT; Chen et al., CVPR 2023).

Windows are those of Swin's attention: of the map padded to whole windows and rolled by the shift, so that a shifted
window at the border holds up to four regions that do not attend to each other.

Shape shorthand in this module:

    B: images    H, W: token grid    N = H * W    C: channels    M: window size    nW: windows of a map
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from spt_d2.ops.selection import BlockSelection
from spt_d2.ops.shape_cache import shape_cache
from spt_d2.ops.windows import window_partition


@dataclass(frozen=True)
class WindowSelection(BlockSelection):
    """
    :class:`~spt_d2.ops.selection.BlockSelection` of a block that runs whole windows.

    Attributes:
        window_counts: windows that the block ran, of each image.
        window_size: M, in tokens.
    """

    window_counts: tuple[int, ...]
    window_size: int

    def pairs_of_image(self, i: int) -> tuple[float, float]:
        """All M^2 x M^2 pairs of the image's own windows, padding among them as in Swin."""
        pairs = float(self.window_counts[i] * self.window_size**4)
        return pairs, pairs


def spread_ratios(ratios: Sequence[float], depth: int, name: str) -> tuple[float, ...]:
    """
    Pruning ratios of a stage's blocks from fewer values: block i takes value ``i * len(ratios) // depth``.

    One value holds for all blocks; three for six blocks hold for two each, the pairs of SparseViT's search.

    Args:
        ratios: in [0, 1), not decreasing.
        depth: blocks of the stage.
        name: what the values are called, for messages.

    Raises:
        ValueError: no value or more than blocks; one out of range; a decrease: deeper blocks run some of the windows
            that the blocks before them ran.
    """
    values = [float(ratio) for ratio in ratios]
    if not 1 <= len(values) <= depth:
        raise ValueError(f"{name} expects 1 to {depth} values, as many as the stage has blocks. Got {values}.")
    if not all(0.0 <= value < 1.0 for value in values):
        raise ValueError(f"{name} expects shares of windows in [0, 1). Got {values}.")
    if values != sorted(values):
        raise ValueError(
            f"{name} expects values that do not decrease: a block runs some of the windows of the blocks before it. "
            f"Got {values}."
        )
    return tuple(values[i * len(values) // depth] for i in range(depth))


@shape_cache(maxsize=128)
def window_tokens(
    height: int, width: int, window_size: int, shift_size: int, device: torch.device
) -> tuple[Tensor, Tensor]:
    """
    Which tokens lie in which window.

    Returns:
        (nW, M * M) long: raster index of the token in each slot of each window, N where the slot is padding; and (N,)
        long: the window of each token. Cached: do not write into them.
    """
    total = height * width
    grid = torch.arange(total).view(1, height, width, 1)
    grid = F.pad(grid, (0, 0, 0, -width % window_size, 0, -height % window_size), value=total)
    slots = window_partition(grid.roll((-shift_size, -shift_size), dims=(1, 2)), window_size)[0].squeeze(-1)
    windows = torch.empty(total + 1, dtype=torch.long)
    windows[slots] = torch.arange(slots.shape[0])[:, None].expand_as(slots)
    return slots.to(device), windows[:total].to(device)


def token_activations(x: Tensor, valid: Tensor) -> Tensor:
    """
    (B, N) size of each token: the mean over channels of its absolute values, in float32 at least; 0 in padding.

    No gradient flows: windows are ranked by it, and nothing else.

    Args:
        x: (B, H, W, C).
        valid: (B, H, W) bool.
    """
    dtype = torch.promote_types(x.dtype, torch.float32)
    size = torch.linalg.vector_norm(x.detach(), ord=1, dim=-1, dtype=dtype) / x.shape[-1]
    return size.masked_fill(~valid, 0.0).flatten(1)


def window_scores(activations: Tensor, slots: Tensor) -> Tensor:
    """
    (B, nW) scores of windows: the L2 norm of their tokens' activations; padding adds nothing.

    Args:
        activations: (B, N) of :func:`token_activations`.
        slots: (nW, M * M) of :func:`window_tokens`.
    """
    return torch.linalg.vector_norm(F.pad(activations, (0, 1))[:, slots], dim=-1)


def rank_windows(scores: Tensor, valid: Tensor, windows: Tensor) -> Tensor:
    """
    (B, nW) long: each image's windows from the highest score down; ties by place, and behind all others those that lie
    wholly in the padding of the batch.

    Args:
        scores: (B, nW).
        valid: (B, H, W) bool.
        windows: (N,) of :func:`window_tokens`.
    """
    shown = torch.zeros(scores.shape, dtype=torch.int32, device=scores.device)
    shown.index_add_(1, windows, valid.flatten(1).to(torch.int32))
    return torch.argsort(scores.masked_fill(shown == 0, -math.inf), dim=1, descending=True, stable=True)


def count_windows(
    image_sizes: Sequence[tuple[int, int]] | None,
    grid_size: tuple[int, int],
    stride: int,
    batch: int,
    window_size: int,
    shift_size: int,
) -> list[int]:
    """
    Windows of each image that hold at least one of its tokens; all of them without ``image_sizes``.

    Found from sizes alone, so that nothing has to be asked of the device.

    Args:
        image_sizes: (height, width) in pixels of each image, without padding.
        grid_size: (H, W).
        stride: pixels per token.
        batch: B.
        window_size: M, in tokens.
        shift_size: 0, or M // 2.
    """

    def bands(tokens: int, length: int) -> int:
        padded = -(-length // window_size) * window_size
        return len({(i - shift_size) % padded // window_size for i in range(min(tokens, length))})

    if image_sizes is None:
        image_sizes = [(grid_size[0] * stride, grid_size[1] * stride)] * batch
    return [
        bands(-(-height // stride), grid_size[0]) * bands(-(-width // stride), grid_size[1])
        for height, width in image_sizes
    ]


def kept_windows(windows: int, pruning_ratio: float) -> int:
    """Of so many windows, floor((1 - pruning_ratio) * windows), and at least one: an image is not skipped whole."""
    # In whole millionths: 10 * (1 - 0.9) is 0.9999999999999998 in floating point.
    return max(1, windows * (1_000_000 - round(pruning_ratio * 1_000_000)) // 1_000_000)


def choose_windows(order: Tensor, counts: Sequence[int]) -> Tensor:
    """
    (K,) long, into the flattened (B * nW) windows, image after image: the first so many of each image.

    Args:
        order: (B, nW) of :func:`rank_windows`.
        counts: B integers; images may keep different numbers, and nothing is padded to the highest.
    """
    return torch.cat([order[i, :count] + i * order.shape[1] for i, count in enumerate(counts)])


def window_mask(chosen: Tensor, windows: Tensor, valid: Tensor, num_windows: int) -> Tensor:
    """
    (B, H, W) bool: valid tokens in chosen windows.

    Args:
        chosen: (K,) of :func:`choose_windows`.
        windows: (N,) of :func:`window_tokens`.
        valid: (B, H, W) bool.
        num_windows: nW.
    """
    flags = torch.zeros(valid.shape[0] * num_windows, dtype=torch.bool, device=valid.device)
    flags = flags.index_fill_(0, chosen, True).view(valid.shape[0], num_windows)
    return flags[:, windows].view_as(valid) & valid
