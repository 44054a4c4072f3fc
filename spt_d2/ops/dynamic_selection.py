"""
What DynamicSwin decides (Rao et al., 2023), and the loss that holds its decisions to a ratio.

Shape shorthand in this module:

    B: images    H, W: token grid
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from spt_d2.ops.selection import BlockSelection


@dataclass(frozen=True)
class DynamicSelection(BlockSelection):
    """
    The decision that a block of DynamicSwin follows.

    Attributes:
        policy: (B, H, W) ``keep_mask`` as numbers; in training with the slope of the relaxed decision.
        target: share of valid tokens to keep, in (0, 1].
        leads: whether the decision was taken right before this block; the blocks after it follow the same one.
        distillation: squared distance of the backbone's last map from a teacher's, in the last selection of a pass that
            has a teacher.
    """

    policy: Tensor
    target: float
    leads: bool
    distillation: Tensor | None = None


def keep_ratio_loss(policy: Tensor, valid: Tensor, target: float) -> Tensor:
    """
    Squared distance of each image's share of kept tokens from the target, the mean over the images.

    Args:
        policy: (B, H, W), 0 or 1.
        valid: (B, H, W) bool; other tokens count neither as kept nor as tokens.
        target: in (0, 1].
    """
    kept = (policy * valid).flatten(1).sum(dim=1)
    share = kept / valid.flatten(1).sum(dim=1).clamp(min=1)
    return (share - target).square().mean()


def map_distance(own: Tensor, other: Tensor, valid: Tensor) -> Tensor:
    """
    Mean squared difference of two maps over channels and an image's valid tokens, the mean over the images.

    Args:
        own: (B, C, H, W).
        other: (B, C, H, W).
        valid: (B, H, W) bool.
    """
    dtype = torch.promote_types(own.dtype, torch.float32)
    distance = (own.to(dtype) - other.to(dtype)).square().mean(dim=1)
    return ((distance * valid).flatten(1).sum(dim=1) / valid.flatten(1).sum(dim=1).clamp(min=1)).mean()
