"""Stochastic depth per image, for dense maps and for packed tokens."""

import torch
from torch import Tensor, nn


class DropPath(nn.Module):
    """
    Drop a residual branch for whole images (Huang et al., 2016).

    A packed sequence holds several images in one row, so the decision is sampled per image and handed out as a factor.

    Args:
        rate: probability in [0, 1) that an image's branch is dropped in training.
    """

    def __init__(self, rate: float = 0.0):
        super().__init__()
        if not 0.0 <= rate < 1.0:
            raise ValueError(f"DropPath(rate=) expects a probability in [0, 1). Got {rate}.")
        self.rate = rate

    def sample(self, batch: int, like: Tensor) -> Tensor | None:
        """(B,) factors, 0 or 1 / (1 - rate), of the dtype and device of ``like``; None where nothing is dropped."""
        if not self.training or self.rate == 0.0:
            return None
        keep = 1.0 - self.rate
        return torch.bernoulli(torch.full((batch,), keep, device=like.device)).to(like.dtype) / keep

    def forward(self, x: Tensor) -> Tensor:
        """(B, ...) branch of a dense map to the same, scaled per image."""
        factor = self.sample(x.shape[0], x)
        return x if factor is None else x * factor.view(-1, *[1] * (x.dim() - 1))

    def packed(self, tokens: Tensor, image_ids: Tensor, batch: int) -> Tensor:
        """(T, C) branch of packed tokens of ``batch`` images to the same, scaled per image."""
        factor = self.sample(batch, tokens)
        return tokens if factor is None else tokens * factor[image_ids, None]

    def extra_repr(self) -> str:
        return f"rate={self.rate}"
