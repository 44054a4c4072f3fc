"""
Window geometry of a token grid: Swin's windows as tensors, and as an order of tokens.

Shape shorthand in this module:

    B: images    H, W: token grid    C: channels    M: window size    N = H * W tokens

Geometry depends on shapes alone and is cached.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from spt_d2.ops.shape_cache import shape_cache

ORDERS = ("window", "raster")


def window_partition(x: Tensor, window_size: int) -> tuple[Tensor, tuple[int, int]]:
    """
    Cut a map into windows, padding right and bottom with zeros where the size is no multiple.

    Args:
        x: (B, H, W, C).
        window_size: M, in tokens.

    Returns:
        windows (B * H'/M * W'/M, M * M, C), row-major over the windows of an image, and the padded size (H', W').
    """
    b, h, w, c = x.shape
    pad_h, pad_w = -h % window_size, -w % window_size
    if pad_h or pad_w:
        x = F.pad(x, (0, 0, 0, pad_w, 0, pad_h))
    hp, wp = h + pad_h, w + pad_w
    x = x.view(b, hp // window_size, window_size, wp // window_size, window_size, c)
    windows = x.permute(0, 1, 3, 2, 4, 5).reshape(-1, window_size * window_size, c)
    return windows, (hp, wp)


def window_unpartition(
    windows: Tensor, window_size: int, padded_size: tuple[int, int], size: tuple[int, int]
) -> Tensor:
    """
    Inverse of :func:`window_partition`; the padding is cut off.

    Args:
        windows: (B * H'/M * W'/M, M * M, C).
        window_size: M, in tokens.
        padded_size: (H', W') as :func:`window_partition` returned it.
        size: (H, W) of the map before padding.

    Returns:
        (B, H, W, C).
    """
    hp, wp = padded_size
    h, w = size
    rows, cols = hp // window_size, wp // window_size
    x = windows.view(-1, rows, cols, window_size, window_size, windows.shape[-1])
    x = x.permute(0, 1, 3, 2, 4, 5).reshape(-1, hp, wp, windows.shape[-1])
    return x[:, :h, :w].contiguous() if (hp, wp) != (h, w) else x


def shifted_window_mask(
    padded_size: tuple[int, int],
    window_size: int,
    shift_size: int,
    device: torch.device,
    dtype: torch.dtype,
    places: Tensor | None = None,
) -> Tensor:
    """
    Additive mask of Swin's shifted windows: tokens that the cyclic roll brought together do not attend to each other.

    Masks with -100 as Swin does, so that outputs agree with it to the last digits.

    Args:
        padded_size: (H', W'), multiples of ``window_size``.
        window_size: M, in tokens.
        shift_size: the roll, 0 < shift_size < M.
        places: (n,) long, windows of the map whose mask is wanted; None for all H'/M * W'/M of them.

    Returns:
        (n, M * M, M * M) of ``dtype``, 0 or -100.
    """
    # Regions are kept, and not masks: 64 of those, for images of up to 800 x 1333, would be half a gigabyte.
    regions = _window_regions(padded_size, window_size, shift_size, device)
    regions = regions if places is None else regions[places]
    mask = torch.zeros(*regions.shape, regions.shape[1], dtype=dtype, device=device)
    return mask.masked_fill_(regions[:, None, :] != regions[:, :, None], -100.0)


@shape_cache(maxsize=64)
def _window_regions(padded_size: tuple[int, int], window_size: int, shift_size: int, device: torch.device) -> Tensor:
    """(H'/M * W'/M, M * M) uint8, the region of each token of the rolled map: tokens attend within theirs."""

    def bands(length: int) -> Tensor:
        band = torch.zeros(length, dtype=torch.uint8, device="cpu")
        band[length - window_size : length - shift_size] = 1
        band[length - shift_size :] = 2
        return band

    region = 3 * bands(padded_size[0])[:, None] + bands(padded_size[1])[None, :]
    regions, _ = window_partition(region[None, :, :, None], window_size)
    return regions.squeeze(-1).to(device)


@shape_cache(maxsize=16)
def relative_position_index(window_size: int, device: torch.device) -> Tensor:
    """
    Row of the relative position bias table for every query-key pair of a window (Swin, Sec. 3.2).

    Returns:
        (M * M, M * M) long, in [0, (2M - 1)^2). Cached: do not write into it.
    """
    axis = torch.arange(window_size, device="cpu")
    coords = torch.stack(torch.meshgrid(axis, axis, indexing="ij"), dim=-1).view(-1, 2)
    return relative_position_rows(coords[:, None] - coords[None, :], window_size).to(device)


def relative_position_rows(offsets: Tensor, window_size: int) -> Tensor:
    """
    Row of the relative position bias table for offsets (query minus key), clamped to the table.

    Args:
        offsets: (..., 2) long, (dy, dx) in tokens.
        window_size: M; the table has (2M - 1)^2 rows.

    Returns:
        (...) long in [0, (2M - 1)^2).
    """
    shifted = offsets.clamp(1 - window_size, window_size - 1) + (window_size - 1)
    return shifted[..., 0] * (2 * window_size - 1) + shifted[..., 1]


@shape_cache(maxsize=128)
def token_order(
    height: int, width: int, window_size: int, shift_size: int, order: str, device: torch.device
) -> tuple[Tensor, Tensor, int]:
    """
    The order in which the tokens of one image are packed, and the window each token lies in.

    ``window`` is window-major: tokens of a window follow each other, windows follow each other row by row. A shift
    moves the window borders by ``shift_size`` instead of rolling features: the windows at the map's border are the
    smaller ones, exactly the regions that Swin's mask leaves to each other after its roll. ``raster`` reads the grid
    rolled by ``-shift_size`` row by row.

    Args:
        height, width: token grid.
        window_size: M, in tokens.
        shift_size: 0 for even blocks, M // 2 for odd ones.
        order: ``window`` or ``raster``.

    Returns:
        order (N,) long: raster index of the token at each place; window (N,) long: window number at each place
        (non-decreasing under ``window``); the number of windows. Cached: do not write into them.
    """
    if order not in ORDERS:
        raise ValueError(f"token_order(order=) expects one of {ORDERS}. Got {order!r}.")

    def window_of(length: int) -> Tensor:
        return (torch.arange(length, device="cpu") + -shift_size % window_size) // window_size

    rows, cols = int(window_of(height)[-1]) + 1, int(window_of(width)[-1]) + 1
    window = (window_of(height)[:, None] * cols + window_of(width)[None, :]).flatten()
    if order == "window":
        places = torch.argsort(window, stable=True)
    else:
        grid = torch.arange(height * width, device="cpu").view(height, width)
        places = grid.roll((-shift_size, -shift_size), dims=(0, 1)).flatten()
    return places.to(device), window[places].to(device), rows * cols
