"""
What multi-label classification adds to a backbone: one vector per image, and the loss of its classes.

Shape shorthand in this module:

    B: images    C: channels    H, W: token grid    K: classes
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def pool_valid_tokens(features: Tensor, valid: Tensor) -> Tensor:
    """
    Mean of an image's tokens, those in the padding of the batch left out.

    Args:
        features: (B, C, H, W), any float dtype. What padding holds, NaN included, reaches neither value nor gradient.
        valid: (B, H, W) bool.

    Returns:
        (B, C), float32 or wider; 0 for an image with no valid token.
    """
    if features.dim() != 4 or valid.shape != (features.shape[0], *features.shape[2:]):
        raise ValueError(
            "pool_valid_tokens expects (B, C, H, W) features and one decision per token.\n"
            f"  features.shape: {tuple(features.shape)}\n  valid.shape   : {tuple(valid.shape)}"
        )
    # Summed in float32 at least: the tokens of a large map overflow float16.
    wide = features.to(torch.promote_types(features.dtype, torch.float32))
    total = wide.masked_fill(~valid[:, None], 0).flatten(2).sum(dim=2)
    return total / valid.flatten(1).sum(dim=1).clamp(min=1)[:, None]


def multi_label_loss(logits: Tensor, labels: Tensor, ignored: Tensor) -> Tensor:
    """
    Binary cross-entropy of every class by itself: the mean over an image's counted classes, then over images.

    So it is invariant to how a batch is split. Computed in float32 under autocast too.

    Args:
        logits: (B, K).
        labels: (B, K), 1 where the image shows the class, else 0.
        ignored: (B, K) bool, classes that do not count.

    Returns:
        scalar float32; 0, still connected to ``logits``, where nothing counts.
    """
    if logits.dim() != 2 or logits.shape != labels.shape or logits.shape != ignored.shape:
        raise ValueError(
            "multi_label_loss expects logits, labels and ignored of one shape (B, K).\n"
            f"  logits.shape : {tuple(logits.shape)}\n  labels.shape : {tuple(labels.shape)}\n"
            f"  ignored.shape: {tuple(ignored.shape)}"
        )
    counted = ~ignored
    with torch.autocast(device_type=logits.device.type, enabled=False):
        loss = F.binary_cross_entropy_with_logits(logits.float(), labels.float(), reduction="none")
        return ((loss * counted).sum(dim=1) / counted.sum(dim=1).clamp(min=1)).mean()
