"""
2-D rotary position embedding on packed queries and keys.

Shape shorthand in this module:

    T: packed tokens    h: heads    d: head dim
"""

import torch
from torch import Tensor


def rotary_angles(coordinates: Tensor, head_dim: int, base: float = 100.0) -> Tensor:
    """
    Rotation angles of tokens on a grid: half of the head's pairs turn with the row, half with the column.

    Args:
        coordinates: (T, 2) long, (row, column) in tokens.
        head_dim: d, a multiple of 4.
        base: period of the slowest pair, over 2 pi, in tokens. 100 covers the grids of a detector, where language
            models' 10,000 would leave most pairs nearly still.

    Returns:
        (T, d / 2) radians, float32.
    """
    if head_dim % 4:
        raise ValueError(f"rotary_angles(head_dim=) expects a multiple of 4. Got {head_dim}.")
    quarter = head_dim // 4
    frequencies = base ** (-torch.arange(quarter, dtype=torch.float32, device=coordinates.device) / quarter)
    return (coordinates.float()[:, :, None] * frequencies).flatten(1)


def apply_rotary(x: Tensor, angles: Tensor) -> Tensor:
    """
    Turn each pair of channels (i, i + d/2) by its angle.

    Args:
        x: (T, h, d).
        angles: (T, d / 2) radians.

    Returns:
        (T, h, d), dtype of ``x``.
    """
    cos, sin = angles.cos().to(x.dtype)[:, None, :], angles.sin().to(x.dtype)[:, None, :]
    first, second = x.chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)
