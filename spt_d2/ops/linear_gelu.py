"""A linear layer and GELU in one pass, at inference on a CPU."""

import functools

import torch
import torch.nn.functional as F
from torch import Tensor


def linear_gelu(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """
    ``gelu(linear(x, weight, bias))``, where possible by oneDNN's product that applies GELU to what it just computed.

    GELU by itself reads and writes every hidden channel once more, and takes as long as the product where channels are
    few. The fused one is the operator that ``torch.compile`` uses; it has no gradient.

    Args:
        x: (..., C).
        weight: (hidden, C).
        bias: (hidden,).

    Returns:
        (..., hidden).
    """
    if _fuses(x, weight, bias):
        return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "gelu", [], "none")
    return F.gelu(F.linear(x, weight, bias))


def _fuses(x: Tensor, weight: Tensor, bias: Tensor) -> bool:
    # Whoever traces or compiles is to see operators that others know, and fuses them himself.
    if torch.compiler.is_compiling() or torch.jit.is_tracing():
        return False
    if torch.is_grad_enabled() or torch.is_autocast_enabled("cpu"):
        return False
    # Of other classes are tensors that only stand for some.
    plain = all(type(each) in (Tensor, torch.nn.Parameter) for each in (x, weight, bias))
    cpu_floats = all(each.is_cpu and each.dtype == torch.float32 for each in (x, weight, bias))
    return plain and cpu_floats and x.numel() > 0 and _is_there()


@functools.lru_cache(maxsize=1)
@torch.inference_mode()
def _is_there() -> bool:
    """Whether this torch has the operator, and it computes what it should: it is not of torch's public interface."""
    # Whatever the defaults are where it is asked first.
    x, weight, bias = (torch.linspace(-2.0, 2.0, n, device="cpu", dtype=torch.float32) for n in (15, 35, 7))
    x, weight = x.view(3, 5), weight.view(7, 5)
    try:
        found = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "gelu", [], "none")
    except (AttributeError, RuntimeError, TypeError):
        return False
    return torch.allclose(found, F.gelu(F.linear(x, weight, bias)), atol=1e-5)
