"""
Deformable attention: keys and values are sampled where the queries lead them (Xia et al., "Vision Transformer with
Deformable Attention", CVPR 2022; Sec. 3.2).

Shape shorthand in this module:

    B: images    H, W: token grid    N = H * W    C: channels    g: groups    h: heads    d: head dim
    H_k, W_k: grid of keys    S = H_k * W_k samples

Positions are (y, x) pairs; -1 and 1 are the centres of the first and the last row or column of a map, whatever its
size, as :func:`torch.nn.functional.grid_sample` has it under ``align_corners``.
"""

import functools

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

# Query-key pairs, over images and heads, whose bias is held at a time: 128 MiB in float32.
MAX_PAIRS = 2**25


def reference_points(grid_size: tuple[int, int], device: torch.device, dtype: torch.dtype = torch.float32) -> Tensor:
    """
    Where keys are sampled before any offset: the centres of equal cells.

    Cell i of n lies at (2i + 1) / n - 1, as in the authors' code, whose weights rely on it; their paper lets the points
    span -1 to 1. On a map as fine as the grid they lie further in than its tokens, by half a token at the border.

    Returns:
        (H_k, W_k, 2), in (-1, 1).
    """
    axes = [(2 * torch.arange(n, device=device, dtype=dtype) + 1) / n - 1 for n in grid_size]
    return torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1)


def deformed_points(offsets: Tensor, offset_range: float) -> Tensor:
    """
    Reference points, moved.

    Args:
        offsets: (B, g, H_k, W_k, 2), unbounded.
        offset_range: the most that a point moves, in halves of a cell: tanh(offset) * offset_range / (H_k, W_k). Points
            of the outer cells may then leave the map by some of it. 0: offsets count as they are, and points are held
            within [-1, 1].

    Returns:
        (B, g, H_k, W_k, 2), float32 or wider: bfloat16 tells fewer than 256 places of a map apart.
    """
    offsets = offsets.to(torch.promote_types(offsets.dtype, torch.float32))
    size = (offsets.shape[2], offsets.shape[3])
    points = reference_points(size, offsets.device, offsets.dtype)
    if offset_range == 0:
        return (points + offsets).clamp(-1.0, 1.0)
    # Filled on the device: a tensor made of numbers would be copied to it, and waited for.
    reach = torch.cat([offsets.new_full((1,), offset_range / length) for length in size])
    return points + offsets.tanh() * reach


def sample_tokens(x: Tensor, positions: Tensor) -> Tensor:
    """
    Bilinear samples of a map; beyond its outer tokens it fades to zero within one token.

    Args:
        x: (B, H, W, C), C a multiple of g: each group of channels is sampled at positions of its own.
        positions: (B, g, H_k, W_k, 2).

    Returns:
        (B, S, C), of the dtype of ``x``.
    """
    batch, groups = positions.shape[:2]
    dtype = torch.promote_types(x.dtype, positions.dtype)
    maps = x.unflatten(3, (groups, -1)).permute(0, 3, 4, 1, 2).flatten(0, 1).to(dtype)
    grid = positions.flip(-1).flatten(0, 1).to(dtype)
    samples = F.grid_sample(maps, grid, mode="bilinear", padding_mode="zeros", align_corners=True)
    return samples.reshape(batch, x.shape[3], -1).transpose(1, 2).to(x.dtype)


def displacement_bias(table: Tensor, queries: Tensor, positions: Tensor) -> Tensor:
    """
    Position bias of every query and sample, read bilinearly from a table of displacements (Sec. 3.2).

    The table reaches from minus to plus one side of a map, of whatever size: it is as if stretched over larger maps
    than it was trained on. Displacements beyond it have no bias.

    Args:
        table: (h, rows, columns), h a multiple of g.
        queries: (n, 2) positions.
        positions: (B, g, H_k, W_k, 2).

    Returns:
        (B, h, n, S), of the wider dtype of the two. The grid that it is read by is larger by 2 g / h.
    """
    batch, groups = positions.shape[:2]
    dtype = torch.promote_types(table.dtype, positions.dtype)
    # Turned to (x, y) before they spread to all pairs.
    keys = positions.flip(-1).reshape(batch * groups, 1, -1, 2)
    grid = (queries.flip(-1)[None, :, None] - keys).to(dtype) / 2
    tables = table.to(dtype).unflatten(0, (groups, -1)).repeat(batch, 1, 1, 1)
    bias = F.grid_sample(tables, grid, mode="bilinear", padding_mode="zeros", align_corners=True)
    return bias.reshape(batch, table.shape[0], *bias.shape[2:])


def deformable_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    positions: Tensor,
    table: Tensor,
    grid_size: tuple[int, int],
    *,
    dropout: float = 0.0,
    max_pairs: int = MAX_PAIRS,
) -> Tensor:
    """
    Softmax attention of every token of a map to all samples, with the bias of their displacement.

    Costs N * S pairs: quadratic in the pixels of an image. Their bias is what needs memory: queries are taken in parts
    of at most ``max_pairs`` pairs, and where there are several, their activations are recomputed in the backward pass.

    Args:
        q: (B, h, N, d), in raster order of ``grid_size``.
        k, v: (B, h, S, d), in raster order of the positions' grid.
        positions: (B, g, H_k, W_k, 2), h a multiple of g.
        table: (h, rows, columns); see :func:`displacement_bias`.
        grid_size: (H, W).
        dropout: of the attention weights; pass 0 in evaluation.
        max_pairs: query-key pairs over all images and heads; at least one query is taken at a time.

    Returns:
        (B, h, N, d).

    Raises:
        ValueError: shapes that do not go together.
    """
    samples = positions.shape[2] * positions.shape[3]
    if q.shape[2] != grid_size[0] * grid_size[1] or k.shape[2] != samples or q.shape[1] % positions.shape[1]:
        raise ValueError(
            "deformable_attention expects a query for every token, a key for every position, and heads that groups "
            f"share.\n  q.shape        : {tuple(q.shape)}\n  k.shape        : {tuple(k.shape)}\n"
            f"  positions.shape: {tuple(positions.shape)}\n  grid_size      : {grid_size}"
        )

    def attend(part: Tensor, queries: Tensor, k: Tensor, v: Tensor, positions: Tensor, table: Tensor) -> Tensor:
        bias = displacement_bias(table, queries, positions).to(part.dtype)
        return F.scaled_dot_product_attention(part, k, v, attn_mask=bias, dropout_p=dropout)

    queries = reference_points(grid_size, positions.device, positions.dtype).flatten(0, 1)
    size = max(1, max_pairs // (q.shape[0] * q.shape[1] * samples))
    if size >= q.shape[2]:
        return attend(q, queries, k, v, positions, table)
    run = functools.partial(checkpoint, attend, use_reentrant=False) if torch.is_grad_enabled() else attend
    parts = zip(q.split(size, dim=2), queries.split(size))
    return torch.cat([run(part, points, k, v, positions, table) for part, points in parts], dim=2)
