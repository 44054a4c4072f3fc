"""Decisions that are held to a budget of tokens instead of to labels (Liu et al., "SViT", WACV 2024)."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from spt_d2.ops.selection import BlockSelection


@dataclass(frozen=True)
class BudgetSelection(BlockSelection):
    """
    What one gate decided, and the share of tokens that it should keep.

    Attributes:
        policy: (B, H, W) ``keep_mask`` as zeros and ones; in training with the slope of the relaxed decision, for valid
            tokens.
        target: share of the batch's valid tokens, in (0, 1].
    """

    policy: Tensor
    target: float


def budget_loss(selections: Sequence[BudgetSelection]) -> Tensor:
    """
    Squared distance of the share kept from the target, the mean over gates.

    The share is that of all images of the batch together (of one process): an image full of objects may keep more than
    the target where others keep less.

    Args:
        selections: at least one.

    Returns:
        scalar, float32 or float64.
    """
    losses = []
    for selection in selections:
        share = selection.policy.sum() / selection.valid.sum().clamp(min=1)
        losses.append((share - selection.target).square())
    return torch.stack(losses).mean()


def shared_targets(gates: int, ratios: Sequence[float]) -> list[float]:
    """
    The target of each gate: the first ratio for the first of as many equal groups of gates, and so on.

    Where gates do not divide evenly, groups differ by one gate.

    Args:
        gates: number of gates, at least as many as ratios.
        ratios: one per group, such as (0.7, 0.49, 0.343) for thirds.
    """
    return [ratios[i * len(ratios) // gates] for i in range(gates)]
