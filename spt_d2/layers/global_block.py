"""The blocks of a plain ViT: attention among all tokens of an image, or among those selected."""

import torch.nn.functional as F
from torch import Tensor, nn

from spt_d2.layers.block import SelectPackBlock
from spt_d2.layers.chunked import ffn
from spt_d2.layers.drop_path import DropPath
from spt_d2.layers.linear import apply_linear
from spt_d2.layers.mlp import Mlp


class GlobalAttention(nn.Module):
    """
    Multi-head self-attention among all tokens of an image, its padding included (Dosovitskiy et al., 2021).

    Args:
        dim: C.
        num_heads: h; C must be a multiple.
        qkv_bias: whether q, k, v have a bias.
        attn_drop: dropout of the attention weights.
        proj_drop: dropout after the projection.
    """

    def __init__(self, dim: int, num_heads: int, qkv_bias: bool = True, attn_drop: float = 0.0, proj_drop: float = 0.0):
        super().__init__()
        if dim % num_heads:
            raise ValueError(f"GlobalAttention expects dim to be a multiple of num_heads. Got {dim} and {num_heads}.")
        self.num_heads, self.attn_drop = num_heads, attn_drop
        self.qkv = nn.Linear(dim, 3 * dim, bias=qkv_bias)
        self.proj = nn.Linear(dim, dim)
        self.proj_drop = nn.Dropout(proj_drop)

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, C) to (B, H, W, C)."""
        tokens = x.flatten(1, 2)
        q, k, v = apply_linear(self.qkv, tokens).unflatten(2, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        out = F.scaled_dot_product_attention(q, k, v, dropout_p=self.attn_drop if self.training else 0.0)
        return self.proj_drop(apply_linear(self.proj, out.transpose(1, 2).flatten(2))).view(x.shape)


class GlobalBlock(nn.Module):
    """
    Global attention and MLP, pre-norm: a block of a dense ViT.

    Args:
        dim, num_heads, qkv_bias, attn_drop: see :class:`GlobalAttention`.
        mlp_ratio: hidden channels of the MLP over C.
        drop: dropout of the MLP and after the projection.
        drop_path: rate of stochastic depth.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        mlp_ratio: float = 4.0,
        qkv_bias: bool = True,
        drop: float = 0.0,
        attn_drop: float = 0.0,
        drop_path: float = 0.0,
    ):
        super().__init__()
        self.norm1 = nn.LayerNorm(dim)
        self.attn = GlobalAttention(dim, num_heads, qkv_bias, attn_drop, drop)
        self.drop_path = DropPath(drop_path)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = Mlp(dim, int(dim * mlp_ratio), drop)

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, C) to (B, H, W, C)."""
        x = x + self.drop_path(self.attn(self.norm1(x)))
        return x + self.drop_path(ffn(x, self.norm2, self.mlp))


class GlobalSelectPackBlock(SelectPackBlock):
    """
    A Select and Pack block in place of a :class:`GlobalBlock`, whose parameters it has under the same names.

    It computes what :class:`SelectPackBlock` does; what it costs is compared with another dense block
    (:mod:`spt_d2.analysis.macs`).
    """
