"""Learned absolute positions, at another grid than they were learned for."""

import torch
import torch.nn.functional as F
from torch import Tensor


def resize_positions(positions: Tensor, grid_size: tuple[int, int]) -> Tensor:
    """
    Resize position embeddings bicubically, filtered where they shrink (as timm does for images of another size).

    Args:
        positions: (1, n * n, C), row by row.
        grid_size: (H, W) in tokens.

    Returns:
        (1, H, W, C), of the dtype of ``positions``; those values themselves where the grid is the learned one.

    Raises:
        ValueError: positions that are not those of a square grid.
    """
    side = round(positions.shape[1] ** 0.5) if positions.dim() == 3 else 0
    if positions.dim() != 3 or positions.shape[0] != 1 or side * side != positions.shape[1]:
        raise ValueError(
            "resize_positions(positions=) expects one embedding for each token of a square grid.\n"
            f"  expected: (1, n * n, C)\n  got     : {tuple(positions.shape)}"
        )
    grid = positions.unflatten(1, (side, side))
    if grid_size == (side, side):
        return grid
    # In float32 at least: half precision rounds the filter's weights.
    work = grid.to(torch.promote_types(grid.dtype, torch.float32)).permute(0, 3, 1, 2)
    resized = F.interpolate(work, size=grid_size, mode="bicubic", align_corners=False, antialias=True)
    return resized.permute(0, 2, 3, 1).to(positions.dtype)
