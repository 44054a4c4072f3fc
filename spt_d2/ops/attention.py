"""
Attention over packed tokens: one function, several kernels. The only file that imports xformers.

Shape shorthand in this module:

    T: packed tokens    h: heads    d: head dim    R: containers    L: container size    S: segments
"""

import functools
import logging
import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from spt_d2.ops.packing import PackedLayout
from spt_d2.ops.short_attention import short_attention
from spt_d2.ops.windows import relative_position_rows

BACKENDS = ("auto", "xformers", "sdpa")

# The memory-efficient kernels read a bias in rows aligned to this many elements.
_BIAS_ALIGNMENT = 8

# Slots of a container up to which batched products beat the fused kernel on a CPU.
_SHORT = 64

_HALF = (torch.bfloat16, torch.float16)

logger = logging.getLogger(__name__)


@functools.lru_cache(maxsize=1)
def _fmha() -> Any:
    """xformers' memory-efficient attention, or None where it is not installed or its import fails."""
    try:
        from xformers.ops import fmha
    except Exception as error:  # a broken binary raises OSError or RuntimeError, not only ImportError
        logger.info("xformers is not usable (%s): packed attention runs on scaled_dot_product_attention.", error)
        return None
    return fmha


def xformers_available() -> bool:
    """Whether xformers imports; says nothing about which inputs its kernels take."""
    return _fmha() is not None


def block_diagonal_mask(layout: PackedLayout, device: torch.device) -> Any:
    """
    The xformers ``BlockDiagonalMask`` of a layout: its blocks are the layout's segments.

    Raises:
        ImportError: xformers is not usable.
        ValueError: the segments do not cover the packed tokens (the kernel would not notice).
    """
    fmha = _fmha()
    if fmha is None:
        raise ImportError("block_diagonal_mask needs xformers.\nHINT: pip install 'spt-d2[xformers]'")
    if sum(layout.seqlens) != layout.num_tokens:
        raise ValueError(
            "block_diagonal_mask(layout=) expects segments that cover the packed tokens.\n"
            f"  sum(seqlens): {sum(layout.seqlens)}\n  tokens      : {layout.num_tokens}"
        )
    # Without a device it would choose CUDA wherever there is one.
    return fmha.attn_bias.BlockDiagonalMask.from_seqlens(list(layout.seqlens), device=device)


def relative_bias(layout: PackedLayout, table: Tensor, window_size: int) -> Tensor:
    """
    Relative position bias between the slots of each container, from the tokens' true coordinates.

    Offsets beyond Swin's table are clamped to its border, so that a pretrained table serves containers too.

    Args:
        table: ((2M - 1)^2, h).
        window_size: M.

    Returns:
        (R, h, L, L), of the table's dtype.
    """
    coords = layout.fill_containers(layout.coordinates)
    rows = relative_position_rows(coords[:, :, None] - coords[:, None, :], window_size)
    return table[rows.flatten()].view(*rows.shape, -1).permute(0, 3, 1, 2)


def packed_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    layout: PackedLayout,
    *,
    bias_table: Tensor | None = None,
    window_size: int = 7,
    backend: str = "auto",
    dropout: float = 0.0,
) -> Tensor:
    """
    Softmax attention in which every packed token attends to the tokens of its segment (Sec. 3.2, Fig. 3b).

    Equivalent, slowly: ``softmax(q @ k.T / sqrt(d) + bias, masked to equal segment_ids) @ v`` per head.

    Args:
        q, k, v: (T, h, d), in the layout's packed order.
        layout: of :func:`spt_d2.ops.packing.pack_layout`.
        bias_table: ((2M - 1)^2, h) relative position bias table, or None. With it, the rectangular form is used on
            every device: the block-diagonal mask admits no bias. Whole images (``segment="image"``) take none.
        window_size: M of the table.
        backend: ``auto`` (xformers' block-diagonal kernel on CUDA where it takes the input, else ``sdpa``),
            ``xformers``, or ``sdpa``: the rectangular form through ``scaled_dot_product_attention``, on a CPU at
            inference and in half precision through batched products (:func:`container_attention`); segment by segment
            where segments are whole images.
        dropout: of the attention weights; pass 0 in evaluation.

    Returns:
        (T, h, d), the dtype of ``v``.

    Raises:
        ValueError: shapes that differ or do not fit the layout; unknown backend; a bias over whole images;
            ``backend="xformers"`` for an input its kernels do not take, with their reasons.
        ImportError: ``backend="xformers"`` and xformers is not usable.
    """
    _check_shapes(q, k, v, layout)
    if backend not in BACKENDS:
        raise ValueError(f"packed_attention(backend=) expects one of {BACKENDS}. Got {backend!r}.")
    if layout.is_ragged and bias_table is not None:
        raise ValueError(
            "packed_attention(bias_table=) expects containers of one length. Got a layout of segment='image'.\n"
            "HINT: position 'rope' or 'conv' goes with whole images."
        )
    if layout.num_tokens == 0:
        # No kernel takes an empty batch alike; the sum keeps q, k, v and the table in the graph.
        empty = q + k + v
        return empty if bias_table is None else empty + 0.0 * bias_table.sum()
    if uses_xformers(q, bias_table is not None, backend):
        if bias_table is None:
            return _block_diagonal(q, k, v, layout, dropout)
        return _rectangular_xformers(q, k, v, layout, relative_bias(layout, bias_table, window_size), dropout)
    if layout.is_ragged:
        return _segmentwise_sdpa(q, k, v, layout, dropout)
    return _rectangular_sdpa(q, k, v, layout, bias_table, window_size, dropout)


def _check_shapes(q: Tensor, k: Tensor, v: Tensor, layout: PackedLayout) -> None:
    if q.dim() != 3 or q.shape != k.shape or q.shape != v.shape or q.shape[0] != layout.num_tokens:
        raise ValueError(
            "packed_attention expects q, k, v of one shape (T, h, d), T the tokens of the layout.\n"
            f"  q.shape: {tuple(q.shape)}\n  k.shape: {tuple(k.shape)}\n  v.shape: {tuple(v.shape)}\n"
            f"  layout : {layout.num_tokens} tokens"
        )


def uses_xformers(q: Tensor, has_bias: bool, backend: str) -> bool:
    """Whether :func:`packed_attention` runs on xformers' kernels, for queries (T, h, d)."""
    if backend == "sdpa":
        _log_choice("sdpa", str(q.device.type), "as asked for")
        return False
    if backend == "auto" and q.device.type != "cuda":
        _log_choice("sdpa", str(q.device.type), "xformers' kernels need CUDA")
        return False
    reasons = _refusals(q.device, q.dtype, q.shape[-1], has_bias)
    if backend == "xformers" and reasons:
        if _fmha() is None:
            raise ImportError("ATTENTION_BACKEND 'xformers' needs xformers.\nHINT: pip install 'spt-d2[xformers]'")
        raise ValueError(
            "packed_attention(backend='xformers') expects an input that its kernels take.\n"
            f"  device: {q.device}\n  dtype : {q.dtype}\n  head dim: {q.shape[-1]}\n"
            + "".join(f"  refused: {reason}\n" for reason in reasons)
            + "HINT: ATTENTION_BACKEND 'auto' falls back to scaled_dot_product_attention."
        )
    _log_choice(
        "sdpa" if reasons else "xformers", str(q.device.type), "; ".join(reasons) or "its kernels take the input"
    )
    return not reasons


@functools.lru_cache(maxsize=64)
def _refusals(device: torch.device, dtype: torch.dtype, head_dim: int, has_bias: bool) -> tuple[str, ...]:
    """Why xformers would not take such an input; empty where it does. Asked once per kind of input."""
    fmha = _fmha()
    if fmha is None:
        return ("xformers is not usable",)
    if device.type != "cuda":
        return ("xformers' kernels need CUDA",)
    return _tried(fmha, device, dtype, head_dim, has_bias)


def _tried(fmha: Any, device: torch.device, dtype: torch.dtype, head_dim: int, has_bias: bool) -> tuple[str, ...]:
    """Why xformers' kernels, called with such an input, fail; empty where they do not."""
    # Forward and backward, for some kernels exist in one direction only; whoever asks first may be without gradients.
    # What autograd saves here is kept from the caller's hooks: torch's checkpointing counts on its two passes saving
    # the same, and only the first one asks.
    own = torch.autograd.graph.saved_tensors_hooks(lambda t: t, lambda t: t)
    with torch.inference_mode(False), torch.enable_grad(), own:
        probe = torch.zeros(1, 2 * _BIAS_ALIGNMENT, 1, head_dim, dtype=dtype, device=device, requires_grad=True)
        if has_bias:
            bias = torch.zeros(1, 1, probe.shape[1], probe.shape[1], dtype=dtype, device=device, requires_grad=True)
        else:
            bias = fmha.attn_bias.BlockDiagonalMask.from_seqlens([probe.shape[1]], device=device)
        try:
            fmha.memory_efficient_attention(probe, probe, probe, attn_bias=bias).sum().backward()
        except torch.cuda.OutOfMemoryError:
            # Says nothing of the kernels, and is not to be remembered.
            raise
        except (NotImplementedError, RuntimeError, ValueError) as error:
            return tuple(line.strip() for line in str(error).splitlines() if line.strip())[:6]
    return ()


@functools.lru_cache(maxsize=32)
def _log_choice(choice: str, device_type: str, reason: str) -> None:
    """Log each distinct choice once in the life of the process."""
    logger.info("Packed attention on %s runs on %s: %s.", device_type, choice, reason)


def _block_diagonal(q: Tensor, k: Tensor, v: Tensor, layout: PackedLayout, dropout: float) -> Tensor:
    """xformers' kernel over the packed sequence: a batch of one, (1, T, h, d)."""
    mask = block_diagonal_mask(layout, q.device)
    q, k, v = (t.unsqueeze(0).contiguous() for t in (q, k, v))
    return _fmha().memory_efficient_attention(q, k, v, attn_bias=mask, p=dropout).squeeze(0)


def _rectangular_xformers(
    q: Tensor, k: Tensor, v: Tensor, layout: PackedLayout, bias: Tensor, dropout: float
) -> Tensor:
    """xformers' kernel over containers with a tensor bias, in rows allocated to the alignment it asks for."""
    size = layout.container_size
    aligned = -(-size // _BIAS_ALIGNMENT) * _BIAS_ALIGNMENT
    bias = F.pad(bias.to(q.dtype).masked_fill(~layout.container_mask, -math.inf), (0, aligned - size))
    containers = (layout.fill_containers(t) for t in (q, k, v))
    out = _fmha().memory_efficient_attention(*containers, attn_bias=bias[..., :size], p=dropout)
    return layout.empty_containers(out)


def _rectangular_sdpa(
    q: Tensor, k: Tensor, v: Tensor, layout: PackedLayout, table: Tensor | None, window_size: int, dropout: float
) -> Tensor:
    """:func:`container_attention` over containers (R, h, L, d): any device, any float dtype."""
    q, k, v = (in_containers(t, layout) for t in (q, k, v))
    mask = layout.container_mask
    if table is not None:
        bias = relative_bias(layout, table, window_size).to(q.dtype)
        mask = bias.masked_fill(~mask, -math.inf)
    return layout.empty_containers(container_attention(q, k, v, mask, dropout).transpose(1, 2))


def in_containers(t: Tensor, layout: PackedLayout) -> Tensor:
    """(T, h, d) packed tokens to (R, h, L, d) containers; what is in empty slots nobody is to read."""
    if torch.is_grad_enabled():
        return layout.fill_containers(t).transpose(1, 2)
    # A gather writes once what zeros and a scatter write twice. Its gradient would be a scatter of sums.
    return t.index_select(0, layout.slot_tokens.flatten()).unflatten(0, layout.slot_tokens.shape).transpose(1, 2)


def container_attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor, dropout: float = 0.0) -> Tensor:
    """
    Attention within containers, by whatever is fastest for their length on their device.

    Args:
        q, k, v: (R, h, L, d).
        mask: (R, 1 or h, L, L), bool or additive.
        dropout: of the attention weights.

    Returns:
        (R, h, L, d).
    """
    # In training products pay off in half precision only, whose gradients take the fused kernel ten times as long.
    fused = torch.is_grad_enabled() and q.dtype not in _HALF
    if not q.is_cpu or fused or q.shape[2] > _SHORT:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropout)
    if mask.dtype == torch.bool:
        mask = torch.zeros(mask.shape, dtype=q.dtype).masked_fill_(~mask, -math.inf)
    bias = mask.expand(-1, q.shape[1], -1, -1).flatten(0, 1)
    return short_attention(q.flatten(0, 1), k.flatten(0, 1), v.flatten(0, 1), bias, dropout).view(q.shape)


def _segmentwise_sdpa(q: Tensor, k: Tensor, v: Tensor, layout: PackedLayout, dropout: float) -> Tensor:
    """
    ``scaled_dot_product_attention`` over one segment after the other, (1, h, n, d): for the few, long ones of images.

    Containers padded to the longest image would cost the batch's largest n^2 for every image, and a mask of that size,
    which turns the fused kernels away. A call for each image computes nothing that is not read.
    """
    parts = (t.transpose(0, 1).unsqueeze(0).split(layout.seqlens, dim=2) for t in (q, k, v))
    outs = [F.scaled_dot_product_attention(a, b, c, dropout_p=dropout) for a, b, c in zip(*parts)]
    return torch.cat(outs, dim=2).squeeze(0).transpose(0, 1)
