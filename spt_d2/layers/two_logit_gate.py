"""The gate of SViT (Liu et al., WACV 2024): a small MLP with one logit to keep a token and one to skip it."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class TwoLogitGate(nn.Module):
    """
    LayerNorm, ``Linear(C, C / 4)``, GELU, ``Linear(C / 4, 2)``.

    The published gate takes a log-softmax of the two, of which only the difference decides, in the Gumbel-Softmax as in
    the argmax; and that is the difference of the logits.

    Args:
        dim: C, at least 4.
    """

    def __init__(self, dim: int):
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.fc1 = nn.Linear(dim, dim // 4)
        self.act = nn.GELU()
        self.fc2 = nn.Linear(dim // 4, 2)

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, C) tokens to (B, H, W) log-odds of keeping, float32 at least: they decide, and carry a loss."""
        hidden = self.act(self.fc1(self.norm(x)))
        dtype = torch.promote_types(hidden.dtype, torch.float32)
        with torch.autocast(device_type=x.device.type, enabled=False):
            logits = F.linear(hidden.to(dtype), self.fc2.weight.to(dtype), self.fc2.bias.to(dtype))
        return logits[..., 0] - logits[..., 1]
