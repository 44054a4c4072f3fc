"""The hard Gumbel-Softmax over two classes, keep and skip (Jang et al., 2016)."""

import torch
from torch import Tensor

from spt_d2.ops.selection import select_tokens

# Of two classes the more probable one: what evaluation keeps without noise, training keeps after it.
EVEN = 0.5


def hard_gumbel(score: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
    """
    Sample one decision per token, straight-through, at temperature 1.

    Args:
        score: (B, H, W) log-odds of keeping, the difference of the two classes' logits.
        valid: (B, H, W) bool; tokens that are not valid are never kept, and give no gradient.

    Returns:
        keep_mask (B, H, W) bool; and policy (B, H, W), ``keep_mask`` as exact zeros and ones, with the slope of the
        relaxed decision in its gradient: for tokens that are not kept too, unlike
        :func:`~spt_d2.ops.gating.straight_through`.
    """
    keep_mask, soft = select_tokens(score, valid, threshold=EVEN, noise="logistic")
    slope = torch.where(valid, soft - soft.detach(), 0.0)
    return keep_mask, keep_mask.to(soft.dtype) + slope
