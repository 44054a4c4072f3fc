"""DynamicSwin's predictor: how much each token is worth the full FFN (Rao et al., 2023)."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class TokenPredictor(nn.Module):
    """
    Score tokens by themselves and by their image: half of the channels are replaced by their mean over the image.

    Names of parameters are those of ``PredictorLG`` in DynamicViT's published code, whose checkpoints load. It knows no
    padding; here padding has no part in the mean.

    Args:
        dim: C, a multiple of 4.
    """

    def __init__(self, dim: int):
        super().__init__()
        if dim % 4:
            raise ValueError(f"TokenPredictor(dim=) expects a multiple of 4 channels. Got {dim}.")
        self.in_conv = nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, dim), nn.GELU())
        self.out_conv = nn.Sequential(
            nn.Linear(dim, dim // 2), nn.GELU(), nn.Linear(dim // 2, dim // 4), nn.GELU(), nn.Linear(dim // 4, 2)
        )

    def forward(self, x: Tensor, valid: Tensor) -> Tensor:
        """
        Args:
            x: (B, H, W, C).
            valid: (B, H, W) bool, False for tokens wholly in padding.

        Returns:
            (B, H, W) log-odds of keeping a token, float32 at least: they decide, and carry a loss.
        """
        local, shared = self.in_conv(x).chunk(2, dim=-1)
        number = valid.sum(dim=(1, 2)).clamp(min=1).view(-1, 1, 1, 1)
        dtype = torch.promote_types(x.dtype, torch.float32)
        mean = (shared.to(dtype) * valid[..., None]).sum(dim=(1, 2), keepdim=True) / number
        hidden = self.out_conv[:-1](torch.cat((local, mean.to(local.dtype).expand_as(shared)), dim=-1))
        last = self.out_conv[-1]
        if not isinstance(last, nn.Linear):
            raise TypeError(
                "TokenPredictor expects a linear layer last, whose weights it takes to float32. "
                f"Got {type(last).__name__}."
            )
        with torch.autocast(device_type=x.device.type, enabled=False):
            keep, skip = F.linear(hidden.to(dtype), last.weight.to(dtype), last.bias.to(dtype)).unbind(dim=-1)
        return keep - skip
