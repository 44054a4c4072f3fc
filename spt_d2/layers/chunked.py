"""
Blocks on a CPU, a cache full of tokens at a time.

A block that runs over the whole map writes and reads every intermediate, of up to four times the channels, from main
memory, in pages that are mapped anew at each call; much of its time goes there. Windows see nothing of each other, and
the FFN treats each token by itself: so a few windows can go through the whole block while they are in the cache, and
back through it in the backward pass, for autograd runs the chunks one after the other too. The function is the same, to
rounding.
"""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from spt_d2.layers.linear import apply_linear
from spt_d2.layers.mlp import Mlp
from spt_d2.layers.observed import as_built, is_observed
from spt_d2.ops.packing import PackedLayout
from spt_d2.ops.shape_cache import is_traced
from spt_d2.ops.short_attention import short_attention
from spt_d2.ops.window_plan import WindowChunk, window_plan
from spt_d2.ops.windows import relative_position_index

if TYPE_CHECKING:
    from spt_d2.layers.block import SwinBlock
    from spt_d2.layers.select_pack_attention import SelectPackAttention
    from spt_d2.layers.window_attention import WindowAttention

# Elements of the widest intermediate of a chunk, the FFN's hidden channels: about 2.5 MB in float32.
_CHUNK_ELEMENTS = 600_000
# Below this many tokens matrix products lose more than the cache gives. In training each chunk also has a gradient of
# every weight to add, which fewer and larger chunks make up for.
_CHUNK_TOKENS = 1024
_CHUNK_TOKENS_TRAINING = 3136


def runs_in_chunks(x: Tensor, *parts: nn.Module) -> bool:
    """Whether parts of a module are at inference on a CPU, where they may run a few tokens at a time and in place."""
    return at_inference(x, *parts) and not is_observed(*parts)


def at_inference(x: Tensor, *parts: nn.Module) -> bool:
    """The same of parts that are known not to be observed."""
    if not x.is_cpu or torch.is_grad_enabled():
        return False
    return not any(module.training for part in parts for module in part.modules())


def chunk_tokens(hidden_dim: int) -> int:
    """Tokens of a chunk, for an FFN with so many hidden channels."""
    least = _CHUNK_TOKENS_TRAINING if torch.is_grad_enabled() else _CHUNK_TOKENS
    return max(_CHUNK_ELEMENTS // hidden_dim, least)


def add_mlp(x: Tensor, norm: nn.LayerNorm, mlp: Mlp) -> Tensor:
    """``x + mlp(norm(x))`` of (..., C) tokens at inference, chunk by chunk; written into ``x`` if it is contiguous."""
    x = x.contiguous()
    for part in x.view(-1, x.shape[-1]).split(chunk_tokens(mlp.hidden_dim)):
        part += mlp(norm(part))
    return x


def ffn(x: Tensor, norm: nn.LayerNorm, mlp: Mlp) -> Tensor:
    """``mlp(norm(x))`` of (..., C) tokens; on a CPU chunk by chunk, in training too, where nobody can tell."""
    # Who traces or compiles for any number of tokens is to see one product for all.
    if (
        not x.is_cpu
        or is_traced()
        or not as_built(norm, nn.LayerNorm)
        or not as_built(mlp, Mlp)
        or is_observed(norm, mlp)
    ):
        return mlp(norm(x))
    number = math.ceil(x.numel() / x.shape[-1] / chunk_tokens(mlp.hidden_dim))
    if number <= 1:
        return mlp(norm(x))
    # All of one size, for a small rest takes as long as a whole chunk.
    return torch.cat([mlp(norm(part)) for part in x.reshape(-1, x.shape[-1]).chunk(number)]).view(x.shape)


def add_attention(
    x: Tensor, normed: Tensor, layout: PackedLayout, factor: Tensor | None, attn: "SelectPackAttention"
) -> Tensor:
    """
    ``x`` with the packed attention of ``normed`` added to the layout's tokens, at inference, some containers at a time.

    Args:
        x, normed: (B, H, W, C).
        layout: of containers.
        factor: (T,) of the packed tokens, or None.
        attn: attention, with its out-projection.

    Returns:
        (B, H, W, C).
    """
    normed, out = normed.flatten(0, 2), x.flatten(0, 2).clone()
    # Queries, keys, values and what is attended. All chunks of one size, for a small rest takes as long as a whole one.
    number = round(layout.num_tokens / chunk_tokens(4 * x.shape[-1]))
    parts = layout.split(min(max(number, 1), layout.num_containers))
    factors = [None] * len(parts) if factor is None else factor.split([part.num_tokens for part in parts])
    for part, scale in zip(parts, factors):
        tokens = normed.index_select(0, part.keep_indices)
        if scale is not None:
            tokens = tokens * scale.to(tokens.dtype)[:, None]
        out.index_add_(0, part.keep_indices, apply_linear(attn.proj, attn(tokens, part)).to(out.dtype))
    return out.view(x.shape)


def channels_first(x: Tensor, norm: nn.LayerNorm) -> Tensor:
    """``norm(x)`` of a (B, H, W, C) map at inference as (B, C, H, W), contiguous; a few rows of tokens at a time."""
    batch, height, width, channels = x.shape
    out = x.new_empty(batch, channels, height, width)
    step = max(_CHUNK_TOKENS // width, 1)
    for row in range(0, height, step):
        out[:, :, row : row + step] = norm(x[:, row : row + step]).permute(0, 3, 1, 2)
    return out


def swin_block(block: "SwinBlock", x: Tensor, in_place: bool = False) -> Tensor:
    """:meth:`SwinBlock.whole_map`, (B, H, W, C) to the same, a few windows at a time; on request into ``x``."""
    attn = block.attn
    step = max(chunk_tokens(block.mlp.hidden_dim) // attn.window_size**2, 1)
    batch, height, width, _ = x.shape
    plan = window_plan(batch, height, width, attn.window_size, attn.shift_size, step, x.device)
    tokens, bias = x.reshape(-1, x.shape[-1]), window_bias(attn, x.dtype)
    # An image's branch is dropped whole, whichever chunks its windows are in.
    factors = [block.drop_path.sample(x.shape[0], x) for _ in range(2)]
    if at_inference(x, *block.children()):
        out = tokens if in_place else torch.empty_like(tokens)
        for chunk in plan.chunks:
            out.index_copy_(0, chunk.places, _run(block, tokens.index_select(0, chunk.places), chunk, bias))
        return out.view(x.shape)
    # One gather of all tokens: the gradient of a gather is a whole map, and one for each chunk would be many.
    parts = tokens.index_select(0, plan.order).split([len(chunk.places) for chunk in plan.chunks])
    size = x.shape[1] * x.shape[2]
    done = []
    for part, chunk in zip(parts, plan.chunks):
        scales = [None if factor is None else factor[chunk.places // size, None] for factor in factors]
        done.append(_run(block, part, chunk, bias, scales))
    return torch.cat(done).index_select(0, plan.inverse).view(x.shape)


def window_bias(attn: "WindowAttention", dtype: torch.dtype) -> Tensor:
    """(1, h, M^2, M^2) relative position bias."""
    index = relative_position_index(attn.window_size, attn.relative_position_bias_table.device)
    bias = attn.relative_position_bias_table[index.flatten()].view(*index.shape, -1)
    return bias.permute(2, 0, 1).unsqueeze(0).to(dtype)


def _run(
    block: "SwinBlock",
    part: Tensor,
    chunk: WindowChunk,
    bias: Tensor,
    scales: Sequence[Tensor | None] = (None, None),
) -> Tensor:
    """
    A chunk through the whole block.

    Args:
        part: (t, C) tokens of the chunk; written into where no gradient is asked for.
        bias: of :func:`window_bias`.
        scales: (t, 1) factors of the two branches, or None.

    Returns:
        (t, C).
    """
    attn = block.attn
    normed = block.norm1(part)
    if chunk.mask is not None:
        bias = bias + chunk.mask.to(bias.dtype)[:, None]
    if chunk.filled is not None:
        # Padding is zero after the norm.
        slots = normed.new_zeros(chunk.windows * attn.window_size**2, normed.shape[1])
        attended = _attend(attn, slots.index_copy(0, chunk.filled, normed), bias).index_select(0, chunk.filled)
    else:
        attended = _attend(attn, normed, bias)
    part = _add(part, attended, scales[0])
    return _add(part, block.mlp(block.norm2(part)), scales[1])


def _attend(attn: "WindowAttention", normed: Tensor, bias: Tensor) -> Tensor:
    """
    Attention within windows, out-projection included.

    Args:
        attn: its projections and heads.
        normed: (n * L, C), window after window.
        bias: (n or 1, h, L, L).

    Returns:
        (n * L, C).
    """
    area, heads = bias.shape[-1], attn.num_heads
    windows = normed.shape[0] // area
    qkv = apply_linear(attn.qkv, normed).view(windows, area, 3, heads, -1).permute(2, 0, 3, 1, 4)
    q, k, v = qkv.contiguous().flatten(1, 2).unbind(0)
    dropout = attn.attn_drop if attn.training else 0.0
    out = short_attention(q, k, v, bias.expand(windows, -1, -1, -1).flatten(0, 1), dropout)
    out = out.view(windows, heads, area, -1).transpose(1, 2).reshape(windows * area, -1)
    return attn.proj_drop(apply_linear(attn.proj, out))


def _add(part: Tensor, branch: Tensor, scale: Tensor | None) -> Tensor:
    """A residual sum; in place where nobody needs the first part any more."""
    branch = branch if scale is None else branch * scale
    return part + branch if torch.is_grad_enabled() else part.add_(branch)
