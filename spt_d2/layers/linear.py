"""How the layers here call a linear layer of theirs: by the faster product where nobody can tell."""

from typing import TypeGuard

import torch
from torch import Tensor, nn

from spt_d2.layers.observed import as_built, is_observed
from spt_d2.ops.linear import linear, linear_gelu


def apply_linear(layer: nn.Module, x: Tensor) -> Tensor:
    """``layer(x)`` of a linear layer, or of what was put in its place."""
    return linear(x, layer.weight, layer.bias) if _is_plain(layer, x) else layer(x)


def apply_linear_gelu(layer: nn.Module, act: nn.Module, x: Tensor) -> Tensor:
    """``act(layer(x))`` of a linear layer and :class:`torch.nn.GELU`, or of what was put in their places."""
    if _is_plain(layer, x) and as_built(act, nn.GELU) and act.approximate == "none" and not is_observed(act):
        return linear_gelu(x, layer.weight, layer.bias)
    return act(layer(x))


def _is_plain(layer: nn.Module, x: Tensor) -> TypeGuard[nn.Linear]:
    # The cheapest first: in training and on a GPU all is said by now.
    return not torch.is_grad_enabled() and x.is_cpu and as_built(layer, nn.Linear) and not is_observed(layer)
