"""From pixels to tokens, and from a stage's tokens to half the resolution (Sec. 3.1)."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from spt_d2.layers.chunked import chunk_tokens, runs_in_chunks
from spt_d2.layers.linear import apply_linear


class PatchEmbed(nn.Module):
    """
    Non-overlapping convolution and LayerNorm: pixels to tokens at stride ``patch_size``.

    Args:
        patch_size: in pixels.
        in_channels: of the image.
        embed_dim: C, channels of a token.
        norm: whether a LayerNorm follows the convolution.
    """

    def __init__(self, patch_size: int = 4, in_channels: int = 3, embed_dim: int = 96, norm: bool = True):
        super().__init__()
        self.patch_size = patch_size
        self.proj = nn.Conv2d(in_channels, embed_dim, kernel_size=patch_size, stride=patch_size)
        self.norm = nn.LayerNorm(embed_dim) if norm else nn.Identity()

    def forward(self, image: Tensor) -> Tensor:
        """(B, in_channels, height, width) to (B, ceil(height / patch), ceil(width / patch), C)."""
        height, width = image.shape[-2:]
        pad_h, pad_w = -height % self.patch_size, -width % self.patch_size
        if pad_h or pad_w:
            image = F.pad(image, (0, pad_w, 0, pad_h))
        # The convolution then writes tokens as they are read, channels last, and nothing has to be turned over.
        image = image.contiguous(memory_format=torch.channels_last)
        return self.norm(self.proj(image).permute(0, 2, 3, 1))


class PatchMerging(nn.Module):
    """
    Concatenate 2x2 tokens and project 4C to 2C channels; odd maps are padded with zeros (Liu et al., 2021).

    Args:
        dim: C, channels in.
    """

    def __init__(self, dim: int):
        super().__init__()
        self.norm = nn.LayerNorm(4 * dim)
        self.reduction = nn.Linear(4 * dim, 2 * dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, C) to (B, ceil(H / 2), ceil(W / 2), 2C)."""
        if runs_in_chunks(x, self.norm, self.reduction):
            return self._row_by_row(x)
        return apply_linear(self.reduction, self.norm(self.cells(x)))

    def _row_by_row(self, x: Tensor) -> Tensor:
        """A few pairs of rows at a time, while they are in the cache."""
        batch, height, width, channels = x.shape
        out = x.new_empty(batch, -(-height // 2), -(-width // 2), 2 * channels)
        step = max(chunk_tokens(4 * channels) // out.shape[2], 1)
        for row in range(0, out.shape[1], step):
            cells = self.cells(x[:, 2 * row : 2 * (row + step)])
            out[:, row : row + step] = apply_linear(self.reduction, self.norm(cells))
        return out

    def cells(self, x: Tensor) -> Tensor:
        """(B, H, W, C) to (B, ceil(H / 2), ceil(W / 2), 4C)."""
        height, width = x.shape[1:3]
        if height % 2 or width % 2:
            x = F.pad(x, (0, 0, 0, width % 2, 0, height % 2))
        # Column by column within the 2x2 cell: the order of Swin's checkpoints.
        return torch.cat((x[:, 0::2, 0::2], x[:, 1::2, 0::2], x[:, 0::2, 1::2], x[:, 1::2, 1::2]), dim=-1)
