"""The feed-forward network of a transformer block."""

import torch
from torch import Tensor, nn

from spt_d2.layers.observed import as_built, is_observed
from spt_d2.ops.linear_gelu import linear_gelu


class Mlp(nn.Module):
    """
    Two linear layers with GELU between.

    Args:
        dim: C, channels in and out.
        hidden_dim: channels between.
        drop: dropout after each layer.
    """

    def __init__(self, dim: int, hidden_dim: int, drop: float = 0.0):
        super().__init__()
        self.hidden_dim = hidden_dim
        self.fc1 = nn.Linear(dim, hidden_dim)
        self.act = nn.GELU()
        self.fc2 = nn.Linear(hidden_dim, dim)
        self.drop = nn.Dropout(drop)

    def forward(self, x: Tensor) -> Tensor:
        """(..., C) to (..., C)."""
        return self.drop(self.fc2(self.drop(self._hidden(x))))

    def _hidden(self, x: Tensor) -> Tensor:
        return linear_gelu(x, self.fc1.weight, self.fc1.bias) if self._fuses(x) else self.act(self.fc1(x))

    def _fuses(self, x: Tensor) -> bool:
        if torch.is_grad_enabled() or not x.is_cpu:
            return False
        as_made = as_built(self.fc1, nn.Linear) and as_built(self.act, nn.GELU) and self.act.approximate == "none"
        return as_made and self.fc1.bias is not None and not is_observed(self.fc1, self.act)
