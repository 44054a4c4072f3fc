"""oneDNN's product, with GELU and without, is torch's; it stands aside where it would be something else."""

import pytest
import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode

from spt_d2.ops import linear as module
from spt_d2.ops.linear import linear, linear_gelu

FUNCTIONS = pytest.mark.parametrize(
    "function, truth",
    [(linear, F.linear), (linear_gelu, lambda x, weight, bias: F.gelu(F.linear(x, weight, bias)))],
    ids=["linear", "linear_gelu"],
)


def example(*size: int, dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    return torch.randn(*size, 24, dtype=dtype), torch.randn(96, 24, dtype=dtype), torch.randn(96, dtype=dtype)


needs_operator = pytest.mark.skipif(not module._is_there(), reason="this torch does not have the operator")


@pytest.fixture
def by_onednn(monkeypatch) -> list[tuple[int, ...]]:
    """Shapes of what oneDNN's operator is given."""
    calls: list[tuple[int, ...]] = []
    if not module._is_there():
        return calls
    operator = torch.ops.mkldnn._linear_pointwise
    monkeypatch.setattr(
        torch.ops.mkldnn, "_linear_pointwise", lambda x, *rest: calls.append(tuple(x.shape)) or operator(x, *rest)
    )
    return calls


@pytest.fixture(autouse=True)
def of_any_size(monkeypatch) -> None:
    monkeypatch.setattr(module, "_LEAST_WORK", 1)
    monkeypatch.setattr(module, "_LEAST_WORK_GELU", 1)


@needs_operator
@FUNCTIONS
@pytest.mark.parametrize("has_bias", (True, False))
@pytest.mark.parametrize("size", [(1,), (7, 49), (2, 3, 5), ()])
def test_it_is_the_layer(size, has_bias, function, truth, by_onednn):
    x, weight, bias = example(*size)
    bias = bias if has_bias else None
    with torch.no_grad():
        found = function(x, weight, bias)
    torch.testing.assert_close(found, truth(x, weight, bias), rtol=1e-5, atol=1e-5)
    assert by_onednn == [tuple(x.shape)] and found.dtype == torch.float32


@needs_operator
@FUNCTIONS
def test_strided_tokens_and_weights_are_read_where_they_are(function, truth, by_onednn):
    x, weight, bias = example(10, 6)
    with torch.no_grad():
        found = function(x.transpose(0, 1), weight, bias)
        wide = function(x[:, ::2, :12], weight[::2, 12:], bias[:48])
    torch.testing.assert_close(found, truth(x, weight, bias).transpose(0, 1), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(wide, truth(x[:, ::2, :12], weight[::2, 12:], bias[:48]), rtol=1e-5, atol=1e-5)
    assert len(by_onednn) == 2


@needs_operator
@FUNCTIONS
def test_a_product_too_small_to_make_a_program_for_is_left_to_torch(function, truth, by_onednn, monkeypatch):
    x, weight, bias = example(5)
    work = 5 * 24 * 96
    with torch.no_grad():
        for least, calls in ((work + 1, 0), (work, 1)):
            monkeypatch.setattr(module, "_LEAST_WORK", least)
            monkeypatch.setattr(module, "_LEAST_WORK_GELU", least)
            function(x, weight, bias)
            assert len(by_onednn) == calls


@FUNCTIONS
@pytest.mark.parametrize("kind", ("strided", "expanded", "single"))
def test_a_bias_that_is_no_plain_row_is_left_to_torch(kind, function, truth, by_onednn):
    x, weight, _ = example(5)
    bias = {"strided": torch.randn(192)[::2], "expanded": torch.randn(1).expand(96), "single": torch.randn(1)}[kind]
    with torch.no_grad():
        assert torch.equal(function(x, weight, bias), truth(x, weight, bias))
    assert not by_onednn


@FUNCTIONS
@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support")
def test_sparse_weights_are_left_to_torch_and_so_are_mistakes(function, truth, by_onednn):
    x, weight, bias = example(5)
    with torch.no_grad():
        sparse = weight.relu().to_sparse_csr()
        torch.testing.assert_close(function(x, sparse, bias), truth(x, weight.relu(), bias), rtol=1e-5, atol=1e-5)
        with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
            function(x[:, :7], weight, bias)
    assert not by_onednn


@FUNCTIONS
def test_whoever_counts_or_differentiates_forward_sees_what_he_knows(function, truth, by_onednn):
    x, weight, bias = example(5)
    with torch.no_grad():
        with FlopCounterMode(display=False) as counter:
            function(x, weight, bias)
        assert counter.get_total_flops() == 2 * 5 * 24 * 96
        _, found = torch.func.jvp(lambda x: function(x, weight, bias), (x,), (torch.ones_like(x),))
        _, expected = torch.func.jvp(lambda x: truth(x, weight, bias), (x,), (torch.ones_like(x),))
    torch.testing.assert_close(found, expected)
    assert found.abs().sum() > 0 and not by_onednn


@FUNCTIONS
@pytest.mark.parametrize("dtype", (torch.float64, torch.bfloat16))
def test_other_dtypes_are_left_to_torch(dtype, function, truth, by_onednn):
    x, weight, bias = example(5, dtype=dtype)
    with torch.no_grad():
        assert torch.equal(function(x, weight, bias), truth(x, weight, bias))
    assert not by_onednn


@FUNCTIONS
def test_what_needs_gradients_autocast_or_a_trace_is_left_to_torch(function, truth, by_onednn, monkeypatch):
    x, weight, bias = example(5)
    weight.requires_grad_()
    function(x, weight, bias).sum().backward()
    assert weight.grad is not None
    with torch.no_grad():
        with torch.autocast("cpu", torch.bfloat16):
            assert function(x, weight, bias).dtype == torch.bfloat16
        assert function(x[:0], weight, bias).shape == (0, 96)
        # A trace is to be of operators that others know.
        monkeypatch.setattr(torch.jit, "is_tracing", lambda: True)
        function(x, weight, bias)
    assert not by_onednn


@FUNCTIONS
def test_it_is_left_to_torch_where_onednn_is_turned_off(function, truth, by_onednn):
    x, weight, bias = example(5)
    # The public context manager warns of other things.
    before = torch._C._get_mkldnn_enabled()
    torch._C._set_mkldnn_enabled(False)
    try:
        with torch.no_grad():
            assert torch.equal(function(x, weight, bias), truth(x, weight, bias))
    finally:
        torch._C._set_mkldnn_enabled(before)
    assert not by_onednn


@FUNCTIONS
def test_a_torch_without_the_operator_computes_by_itself(function, truth, monkeypatch):
    x, weight, bias = example(5)

    def missing(*arguments):
        raise AttributeError

    for operator in (missing, lambda x, weight, *rest: torch.zeros(len(x), len(weight))):
        monkeypatch.setattr(torch.ops.mkldnn, "_linear_pointwise", operator, raising=False)
        module._is_there.cache_clear()
        with torch.no_grad():
            assert torch.equal(function(x, weight, bias), truth(x, weight, bias))
    monkeypatch.undo()
    module._is_there.cache_clear()
