"""The linear gate that scores tokens (eq. 4, App. A)."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class SelectionGate(nn.Module):
    """
    One logit per token: ``Linear(C, 1)``.

    The weights start at zero, so that every token starts with the score ``bias``: above the keep rule's border the
    block starts dense, like the Swin block whose weights it may have been given, and learns to prune.

    Args:
        dim: C.
        bias: the logit every token starts with.
    """

    def __init__(self, dim: int, bias: float):
        super().__init__()
        self.proj = nn.Linear(dim, 1)
        self.initial_bias = bias
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.zeros_(self.proj.weight)
        nn.init.constant_(self.proj.bias, self.initial_bias)

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, C) normalised tokens to (B, H, W) logits, float32 at least: they decide, and carry a loss."""
        dtype = torch.promote_types(x.dtype, torch.float32)
        with torch.autocast(device_type=x.device.type, enabled=False):
            weight, bias = self.proj.weight.to(dtype), self.proj.bias.to(dtype)
            return F.linear(x.to(dtype), weight, bias).squeeze(-1)


def initial_gate_bias(gating: str, threshold: float, tau: float, prior: float) -> float:
    """
    The logit gates start with: everything kept, and as near to the final calibration as that allows.

    Under sigmoid gating features are multiplied by ``sigmoid(score)``, so the gate starts at +5, a factor of 0.993.
    Otherwise it starts at the prior probability of an object token, as focal loss does (Lin et al., 2017). Where either
    lies below the keep rule's border, it starts just above that.

    Args:
        gating: ``sigmoid``, ``centred`` or ``none``.
        threshold: probability in [0, 1).
        tau: temperature.
        prior: expected share of object tokens, in (0, 1).
    """
    start = 5.0 if gating == "sigmoid" else math.log(prior / (1.0 - prior))
    if threshold <= 0.0:
        return start
    border = tau * math.log(threshold / (1.0 - threshold))
    return max(start, border + 0.1)


class OutputGate(nn.Module):
    """
    The extra gate on the output of a stage without gates of its own (eq. 1): LayerNorm, then the gate.

    A stage's output is a residual stream of no fixed scale; the blocks' gates see normalised tokens, and so does this.

    Args:
        dim: C.
        bias: the logit every token starts with.
    """

    def __init__(self, dim: int, bias: float):
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.gate = SelectionGate(dim, bias)

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, C) to (B, H, W) logits."""
        return self.gate(self.norm(x))
