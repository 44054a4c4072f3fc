"""What a decision does to the features of the tokens it keeps (eq. 5 and 6)."""

import math

import torch
from torch import Tensor

GATINGS = ("sigmoid", "centred", "none")


def straight_through(soft: Tensor, decides: bool) -> Tensor:
    """
    Factor for kept tokens: 1 in value, the slope of the relaxed decision in gradient (eq. 6).

    Where the score does not decide (``select`` random, oracle or all) the slope is 0, which still connects the gate to
    the graph: distributed training wants a gradient for every parameter.
    """
    slope = soft - soft.detach()
    return 1.0 + (slope if decides else 0.0 * slope)


def gating_factor(score: Tensor, gating: str, threshold: float) -> Tensor | None:
    """
    Factor in (0, 1) by which kept tokens enter the attention branch (eq. 5), or None for ``none``.

    ``sigmoid`` is the paper's. ``centred`` is one half at the border of the keep rule:
    ``sigmoid(score - logit(threshold))``; a calibrated score is far below 1 for nearly every token, and the
    literal factor then shrinks queries, keys and values alike.
    """
    if gating == "none":
        return None
    if gating == "sigmoid":
        return torch.sigmoid(score)
    if gating == "centred":
        return torch.sigmoid(score - math.log(threshold / (1.0 - threshold)))
    raise ValueError(f"gating expects one of {GATINGS}. Got {gating!r}.")
