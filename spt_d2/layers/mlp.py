"""The feed-forward network of a transformer block."""

from torch import Tensor, nn


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
        self.fc1 = nn.Linear(dim, hidden_dim)
        self.act = nn.GELU()
        self.fc2 = nn.Linear(hidden_dim, dim)
        self.drop = nn.Dropout(drop)

    def forward(self, x: Tensor) -> Tensor:
        """(..., C) to (..., C)."""
        return self.drop(self.fc2(self.drop(self.act(self.fc1(x)))))
