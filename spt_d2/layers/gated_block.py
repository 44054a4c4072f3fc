"""A Swin block that gated tokens pass by whole, attention and FFN (Liu et al., "SViT", WACV 2024)."""

from torch import Tensor, nn

from spt_d2.layers.chunked import ffn
from spt_d2.layers.drop_path import DropPath
from spt_d2.layers.linear import apply_linear
from spt_d2.layers.mlp import Mlp
from spt_d2.layers.select_pack_attention import SelectPackAttention, SelectPackOptions
from spt_d2.layers.two_logit_gate import TwoLogitGate
from spt_d2.ops.masked_windows import masked_window_attention
from spt_d2.ops.packing import PackedLayout, pack_layout


class GatedWindowAttention(SelectPackAttention):
    """
    Attention among the kept tokens of a (shifted) window, with Swin's relative position bias; packed, or masked.

    Called over packed tokens it is :class:`SelectPackAttention`. The out-projection is left to the block.

    Args:
        dim: C.
        num_heads: h; C must be a multiple.
        window_size: M, in tokens.
        shift_size: 0, or M // 2.
        qkv_bias: whether q, k, v have a bias.
        attn_drop: dropout of the attention weights.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        window_size: int = 7,
        shift_size: int = 0,
        qkv_bias: bool = True,
        attn_drop: float = 0.0,
    ):
        options = SelectPackOptions(window_size=window_size, order="window", segment="window", position="relative_bias")
        super().__init__(dim, num_heads, options, qkv_bias, attn_drop)
        self.shift_size = shift_size

    def layout(self, keep_mask: Tensor) -> PackedLayout:
        """How the tokens marked in (B, H, W) are packed, window after window; one device-to-host copy."""
        return pack_layout(
            keep_mask,
            container_size=self.window_size**2,
            window_size=self.window_size,
            shift_size=self.shift_size,
            order="window",
            segment="window",
        )

    def masked(self, x: Tensor, keep_mask: Tensor) -> Tensor:
        """(B, H, W, C) to the same: what each token gets from the kept ones, before the out-projection."""
        assert self.relative_position_bias_table is not None
        return masked_window_attention(
            apply_linear(self.qkv, x),
            keep_mask,
            self.relative_position_bias_table,
            num_heads=self.num_heads,
            window_size=self.window_size,
            shift_size=self.shift_size,
            dropout=self.attn_drop if self.training else 0.0,
        )


class GatedSwinBlock(nn.Module):
    """
    Window attention and MLP for kept tokens; the others leave as they came, and may be kept by the next block.

    Of its two forms, :meth:`forward` is that of training: all tokens are computed, so that a skipped one tells the gate
    what it missed. :meth:`packed` is that of inference: only kept tokens are. Given a decision they are one function,
    in their gradients too but for that of the decision. Over all tokens it is Swin's block where H and W are
    multiples of M; elsewhere Swin attends to the padding of its last windows, which here is never kept.

    Args: see :class:`spt_d2.layers.block.SwinBlock`.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        window_size: int = 7,
        shift_size: int = 0,
        mlp_ratio: float = 4.0,
        qkv_bias: bool = True,
        drop: float = 0.0,
        attn_drop: float = 0.0,
        drop_path: float = 0.0,
    ):
        super().__init__()
        self.gate = TwoLogitGate(dim)
        self.norm1 = nn.LayerNorm(dim)
        self.attn = GatedWindowAttention(dim, num_heads, window_size, shift_size, qkv_bias, attn_drop)
        self.proj_drop = nn.Dropout(drop)
        self.drop_path = DropPath(drop_path)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = Mlp(dim, int(dim * mlp_ratio), drop)

    def forward(self, x: Tensor, keep_mask: Tensor, policy: Tensor) -> Tensor:
        """
        Args:
            x: (B, H, W, C).
            keep_mask: (B, H, W) bool; other tokens are no keys.
            policy: (B, H, W), ``keep_mask`` as zeros and ones, through which the gate learns.

        Returns:
            (B, H, W, C): what the block makes of kept tokens, and ``x`` elsewhere, both exactly.
        """
        attended = self.proj_drop(apply_linear(self.attn.proj, self.attn.masked(self.norm1(x), keep_mask)))
        out = x + self.drop_path(attended)
        out = out + self.drop_path(ffn(out, self.norm2, self.mlp))
        factor = policy[..., None].to(x.dtype)
        return factor * out + (1.0 - factor) * x

    def packed(self, x: Tensor, layout: PackedLayout) -> Tensor:
        """
        Args:
            x: (B, H, W, C).
            layout: of the kept tokens, by ``self.attn.layout``.

        Returns:
            (B, H, W, C), as :meth:`forward` without what it drops in training.
        """
        flat = x.flatten(0, 2)
        tokens = flat.index_select(0, layout.keep_indices)
        tokens = tokens + apply_linear(self.attn.proj, self.attn(self.norm1(tokens), layout))
        tokens = tokens + ffn(tokens, self.norm2, self.mlp)
        return flat.index_copy(0, layout.keep_indices, tokens.to(x.dtype)).view(x.shape)
