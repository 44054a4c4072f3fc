"""The linear gate that scores tokens (eq. 4, App. A)."""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from spt_d2.layers.observed import as_built, is_observed
from spt_d2.ops.shape_cache import is_traced


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

    def forward(self, normed: Tensor, x: Tensor | None = None, norm: nn.LayerNorm | None = None) -> Tensor:
        """
        Args:
            normed: (B, H, W, C) normalised tokens.
            x, norm: what ``normed`` is made of, ``norm(x)``. With them the backward pass makes it anew, and no map of
                all tokens is kept for the gate's sake: nothing else in a block needs more than those it selects.

        Returns:
            (B, H, W) logits, float32 at least: they decide, and carry a loss.
        """
        dtype = torch.promote_types(normed.dtype, torch.float32)
        with torch.autocast(device_type=normed.device.type, enabled=False):
            weight, bias = self.proj.weight.to(dtype), self.proj.bias.to(dtype)
            # A trace with a function of ours in it could not be saved.
            plain = is_traced() or not torch.is_grad_enabled()
            if x is None or norm is None or plain or not _can_be_remade(norm):
                return F.linear(normed.to(dtype), weight, bias).squeeze(-1)
            return _Logits.apply(normed, weight, bias, x, norm.weight, norm.bias, norm.eps)


def _can_be_remade(norm: nn.LayerNorm) -> bool:
    """Whether what a norm gives is LayerNorm's: another may have been put in its place, or a hook may change it."""
    return as_built(norm, nn.LayerNorm) and norm.weight is not None and norm.bias is not None and not is_observed(norm)


class _Logits(torch.autograd.Function):
    """``linear(normed, weight, bias)`` in the weight's dtype; keeps what ``normed`` is made of in its place."""

    @staticmethod
    def forward(
        normed: Tensor,
        weight: Tensor,
        bias: Tensor,
        x: Tensor,
        norm_weight: Tensor,
        norm_bias: Tensor,
        eps: float,
    ) -> Tensor:
        return F.linear(normed.to(weight.dtype), weight, bias).squeeze(-1)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        normed, weight, _, x, norm_weight, norm_bias, ctx.eps = inputs
        ctx.save_for_backward(x, weight, norm_weight, norm_bias)
        ctx.dtype = normed.dtype

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        # All of it has gradients of its own, through x in the place of the normalised map.
        x, weight, norm_weight, norm_bias = (each.to(grad.dtype) for each in ctx.saved_tensors)
        needs_normed, needs_weight, needs_bias, *_ = ctx.needs_input_grad
        grad_normed = (grad[..., None] * weight.squeeze(0)).to(ctx.dtype) if needs_normed else None
        grad_weight = None
        if needs_weight:
            normed = F.layer_norm(x, x.shape[-1:], norm_weight, norm_bias, ctx.eps)
            grad_weight = grad.reshape(1, -1) @ normed.flatten(0, -2)
        return grad_normed, grad_weight, grad.sum().view(1) if needs_bias else None, None, None, None, None


def initial_gate_bias(gating: str, threshold: float, tau: float, prior: float) -> float:
    """
    The logit gates start with: everything kept (without noise), and as near to the final calibration as that allows.

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
        return self.gate(self.norm(x), x, self.norm)
