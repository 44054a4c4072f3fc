"""The fused layer is the two layers, and stands aside where it would be something else."""

import pytest
import torch
import torch.nn.functional as F

from spt_d2.ops import linear_gelu as module
from spt_d2.ops.linear_gelu import linear_gelu


def example(*size: int, dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    return torch.randn(*size, 24, dtype=dtype), torch.randn(96, 24, dtype=dtype), torch.randn(96, dtype=dtype)


needs_operator = pytest.mark.skipif(not module._is_there(), reason="this torch has no fused operator")


@pytest.fixture
def fused(monkeypatch) -> list[tuple[int, ...]]:
    """Shapes of what oneDNN's operator is given."""
    calls: list[tuple[int, ...]] = []
    if not module._is_there():
        return calls
    operator = torch.ops.mkldnn._linear_pointwise
    monkeypatch.setattr(
        torch.ops.mkldnn, "_linear_pointwise", lambda x, *rest: calls.append(tuple(x.shape)) or operator(x, *rest)
    )
    return calls


@needs_operator
@pytest.mark.parametrize("size", [(1,), (7, 49), (2, 3, 5), ()])
def test_it_is_the_two_layers(size, fused):
    x, weight, bias = example(*size)
    with torch.no_grad():
        found = linear_gelu(x, weight, bias)
    torch.testing.assert_close(found, F.gelu(F.linear(x, weight, bias)), rtol=1e-5, atol=1e-5)
    assert fused == [tuple(x.shape)] and found.dtype == torch.float32


@needs_operator
def test_strided_tokens_and_weights_are_read_where_they_are(fused):
    x, weight, bias = example(10, 6)
    with torch.no_grad():
        found = linear_gelu(x.transpose(0, 1), weight, bias)
        wide = linear_gelu(x[:, ::2, :12], weight[::2, 12:], bias[::2])
    torch.testing.assert_close(found, F.gelu(F.linear(x, weight, bias)).transpose(0, 1), rtol=1e-5, atol=1e-5)
    expected = F.gelu(F.linear(x[:, ::2, :12], weight[::2, 12:], bias[::2]))
    torch.testing.assert_close(wide, expected, rtol=1e-5, atol=1e-5)
    assert len(fused) == 2


@pytest.mark.parametrize("dtype", (torch.float64, torch.bfloat16))
def test_other_dtypes_are_computed_in_two_steps(dtype, fused):
    x, weight, bias = example(5, dtype=dtype)
    with torch.no_grad():
        assert torch.equal(linear_gelu(x, weight, bias), F.gelu(F.linear(x, weight, bias)))
    assert not fused


def test_what_needs_gradients_autocast_or_a_trace_is_computed_in_two_steps(fused, monkeypatch):
    x, weight, bias = example(5)
    weight.requires_grad_()
    linear_gelu(x, weight, bias).sum().backward()
    assert weight.grad is not None
    with torch.no_grad():
        with torch.autocast("cpu", torch.bfloat16):
            assert linear_gelu(x, weight, bias).dtype == torch.bfloat16
        assert linear_gelu(x[:0], weight, bias).shape == (0, 96)
        # A trace is to be of operators that others know.
        monkeypatch.setattr(torch.jit, "is_tracing", lambda: True)
        linear_gelu(x, weight, bias)
    assert not fused


def test_a_torch_without_the_operator_computes_in_two_steps(monkeypatch):
    x, weight, bias = example(5)

    def missing(*arguments):
        raise AttributeError

    for operator in (missing, lambda x, weight, *rest: torch.zeros(len(x), len(weight))):
        monkeypatch.setattr(torch.ops.mkldnn, "_linear_pointwise", operator, raising=False)
        module._is_there.cache_clear()
        with torch.no_grad():
            assert torch.equal(linear_gelu(x, weight, bias), F.gelu(F.linear(x, weight, bias)))
    monkeypatch.undo()
    module._is_there.cache_clear()
