"""The feed-forward network of a transformer block."""

from torch import Tensor, nn

from spt_d2.layers.linear import apply_linear, apply_linear_gelu


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
        hidden = apply_linear_gelu(self.fc1, self.act, x)
        return self.drop(apply_linear(self.fc2, self.drop(hidden)))
