"""
Blocks at inference on a CPU, a cache full of tokens at a time.

A block that runs over the whole map writes and reads every intermediate, of up to four times the channels, from main
memory, and most of its time goes there. Windows see nothing of each other, and the FFN treats each token by itself: so
a few windows can go through the whole block while they are in the cache. The function is the same, to rounding.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from spt_d2.layers.mlp import Mlp
from spt_d2.ops.short_attention import short_attention
from spt_d2.ops.window_plan import window_plan
from spt_d2.ops.windows import relative_position_index

if TYPE_CHECKING:
    from spt_d2.layers.block import SwinBlock
    from spt_d2.layers.window_attention import WindowAttention

# Elements of the widest intermediate of a chunk, the FFN's hidden channels: about 2.5 MB in float32.
_CHUNK_ELEMENTS = 600_000
# Below this many tokens matrix products lose more than the cache gives.
_CHUNK_TOKENS = 1024


def runs_in_chunks(module: nn.Module, x: Tensor) -> bool:
    """Whether a block may take the way of this file: on a CPU, with nothing to drop and no gradient asked for."""
    return x.is_cpu and not module.training and not torch.is_grad_enabled()


def chunk_tokens(hidden_dim: int) -> int:
    """Tokens of a chunk, for an FFN with so many hidden channels."""
    return max(_CHUNK_ELEMENTS // hidden_dim, _CHUNK_TOKENS)


def add_mlp(x: Tensor, norm: nn.LayerNorm, mlp: Mlp) -> Tensor:
    """``x + mlp(norm(x))`` of (..., C) tokens, chunk by chunk, written into ``x``."""
    for part in x.view(-1, x.shape[-1]).split(chunk_tokens(mlp.fc1.out_features)):
        part += mlp(norm(part))
    return x


def channels_first(x: Tensor, norm: nn.LayerNorm) -> Tensor:
    """``norm(x)`` of a (B, H, W, C) map as (B, C, H, W), contiguous; a few rows of tokens at a time."""
    batch, height, width, channels = x.shape
    out = x.new_empty(batch, channels, height, width)
    step = max(_CHUNK_TOKENS // width, 1)
    for row in range(0, height, step):
        out[:, :, row : row + step] = norm(x[:, row : row + step]).permute(0, 3, 1, 2)
    return out


def swin_block(block: "SwinBlock", x: Tensor) -> Tensor:
    """:meth:`SwinBlock.forward`, (B, H, W, C) to the same, a few windows at a time."""
    attn = block.attn
    area = attn.window_size**2
    plan = window_plan(*x.shape[:3], attn.window_size, attn.shift_size, x.device)
    tokens = x.reshape(-1, x.shape[-1])
    out = torch.empty_like(tokens)
    step = max(chunk_tokens(block.mlp.fc1.out_features) // area, 1)
    bias = window_bias(attn, x.dtype)
    repeated = bias.expand(min(step, max(len(plan.whole), 1)), -1, -1, -1).flatten(0, 1)
    for windows in _split(plan.whole, step):
        places = windows.flatten()
        part = tokens.index_select(0, places)
        attended = _attend(attn, block.norm1(part), repeated[: len(windows) * attn.num_heads])
        _finish(block, part, attended, places, out)
    masks = _split(plan.mask, step) if plan.mask is not None else [None] * len(plan.border)
    for windows, mask in zip(_split(plan.border, step), masks):
        _border_windows(block, tokens, windows, bias if mask is None else bias + mask.to(bias.dtype)[:, None], out)
    return out.view(x.shape)


def _split(windows: Tensor, step: int) -> Sequence[Tensor]:
    """Nothing where there is nothing, where :meth:`Tensor.split` gives one empty part."""
    return windows.split(step) if len(windows) else ()


def window_bias(attn: "WindowAttention", dtype: torch.dtype) -> Tensor:
    """(1, h, M^2, M^2) relative position bias."""
    index = relative_position_index(attn.window_size, attn.relative_position_bias_table.device)
    bias = attn.relative_position_bias_table[index.flatten()].view(*index.shape, -1)
    return bias.permute(2, 0, 1).unsqueeze(0).to(dtype)


def _border_windows(block: "SwinBlock", tokens: Tensor, windows: Tensor, bias: Tensor, out: Tensor) -> None:
    """Windows with padding, which is zero after the norm, or of several regions."""
    slots = windows.flatten()
    filled = (slots >= 0).nonzero().squeeze(1)
    places = slots[filled]
    part = tokens.index_select(0, places)
    normed = part.new_zeros(slots.shape[0], part.shape[1]).index_copy_(0, filled, block.norm1(part))
    bias = bias.expand(len(windows), -1, -1, -1).flatten(0, 1)
    _finish(block, part, _attend(block.attn, normed, bias).index_select(0, filled), places, out)


def _attend(attn: "WindowAttention", normed: Tensor, bias: Tensor) -> Tensor:
    """
    Attention within windows, out-projection included.

    Args:
        attn: its projections and heads.
        normed: (n * L, C), window after window.
        bias: (n * h, L, L).

    Returns:
        (n * L, C).
    """
    area, heads = bias.shape[-1], attn.num_heads
    windows = normed.shape[0] // area
    qkv = attn.qkv(normed).view(windows, area, 3, heads, -1).permute(2, 0, 3, 1, 4)
    q, k, v = qkv.contiguous().flatten(1, 2).unbind(0)
    out = short_attention(q, k, v, bias).view(windows, heads, area, -1)
    return attn.proj(out.transpose(1, 2).reshape(windows * area, -1))


def _finish(block: "SwinBlock", part: Tensor, attended: Tensor, places: Tensor, out: Tensor) -> None:
    """What follows attention, for the (t, C) tokens ``part`` that lie at ``places``."""
    part += attended
    part += block.mlp(block.norm2(part))
    out.index_copy_(0, places, part)
