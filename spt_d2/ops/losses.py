"""
Selection loss and the figures that tell whether a selection is good.

Shape shorthand in this module:

    B: images    H, W: token grid
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

REDUCTIONS = ("mean", "sum")

# Label values: 1 object, 0 background, and this one where there is neither loss nor statistics.
IGNORE = 255


def selection_loss(
    score: Tensor, label: Tensor, valid: Tensor, *, reduction: str = "mean", pos_weight: float = 1.0
) -> Tensor:
    """
    Binary cross-entropy between one score map and its selection labels (eq. 10, one term of the sum).

    Computed in float32 at least, under autocast too.

    Args:
        score: (B, H, W) logits.
        label: (B, H, W) uint8: 1 object, 0 background, 255 ignored.
        valid: (B, H, W) bool; tokens that are not valid do not count.
        reduction: ``mean`` over an image's counted tokens, then over images: invariant to how a batch is split.
            ``sum`` over an image's counted tokens, then the mean over images (eq. 10 has no 1/N).
        pos_weight: weight of object tokens (App. B.1 tried 5).

    Returns:
        scalar, float32 or float64; 0, still connected to ``score``, where nothing counts.
    """
    if reduction not in REDUCTIONS:
        raise ValueError(f"selection_loss(reduction=) expects one of {REDUCTIONS}. Got {reduction!r}.")
    if score.shape != label.shape or score.shape != valid.shape:
        raise ValueError(
            "selection_loss expects score, label and valid of one shape (B, H, W).\n"
            f"  score.shape: {tuple(score.shape)}\n  label.shape: {tuple(label.shape)}\n"
            f"  valid.shape: {tuple(valid.shape)}"
        )
    counted = valid & (label != IGNORE)
    dtype = torch.promote_types(score.dtype, torch.float32)
    with torch.autocast(device_type=score.device.type, enabled=False):
        loss = F.binary_cross_entropy_with_logits(
            score.to(dtype),
            (label == 1).to(dtype),
            pos_weight=torch.full((), pos_weight, dtype=dtype, device=score.device),
            reduction="none",
        )
        per_image = (loss * counted).flatten(1).sum(dim=1)
        if reduction == "mean":
            per_image = per_image / counted.flatten(1).sum(dim=1).clamp(min=1)
        return per_image.mean()


@dataclass(frozen=True)
class SelectionCounts:
    """
    Token counts of one decision, as 0-dim tensors, to be summed over blocks, images and processes before dividing.

    Ignored tokens count in ``kept`` and ``tokens`` (they cost attention like any other) but not as objects, nor in
    ``judged``, the kept tokens whose label is known.
    """

    tokens: Tensor
    kept: Tensor
    objects: Tensor
    kept_objects: Tensor
    judged: Tensor


def selection_counts(keep_mask: Tensor, label: Tensor, valid: Tensor) -> SelectionCounts:
    """
    Count what a decision kept.

    Keep ratio is ``kept / tokens``, retention ``kept_objects / objects`` (recall), density ``kept_objects / judged``
    (precision), as in App. B.3.

    Args:
        keep_mask: (..., H, W) bool.
        label: (..., H, W) uint8.
        valid: (..., H, W) bool.
    """
    objects = (label == 1) & valid
    return SelectionCounts(
        tokens=valid.sum(),
        kept=keep_mask.sum(),
        objects=objects.sum(),
        kept_objects=(objects & keep_mask).sum(),
        judged=(keep_mask & (label != IGNORE)).sum(),
    )
