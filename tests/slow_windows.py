"""Windows that SparseViT runs, found by loops over tokens: the truth for its ops, its layers and its backbone."""

import math
from collections import defaultdict
from fractions import Fraction

import torch
from torch import Tensor, nn

Place = tuple[int, int]  # row and column of a token, or of a window


def window_of(token: Place, size: Place, window_size: int, shift_size: int) -> Place:
    """The window that holds a token, on the map padded to whole windows and rolled by the shift."""
    padded = [-(-length // window_size) * window_size for length in size]
    row, column = ((place - shift_size) % length // window_size for place, length in zip(token, padded))
    return row, column


def windows_of_image(activations: Tensor, shown: Place, window_size: int, shift_size: int) -> list[Place]:
    """
    The windows that hold a token of the image, largest L2 norm first, ties row by row.

    Args:
        activations: (H, W), of one image.
        shown: rows and columns of tokens that show it; others count for nothing.
    """
    height, width = activations.shape
    squares: dict[Place, float] = defaultdict(float)
    for i in range(min(shown[0], height)):
        for j in range(min(shown[1], width)):
            squares[window_of((i, j), (height, width), window_size, shift_size)] += activations[i, j].item() ** 2
    return sorted(squares, key=lambda window: (-math.sqrt(squares[window]), window))


def number_kept(windows: int, ratio: float) -> int:
    """In exact arithmetic of the decimal number."""
    return max(1, math.floor(windows * (1 - Fraction(str(ratio)))))


def run_stage(
    stage: nn.Module, ratios: list[float], x: Tensor, shown: list[Place]
) -> tuple[Tensor, list[tuple[int, Tensor]]]:
    """
    A stage block by block: windows do not see each other, so a block's output is Swin's in the windows that are run and
    its input elsewhere.

    Args:
        stage: of blocks that run all windows when called with a map.
        ratios: of its blocks.
        x: (B, H, W, C).
        shown: tokens of each image.

    Returns:
        (B, H, W, C), and for every block of a ratio above 0 its index and (B, H, W) bool: tokens in windows it ran.
    """
    batch, height, width, _ = x.shape
    activations, lists, run = None, {}, []
    for i, (block, ratio) in enumerate(zip(stage.blocks, ratios)):
        out, shift = block(x), block.attn.shift_size
        if ratio == 0:
            x = out
            continue
        if activations is None:
            activations = x.detach().abs().mean(dim=-1)
        inside = torch.zeros(batch, height, width, dtype=torch.bool)
        for b in range(batch):
            if (b, shift) not in lists:
                lists[b, shift] = windows_of_image(activations[b], shown[b], block.attn.window_size, shift)
            kept = lists[b, shift][: number_kept(len(lists[b, shift]), ratio)]
            for row in range(height):
                for column in range(width):
                    window = window_of((row, column), (height, width), block.attn.window_size, shift)
                    inside[b, row, column] = window in kept
        x = torch.where(inside[..., None], out, x)
        run.append((i, inside))
    return x, run
