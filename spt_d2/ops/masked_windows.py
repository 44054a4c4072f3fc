"""
Window attention in which every token asks and only some answer.

Shape shorthand in this module:

    B: images    H, W: token grid    C: channels    M: window size    h: heads
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from spt_d2.ops.windows import relative_position_index, shifted_window_mask, window_partition, window_unpartition


def masked_window_attention(
    qkv: Tensor,
    keep_mask: Tensor,
    table: Tensor,
    *,
    num_heads: int,
    window_size: int,
    shift_size: int = 0,
    dropout: float = 0.0,
) -> Tensor:
    """
    Softmax attention of every token to the kept tokens of its (shifted) window, with a relative position bias.

    A token of a window without kept ones attends to itself: it gets what it would get were it the only one kept, where
    a softmax over nothing would be NaN. Padding to whole windows is attended to by nobody. Restricted to kept tokens
    this is :func:`~spt_d2.ops.attention.packed_attention` over ``segment="window"``, at the cost of all tokens.

    Args:
        qkv: (B, H, W, 3C) queries, keys and values, each its heads one after the other.
        keep_mask: (B, H, W) bool.
        table: ((2M - 1)^2, h) relative position bias.
        num_heads: h.
        window_size: M, in tokens.
        shift_size: 0, or M // 2: window borders lie at shift_size, shift_size + M, ...
        dropout: of the attention weights; pass 0 in evaluation.

    Returns:
        (B, H, W, C) attended values, heads concatenated.
    """
    if keep_mask.shape != qkv.shape[:3] or qkv.shape[3] % (3 * num_heads):
        raise ValueError(
            "masked_window_attention expects (B, H, W, 3C) and a (B, H, W) mask, C a multiple of num_heads.\n"
            f"  qkv.shape      : {tuple(qkv.shape)}\n  keep_mask.shape: {tuple(keep_mask.shape)}\n"
            f"  num_heads      : {num_heads}"
        )
    batch, height, width = keep_mask.shape
    pad_h, pad_w = -height % window_size, -width % window_size
    qkv, kept = F.pad(qkv, (0, 0, 0, pad_w, 0, pad_h)), F.pad(keep_mask, (0, pad_w, 0, pad_h)).unsqueeze(-1)
    if shift_size:
        qkv, kept = (x.roll((-shift_size, -shift_size), dims=(1, 2)) for x in (qkv, kept))
    windows, padded = window_partition(qkv, window_size)
    n, tokens, _ = windows.shape
    q, k, v = windows.view(n, tokens, 3, num_heads, -1).permute(2, 0, 3, 1, 4)
    visible = window_partition(kept, window_size)[0].transpose(1, 2)
    if shift_size:
        # What the roll brought together stays apart.
        apart = shifted_window_mask(padded, window_size, shift_size, qkv.device, torch.float32)
        visible = (visible.unflatten(0, (batch, -1)) & (apart == 0)).flatten(0, 1)
    alone = torch.eye(tokens, dtype=torch.bool, device=qkv.device) & ~visible.any(dim=2, keepdim=True)
    index = relative_position_index(window_size, qkv.device)
    bias = table[index.flatten()].view(tokens, tokens, num_heads).permute(2, 0, 1).to(q.dtype)
    mask = bias.expand(n, -1, -1, -1).masked_fill(~(visible | alone).unsqueeze(1), -math.inf)
    out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropout)
    out = window_unpartition(out.transpose(1, 2).flatten(2), window_size, padded, padded)
    if shift_size:
        out = out.roll((shift_size, shift_size), dims=(1, 2))
    return out[:, :height, :width]
