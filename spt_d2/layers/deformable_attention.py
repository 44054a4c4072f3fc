"""Attention to sampled keys and values, at positions that a small network reads off the queries (DAT, Sec. 3.2)."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from spt_d2.layers.linear import apply_linear
from spt_d2.ops.deformable import deformable_attention, deformed_points, sample_tokens
from spt_d2.ops.linear import linear


@dataclass(frozen=True)
class DeformableOptions:
    """
    How the blocks of a stage sample.

    Attributes:
        groups: of channels, and with them of heads, each with positions of its own.
        kernel_size: of the offset network's convolution, in tokens; odd.
        stride: r, in tokens: a map has about N / r^2 samples.
        offset_range: see :func:`spt_d2.ops.deformable.deformed_points`.
        table_size: side in tokens of the map that the table of displacements has a row for each of.

    Raises:
        ValueError: a value out of range.
    """

    groups: int = 1
    kernel_size: int = 5
    stride: int = 1
    offset_range: float = 2.0
    table_size: int = 14

    def __post_init__(self) -> None:
        for name in ("groups", "kernel_size", "stride", "table_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"DeformableOptions({name}=) expects at least 1. Got {getattr(self, name)}.")
        if self.kernel_size % 2 == 0:
            raise ValueError(f"DeformableOptions(kernel_size=) expects an odd number. Got {self.kernel_size}.")
        if self.offset_range < 0:
            raise ValueError(
                f"DeformableOptions(offset_range=) expects a range above 0, or 0 for none. Got {self.offset_range}."
            )


class OffsetNetwork(nn.Module):
    """
    Offsets from the queries of one group: a depthwise convolution with a stride, LayerNorm, GELU, and two numbers.

    Args:
        dim: channels of a group.
        kernel_size: in tokens; odd.
        stride: in tokens.
    """

    def __init__(self, dim: int, kernel_size: int, stride: int):
        super().__init__()
        self.depthwise = nn.Conv2d(dim, dim, kernel_size, stride, padding=kernel_size // 2, groups=dim)
        self.norm = nn.LayerNorm(dim)
        self.act = nn.GELU()
        # Without a bias: it would move all points alike.
        self.proj = nn.Linear(dim, 2, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, dim, H, W) to (B, ceil(H / stride), ceil(W / stride), 2) offsets (y, x), unbounded."""
        return self.proj(self.act(self.norm(self.depthwise(x).permute(0, 2, 3, 1))))


class DeformableAttention(nn.Module):
    """
    Every token attends to samples of the whole map, at positions that depend on the map.

    All queries share a group's samples, so that this is dense attention to N / r^2 keys and its cost quadratic in the
    pixels of an image. As in Swin, ``qkv`` is one layer: queries are made of tokens, keys and values of samples.
    An image's padding is part of its map: sampled and attended to, as in the authors' detectors.

    Args:
        dim: C.
        num_heads: h; C must be a multiple, and h one of the groups.
        options: see :class:`DeformableOptions`.
        qkv_bias: whether q, k, v have a bias.
        attn_drop: dropout of the attention weights.
        proj_drop: dropout after the projection.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        options: DeformableOptions,
        qkv_bias: bool = True,
        attn_drop: float = 0.0,
        proj_drop: float = 0.0,
    ):
        super().__init__()
        if dim % num_heads or num_heads % options.groups:
            raise ValueError(
                "DeformableAttention expects dim to be a multiple of num_heads, and num_heads one of the groups. "
                f"Got {dim}, {num_heads} and {options.groups}."
            )
        self.num_heads, self.options, self.attn_drop = num_heads, options, attn_drop
        self.offset = OffsetNetwork(dim // options.groups, options.kernel_size, options.stride)
        side = 2 * options.table_size - 1
        self.relative_position_bias_table = nn.Parameter(torch.zeros(num_heads, side, side))
        nn.init.trunc_normal_(self.relative_position_bias_table, std=0.02)
        self.qkv = nn.Linear(dim, 3 * dim, bias=qkv_bias)
        self.proj = nn.Linear(dim, dim)
        self.proj_drop = nn.Dropout(proj_drop)

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, C) to (B, H, W, C)."""
        dim, weight, bias = x.shape[3], self.qkv.weight, self.qkv.bias
        q = linear(x, weight[:dim], None if bias is None else bias[:dim])
        positions = self.positions(q)
        kv = linear(sample_tokens(x, positions), weight[dim:], None if bias is None else bias[dim:])
        k, v = kv.unflatten(2, (2, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        out = deformable_attention(
            q.flatten(1, 2).unflatten(2, (self.num_heads, -1)).transpose(1, 2),
            k,
            v,
            positions,
            self.relative_position_bias_table,
            (x.shape[1], x.shape[2]),
            dropout=self.attn_drop if self.training else 0.0,
        )
        return self.proj_drop(apply_linear(self.proj, out.transpose(1, 2).reshape(x.shape)))

    def positions(self, q: Tensor) -> Tensor:
        """(B, H, W, C) queries to (B, groups, H_k, W_k, 2) positions (y, x); -1 and 1 are a map's outer tokens."""
        groups = self.options.groups
        maps = q.unflatten(3, (groups, -1)).permute(0, 3, 4, 1, 2)
        offsets = self.offset(maps.flatten(0, 1)).unflatten(0, (q.shape[0], groups))
        return deformed_points(offsets, self.options.offset_range)
