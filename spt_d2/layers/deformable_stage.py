"""A stage of the Deformable Attention Transformer: its blocks, and the merging that follows them (DAT, Sec. 3.3)."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from spt_d2.layers.block import SwinBlock
from spt_d2.layers.deformable_attention import DeformableAttention, DeformableOptions
from spt_d2.layers.drop_path import DropPath
from spt_d2.layers.mlp import Mlp
from spt_d2.layers.patch import PatchMerging
from spt_d2.layers.stage import run_block


class DeformableBlock(nn.Module):
    """
    Deformable attention and MLP, pre-norm.

    Args:
        dim, num_heads, options, qkv_bias, attn_drop: see :class:`DeformableAttention`.
        mlp_ratio: hidden channels of the MLP over C.
        drop: dropout of the MLP and after the projection.
        drop_path: rate of stochastic depth.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        options: DeformableOptions,
        mlp_ratio: float = 4.0,
        qkv_bias: bool = True,
        drop: float = 0.0,
        attn_drop: float = 0.0,
        drop_path: float = 0.0,
    ):
        super().__init__()
        self.norm1 = nn.LayerNorm(dim)
        self.attn = DeformableAttention(dim, num_heads, options, qkv_bias, attn_drop, drop)
        self.drop_path = DropPath(drop_path)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = Mlp(dim, int(dim * mlp_ratio), drop)

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, C) to (B, H, W, C)."""
        x = x + self.drop_path(self.attn(self.norm1(x)))
        return x + self.drop_path(self.mlp(self.norm2(x)))


class ProjectedMerging(PatchMerging):
    """
    Merging of 2x2 tokens with the norm after the projection, over 2C channels, where Swin has it before, over 4C.

    Args:
        dim: C, channels in.
    """

    def __init__(self, dim: int):
        super().__init__(dim)
        self.norm = nn.LayerNorm(2 * dim)

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, C) to (B, ceil(H / 2), ceil(W / 2), 2C)."""
        return self.norm(self.reduction(self.cells(x)))


class DeformableStage(nn.Module):
    """
    Blocks that in turn attend within windows and look beyond them, by deformable attention or by shifted windows.

    Args:
        dim: C.
        depth: number of blocks.
        num_heads: h.
        window_size: M, in tokens.
        drop_path: rate of each block.
        downsample: whether a :class:`ProjectedMerging` to the next stage belongs to this one.
        options: of the deformable blocks; None for shifted windows. They are shifted by ceil(M / 2), as by the authors;
            Swin rounds down.
        use_checkpoint: recompute activations in the backward pass, block by block.
        **block: further arguments of :class:`SwinBlock`.
    """

    def __init__(
        self,
        dim: int,
        depth: int,
        num_heads: int,
        window_size: int,
        drop_path: Sequence[float],
        downsample: bool,
        options: DeformableOptions | None = None,
        use_checkpoint: bool = False,
        **block: Any,
    ):
        super().__init__()
        self.use_checkpoint = use_checkpoint
        # A window of one token has nothing to shift.
        shift = (window_size + 1) // 2 % window_size
        self.blocks = nn.ModuleList()
        for i in range(depth):
            arguments = {**block, "drop_path": drop_path[i]}
            if i % 2 and options is not None:
                self.blocks.append(DeformableBlock(dim, num_heads, options, **arguments))
            else:
                self.blocks.append(SwinBlock(dim, num_heads, window_size, shift * (i % 2), **arguments))
        self.downsample = ProjectedMerging(dim) if downsample else None

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, C) to (B, H, W, C), before the merging."""
        for block in self.blocks:
            x = run_block(block, self.use_checkpoint, x)
        return x
