"""Linear layers at inference on a CPU, by oneDNN's product where torch alone would take another library's."""

import functools

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import forward_ad
from torch.utils._python_dispatch import _get_current_dispatch_mode

# Multiply-adds. oneDNN makes a program for each number of tokens it has not met, which takes a third of a millisecond,
# and few channels it multiplies no faster: below this size it was the slower one. GELU pays sooner.
_LEAST_WORK = 100_000_000
_LEAST_WORK_GELU = 50_000_000


def linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """
    :func:`torch.nn.functional.linear`, by oneDNN's product where that is possible and the product is large.

    Torch gives float32 products to the BLAS it was built with. On AMD Zen 3, oneDNN's takes three quarters of the time
    of MKL's in the later stages of a Swin. It is the operator that ``torch.compile`` uses; it has no gradient.

    Args:
        x: (..., C).
        weight: (D, C).
        bias: (D,), or None.

    Returns:
        (..., D).
    """
    if _by_onednn(x, weight, bias, _LEAST_WORK):
        return _pointwise(x, weight, bias, "none")
    return F.linear(x, weight, bias)


def linear_gelu(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """
    ``gelu(linear(x, weight, bias))``, where possible and large by oneDNN's product, which applies GELU as it goes.

    GELU by itself reads and writes every hidden channel once more, and takes as long as the product where channels are
    few.

    Args:
        x: (..., C).
        weight: (hidden, C).
        bias: (hidden,), or None.

    Returns:
        (..., hidden).
    """
    if _by_onednn(x, weight, bias, _LEAST_WORK_GELU):
        return _pointwise(x, weight, bias, "gelu")
    return F.gelu(F.linear(x, weight, bias))


def _pointwise(x: Tensor, weight: Tensor, bias: Tensor | None, function: str) -> Tensor:
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, function, [], "none")


def _by_onednn(x: Tensor, weight: Tensor, bias: Tensor | None, least_work: int) -> bool:
    if x.numel() * len(weight) < least_work or not torch.backends.mkldnn.enabled:
        return False
    # Whoever traces, compiles or counts is to see operators that others know, and fuses them himself.
    if torch.compiler.is_compiling() or torch.jit.is_tracing() or _get_current_dispatch_mode() is not None:
        return False
    # The operator has no derivative, in either direction.
    if torch.is_grad_enabled() or forward_ad._current_level >= 0 or torch.is_autocast_enabled("cpu"):
        return False
    tensors = (x, weight) if bias is None else (x, weight, bias)
    # Of other classes and layouts are tensors that only stand for some.
    plain = all(type(each) in (Tensor, torch.nn.Parameter) and each.layout == torch.strided for each in tensors)
    cpu_floats = all(each.is_cpu and each.dtype == torch.float32 for each in tensors)
    return plain and cpu_floats and _fit(x, weight, bias) and _is_there()


def _fit(x: Tensor, weight: Tensor, bias: Tensor | None) -> bool:
    """Whether the operator takes the shapes: it reads past the strides of a bias, and explains no error."""
    if weight.dim() != 2 or x.dim() == 0 or x.shape[-1] != weight.shape[1]:
        return False
    return bias is None or (bias.shape == weight.shape[:1] and bias.is_contiguous())


@functools.lru_cache(maxsize=1)
@torch.inference_mode()
def _is_there() -> bool:
    """Whether this torch has the operator, and it computes what it should: it is not of torch's public interface."""
    # Whatever the defaults are where it is asked first.
    x, weight, bias = (torch.linspace(-2.0, 2.0, n, device="cpu", dtype=torch.float32) for n in (15, 35, 7))
    x, weight = x.view(3, 5), weight.view(7, 5)
    try:
        found = _pointwise(x, weight, bias, "gelu"), _pointwise(x, weight, None, "none")
    except (AttributeError, RuntimeError, TypeError):
        return False
    expected = F.gelu(F.linear(x, weight, bias)), F.linear(x, weight)
    return all(torch.allclose(one, other, atol=1e-5) for one, other in zip(found, expected))
