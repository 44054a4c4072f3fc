"""Attention of many short sequences on a CPU, by batched matrix products."""

import torch.nn.functional as F
from torch import Tensor


def short_attention(q: Tensor, k: Tensor, v: Tensor, bias: Tensor, dropout: float = 0.0) -> Tensor:
    """
    ``softmax(q @ k.T / sqrt(d) + bias) @ v``.

    For sequences as short as a window's, where the fused kernel for CPUs takes longer than its parts one by one, and
    differentiates no bias. Writes all weights, n * L * L: for a cache full of sequences at a time.

    Args:
        q, k, v: (n, L, d), contiguous.
        bias: (n, L, L), may be -inf where a query does not see a key, but not in a whole row.
        dropout: of the attention weights; pass 0 in evaluation.

    Returns:
        (n, L, d).
    """
    # The scale goes into the product, which spares a pass over the queries.
    weights = bias.baddbmm(q, k.transpose(1, 2), alpha=q.shape[-1] ** -0.5).softmax(dim=-1)
    return F.dropout(weights, dropout) @ v
