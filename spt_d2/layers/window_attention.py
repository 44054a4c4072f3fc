"""Swin's attention within (shifted) windows (Liu et al., 2021)."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from spt_d2.layers.linear import apply_linear
from spt_d2.ops.windows import relative_position_index, shifted_window_mask, window_partition, window_unpartition


class WindowAttention(nn.Module):
    """
    Multi-head self-attention in windows, with a relative position bias.

    Maps are padded on the right and at the bottom to whole windows, before the shift; padding attends and is attended
    to, as in Swin's detection code and Detectron2's port of it.

    Args:
        dim: C.
        num_heads: h; C must be a multiple.
        window_size: M, in tokens.
        shift_size: 0, or M // 2.
        qkv_bias: whether q, k, v have a bias.
        attn_drop: dropout of the attention weights.
        proj_drop: dropout after the projection.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        window_size: int = 7,
        shift_size: int = 0,
        qkv_bias: bool = True,
        attn_drop: float = 0.0,
        proj_drop: float = 0.0,
    ):
        super().__init__()
        if dim % num_heads:
            raise ValueError(f"WindowAttention expects dim to be a multiple of num_heads. Got {dim} and {num_heads}.")
        self.num_heads, self.window_size, self.shift_size = num_heads, window_size, shift_size
        self.attn_drop = attn_drop
        self.relative_position_bias_table = nn.Parameter(torch.zeros((2 * window_size - 1) ** 2, num_heads))
        nn.init.trunc_normal_(self.relative_position_bias_table, std=0.02)
        self.qkv = nn.Linear(dim, 3 * dim, bias=qkv_bias)
        self.proj = nn.Linear(dim, dim)
        self.proj_drop = nn.Dropout(proj_drop)

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, C) to (B, H, W, C)."""
        size = x.shape[1:3]
        pad_h, pad_w = -size[0] % self.window_size, -size[1] % self.window_size
        x = F.pad(x, (0, 0, 0, pad_w, 0, pad_h))
        if self.shift_size:
            x = x.roll((-self.shift_size, -self.shift_size), dims=(1, 2))
        windows, padded = window_partition(x, self.window_size)
        windows = self._attend(windows, padded)
        x = window_unpartition(windows, self.window_size, padded, padded)
        if self.shift_size:
            x = x.roll((self.shift_size, self.shift_size), dims=(1, 2))
        return x[:, : size[0], : size[1]]

    def _attend(self, windows: Tensor, padded: tuple[int, int]) -> Tensor:
        n, tokens, dim = windows.shape
        q, k, v = apply_linear(self.qkv, windows).view(n, tokens, 3, self.num_heads, -1).permute(2, 0, 3, 1, 4)
        index = relative_position_index(self.window_size, windows.device)
        bias = self.relative_position_bias_table[index.flatten()].view(tokens, tokens, -1).permute(2, 0, 1).to(q.dtype)
        if self.shift_size:
            mask = shifted_window_mask(padded, self.window_size, self.shift_size, windows.device, q.dtype)
            bias = bias + mask[:, None]
        else:
            bias = bias[None]
        out = self._softmax_attention(q, k, v, bias)
        return self.proj_drop(apply_linear(self.proj, out.transpose(1, 2).reshape(n, tokens, dim)))

    def _softmax_attention(self, q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
        """(B * windows, h, M^2, d) queries, keys, values and (windows or 1, h, M^2, M^2) bias to the values' shape."""
        dropout = self.attn_drop if self.training else 0.0
        repeats = q.shape[0] // bias.shape[0]
        bias = bias.expand(repeats, -1, -1, -1) if bias.shape[0] == 1 else bias.repeat(repeats, 1, 1, 1)
        return F.scaled_dot_product_attention(q, k, v, attn_mask=bias, dropout_p=dropout)
