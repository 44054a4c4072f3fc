"""A stage of the Deformable Attention Transformer: its blocks, and the merging that follows them (DAT, Sec. 3.3)."""

from typing import Any

from torch import Tensor, nn

from spt_d2.layers.block import SwinBlock
from spt_d2.layers.chunked import ffn
from spt_d2.layers.deformable_attention import DeformableAttention, DeformableOptions
from spt_d2.layers.drop_path import DropPath
from spt_d2.layers.linear import apply_linear
from spt_d2.layers.mlp import Mlp
from spt_d2.layers.patch import PatchMerging
from spt_d2.layers.stage import Stage, run_block


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
        return x + self.drop_path(ffn(x, self.norm2, self.mlp))


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
        return self.norm(apply_linear(self.reduction, self.cells(x)))


class DeformableStage(Stage):
    """
    Blocks that in turn attend within windows and look beyond them, by deformable attention or by shifted windows.

    Args:
        options: of the deformable blocks; None for shifted windows. They are shifted by ceil(M / 2), as by the authors;
            Swin rounds down.
        **arguments: of :class:`Stage`, and further ones of :class:`SwinBlock`. The merging is a
            :class:`ProjectedMerging`.
    """

    def __init__(self, *, options: DeformableOptions | None = None, **arguments: Any):
        self.options = options
        super().__init__(**arguments)

    def _build_block(self, number: int, **arguments: Any) -> nn.Module:
        window_size, _ = arguments.pop("window_size"), arguments.pop("shift_size")
        if number % 2 and self.options is not None:
            return DeformableBlock(options=self.options, **arguments)
        # A window of one token has nothing to shift.
        shift_size = (window_size + 1) // 2 % window_size * (number % 2)
        return SwinBlock(window_size=window_size, shift_size=shift_size, **arguments)

    def _build_merging(self, dim: int) -> ProjectedMerging:
        return ProjectedMerging(dim)

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, C) to (B, H, W, C), before the merging."""
        for block in self.blocks:
            x = run_block(block, self.use_checkpoint, x)
        return x
