"""Packed attention against dense attention over all tokens, with a mask built from the rule and not from the layout."""

import logging
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from spt_d2.ops import attention as ops
from spt_d2.ops.packing import PackedLayout, pack_layout
from tests import reference

HEADS, HEAD_DIM, WINDOW = 2, 4, 3

RULES = [
    pytest.param(order, segment, shift, size, id=f"{order}-{segment}-shift{shift}-L{size}")
    for order, segment in reference.ORDERS_AND_SEGMENTS
    for shift in (0, 1)
    for size in ((9, 13) if segment == "window" else (9, 4))
]


def rule_of(order: str, segment: str, shift: int, size: int) -> dict:
    return {
        "container_size": size,
        "window_size": WINDOW,
        "shift_size": shift,
        "order": order,
        "segment": segment,
    }


def compare_with_dense(
    keep: Tensor, rule: dict, dtype: torch.dtype, with_bias: bool, device: torch.device, backend: str = "auto"
) -> None:
    """Forward and the gradients of q, k, v and the table."""
    batch, height, width = keep.shape
    total = keep.numel()
    inputs = [torch.randn(total, HEADS, HEAD_DIM, dtype=dtype, device=device) for _ in range(3)]
    if with_bias:
        inputs.append(torch.randn((2 * WINDOW - 1) ** 2, HEADS, dtype=dtype, device=device))
    weight = torch.randn(total, HEADS, HEAD_DIM, dtype=dtype, device=device)

    fast = [t.clone().requires_grad_() for t in inputs]
    layout = pack_layout(keep.to(device), **rule)
    q, k, v = (t[layout.keep_indices] for t in fast[:3])
    table = fast[3] if with_bias else None
    packed = ops.packed_attention(q, k, v, layout, bias_table=table, window_size=WINDOW, backend=backend)
    assert packed.shape == (int(keep.sum()), HEADS, HEAD_DIM) and packed.dtype == dtype
    out = torch.zeros(total, HEADS, HEAD_DIM, dtype=dtype, device=device).index_copy(0, layout.keep_indices, packed)
    (out * weight).sum().backward()
    with torch.no_grad():
        unrecorded = ops.packed_attention(q, k, v, layout, bias_table=table, window_size=WINDOW, backend=backend)
    reference.close(unrecorded, packed.detach())

    # The truth is computed in a precision above that of half inputs.
    work = dtype if dtype.itemsize >= 4 else torch.float32
    slow = [t.to(work).requires_grad_() for t in inputs]
    mask = reference.attention_mask(keep, **rule).to(device)
    bias = reference.position_bias(slow[3], batch, height, width, WINDOW) if with_bias else None
    expected = reference.dense_attention(*slow[:3], mask, bias)
    (expected * weight.to(work)).sum().backward()

    reference.close(out, expected.detach().to(dtype))
    for actual, truth in zip(fast, slow):
        assert actual.grad is not None
        reference.close(actual.grad, truth.grad.to(dtype))


@pytest.mark.parametrize("with_bias", [False, True], ids=["no_bias", "bias"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("grid", [(5, 7), (6, 4), (1, 1)], ids=str)
@pytest.mark.parametrize("order, segment, shift, size", RULES)
def test_packed_attention_equals_dense_attention(order, segment, shift, size, grid, dtype, with_bias, device):
    for _, keep in reference.keep_masks(2, *grid):
        compare_with_dense(keep, rule_of(order, segment, shift, size), dtype, with_bias, device)


@pytest.mark.parametrize("with_bias", [False, True], ids=["no_bias", "bias"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("order, segment, shift, size", RULES)
def test_packed_attention_in_half_precision_equals_dense_attention(order, segment, shift, size, dtype, with_bias):
    for _, keep in reference.keep_masks(2, 5, 7):
        compare_with_dense(keep, rule_of(order, segment, shift, size), dtype, with_bias, torch.device("cpu"))


@pytest.mark.parametrize("dtype, fused", [(torch.bfloat16, False), (torch.float16, False), (torch.float32, True)])
def test_only_half_precision_trains_without_the_fused_kernel_on_a_cpu(dtype, fused, monkeypatch):
    layout = pack_layout(torch.rand(2, 5, 5) < 0.5, container_size=4, window_size=2)
    calls = []
    kernel = torch.nn.functional.scaled_dot_product_attention
    monkeypatch.setattr(ops.F, "scaled_dot_product_attention", lambda *a, **k: calls.append(1) or kernel(*a, **k))
    q = torch.randn(layout.num_tokens, HEADS, HEAD_DIM, dtype=dtype, requires_grad=True)
    ops.packed_attention(q, q, q, layout).sum().backward()
    assert bool(calls) == fused


@settings(max_examples=60)
@given(
    st.sampled_from(reference.ORDERS_AND_SEGMENTS),
    st.integers(0, 2),
    st.integers(9, 30),
    st.tuples(st.integers(1, 3), st.integers(1, 8), st.integers(1, 8)),
    st.integers(0, 2**31),
    st.booleans(),
)
def test_packed_attention_equals_dense_attention_at_random(kind, shift, size, shape, seed, with_bias):
    order, segment = kind
    keep = torch.rand(shape, generator=torch.Generator().manual_seed(seed)) < 0.5
    compare_with_dense(keep, rule_of(order, segment, shift, size), torch.float64, with_bias, torch.device("cpu"))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("with_bias", [False, True], ids=["no_bias", "bias"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("order, segment, shift, size", RULES)
def test_xformers_kernels_equal_dense_attention(order, segment, shift, size, dtype, with_bias, monkeypatch):
    device = torch.device("cuda")
    monkeypatch.setattr(f"{__name__}.HEAD_DIM", 32)
    reasons = ops._refusals(device, dtype, 32, with_bias)
    if reasons:
        pytest.skip("xformers refuses the input: " + "; ".join(reasons))
    for _, keep in reference.keep_masks(2, 6, 8):
        compare_with_dense(keep, rule_of(order, segment, shift, size), dtype, with_bias, device, backend="xformers")


@pytest.mark.parametrize("with_bias", [False, True], ids=["no_bias", "bias"])
def test_gradcheck(with_bias):
    layout = pack_layout(torch.rand(2, 3, 4) < 0.5, container_size=4, window_size=2, shift_size=1)
    inputs = [torch.randn(layout.num_tokens, 1, 4, dtype=torch.float64, requires_grad=True) for _ in range(3)]
    table = [torch.randn(9, 1, dtype=torch.float64, requires_grad=True)] if with_bias else []
    assert torch.autograd.gradcheck(
        lambda q, k, v, *t: ops.packed_attention(q, k, v, layout, bias_table=t[0] if t else None, window_size=2),
        (*inputs, *table),
    )


def test_inputs_that_are_not_contiguous_attend_alike():
    layout = pack_layout(torch.rand(2, 5, 5) < 0.5, container_size=4, window_size=2)
    qkv = torch.randn(layout.num_tokens, 3, HEADS, HEAD_DIM)
    strided = qkv.unbind(1)
    plain = [t.contiguous() for t in strided]
    assert not strided[0].is_contiguous()
    assert torch.equal(ops.packed_attention(*strided, layout), ops.packed_attention(*plain, layout))


@pytest.mark.parametrize("case", reference.KEEP_CASES)
@pytest.mark.parametrize("order, segment, shift, size", RULES)
def test_mask_given_to_xformers_is_the_slow_mask(order, segment, shift, size, case):
    pytest.importorskip("xformers", reason="xformers is not installed")
    keep = dict(reference.keep_masks(3, 5, 7))[case]
    rule = rule_of(order, segment, shift, size)
    layout = pack_layout(keep, **rule)
    if layout.num_tokens == 0:
        # packed_attention never asks for it then.
        return
    mask = ops.block_diagonal_mask(layout, torch.device("cpu"))
    packed = [b * 35 + i * 7 + j for b, i, j in reference.packed_sequence(keep, WINDOW, shift, order)]
    truth = reference.attention_mask(keep, **rule)[packed][:, packed]
    assert torch.equal(mask.materialize((len(packed), len(packed))) == 0, truth)


def test_relative_bias_is_that_of_true_coordinates():
    keep = dict(reference.keep_masks(2, 6, 9))["some"]
    layout = pack_layout(keep, container_size=10, window_size=WINDOW, shift_size=1)
    table = torch.randn((2 * WINDOW - 1) ** 2, HEADS, dtype=torch.float64)
    actual = ops.relative_bias(layout, table, WINDOW)
    expected = reference.position_bias(table, 2, 6, 9, WINDOW)
    indices = layout.fill_containers(layout.keep_indices + 1) - 1
    for container, bias in zip(indices, actual):
        held = (container >= 0).nonzero().flatten()
        kept = container[held]
        assert torch.equal(bias[:, held][:, :, held], expected[:, kept][:, :, kept])


def test_dropout_drops_weights_and_none_by_default():
    layout = pack_layout(torch.ones(1, 8, 8, dtype=torch.bool), container_size=16, window_size=4)
    q, k = torch.randn(2, 64, HEADS, HEAD_DIM).unbind(0)
    v = torch.ones(64, HEADS, HEAD_DIM)
    assert torch.allclose(ops.packed_attention(q, k, v, layout), v)
    dropped = ops.packed_attention(q, k, v, layout, dropout=0.5)
    assert not torch.allclose(dropped, v) and abs(float(dropped.mean()) - 1.0) < 0.3


def test_empty_slots_do_not_touch_the_result():
    """The same tokens in one exact container and in one with free slots."""
    keep = torch.ones(1, 3, 3, dtype=torch.bool)
    q, k, v = torch.randn(3, 9, HEADS, HEAD_DIM, dtype=torch.float64).unbind(0)
    outs = [ops.packed_attention(q, k, v, pack_layout(keep, container_size=n, window_size=3)) for n in (9, 10, 64)]
    reference.close(outs[1], outs[0])
    reference.close(outs[2], outs[0])


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_autocast_runs_forward_and_backward():
    layout = pack_layout(torch.rand(2, 14, 14, device="cuda") < 0.5, container_size=49, window_size=7)
    for dtype in (torch.float16, torch.bfloat16):
        for table in (None, torch.randn(169, 2, device="cuda", requires_grad=True)):
            with torch.autocast("cuda", dtype=dtype):
                x = torch.randn(layout.num_tokens, 64, device="cuda", requires_grad=True)
                qkv = torch.nn.functional.linear(x, torch.randn(192, 64, device="cuda"))
                q, k, v = qkv.view(-1, 3, 2, 32).unbind(1)
                out = ops.packed_attention(q, k, v, layout, bias_table=table)
            out.float().sum().backward()
            assert out.dtype == dtype and torch.isfinite(out).all() and torch.isfinite(x.grad).all()
            assert table is None or torch.isfinite(table.grad).all()


def test_choice_of_kernel_is_logged_once(caplog):
    ops._log_choice.cache_clear()
    layout = pack_layout(torch.ones(1, 2, 2, dtype=torch.bool), container_size=4, window_size=2)
    q = torch.randn(4, 1, 4)
    with caplog.at_level(logging.INFO, logger=ops.__name__):
        for _ in range(3):
            ops.packed_attention(q, q, q, layout)
    assert [record.getMessage() for record in caplog.records] == [
        "Packed attention on cpu runs on sdpa: xformers' kernels need CUDA."
    ]


@pytest.fixture
def small() -> tuple[Tensor, PackedLayout]:
    return torch.randn(4, 1, 4), pack_layout(torch.ones(1, 2, 2, dtype=torch.bool), container_size=4, window_size=2)


def test_unknown_backend_is_an_error(small):
    q, layout = small
    with pytest.raises(ValueError, match=r"packed_attention\(backend=\) expects one of .*Got 'flash'"):
        ops.packed_attention(q, q, q, layout, backend="flash")


@pytest.mark.parametrize("change", ["k", "v", "tokens", "dims"])
def test_shapes_that_do_not_fit_are_an_error(small, change):
    q, layout = small
    inputs = {"q": q, "k": q, "v": q}
    if change in inputs:
        inputs[change] = torch.randn(4, 1, 8)
    elif change == "tokens":
        inputs = {name: torch.randn(5, 1, 4) for name in inputs}
    else:
        inputs = {name: torch.randn(4, 4) for name in inputs}
    with pytest.raises(ValueError, match=r"expects q, k, v of one shape \(T, h, d\)(.|\n)*layout : 4 tokens"):
        ops.packed_attention(**inputs, layout=layout)


def test_xformers_asked_for_on_the_cpu_is_an_error_that_says_why(small):
    pytest.importorskip("xformers", reason="xformers is not installed")
    q, layout = small
    with pytest.raises(
        ValueError, match=r"backend='xformers'(.|\n)*refused: xformers' kernels need CUDA(.|\n)*HINT: .*'auto'"
    ):
        ops.packed_attention(q, q, q, layout, backend="xformers")


@pytest.mark.parametrize("mode", (torch.inference_mode, torch.no_grad, torch.enable_grad))
@pytest.mark.parametrize("has_bias", (True, False))
def test_kernels_are_tried_alike_by_whoever_asks_first(mode, has_bias):
    """What the first one to ask is told, all others are: those that train, too."""

    def attention(q, k, v, attn_bias):
        return q * k * v if attn_bias is None else (q * k * v).sum() + attn_bias

    mask = SimpleNamespace(from_seqlens=lambda seqlens, device: None)
    fmha = SimpleNamespace(attn_bias=SimpleNamespace(BlockDiagonalMask=mask), memory_efficient_attention=attention)
    with mode():
        assert ops._tried(fmha, torch.device("cpu"), torch.float32, 32, has_bias) == ()
    fmha.memory_efficient_attention = lambda q, k, v, attn_bias: q.detach()
    assert "does not require grad" in ops._tried(fmha, torch.device("cpu"), torch.float32, 32, has_bias)[0]


def test_trying_kernels_within_a_checkpointed_block_is_no_part_of_its_graph():
    """The second pass of a block, for its gradients, asks no more, and must save what the first one did."""
    mask = SimpleNamespace(from_seqlens=lambda seqlens, device: None)
    fmha = SimpleNamespace(
        attn_bias=SimpleNamespace(BlockDiagonalMask=mask),
        memory_efficient_attention=lambda q, k, v, attn_bias: q * k * v,
    )
    asked = []

    def block(x):
        if not asked:
            asked.append(ops._tried(fmha, torch.device("cpu"), torch.float32, 32, False))
        return x.sin() * x

    x = torch.randn(3, requires_grad=True)
    checkpoint(block, x, use_reentrant=False).sum().backward()
    assert asked == [()]
    torch.testing.assert_close(x.grad, (x.cos() * x + x.sin()).detach())


def test_memory_that_runs_out_says_nothing_of_the_kernels():
    def attention(q, k, v, attn_bias):
        raise torch.cuda.OutOfMemoryError("full")

    mask = SimpleNamespace(from_seqlens=lambda seqlens, device: None)
    fmha = SimpleNamespace(attn_bias=SimpleNamespace(BlockDiagonalMask=mask), memory_efficient_attention=attention)
    with pytest.raises(torch.cuda.OutOfMemoryError):
        ops._tried(fmha, torch.device("cpu"), torch.float32, 32, False)


def test_xformers_asked_for_and_not_installed_is_an_error_that_names_the_cure(small, monkeypatch):
    q, layout = small
    monkeypatch.setattr(ops, "_fmha", lambda: None)
    ops._refusals.cache_clear()
    with pytest.raises(ImportError, match=r"needs xformers.\nHINT: pip install 'spt-d2\[xformers\]'"):
        ops.packed_attention(q, q, q, layout, backend="xformers")
    with pytest.raises(ImportError, match="block_diagonal_mask needs xformers"):
        ops.block_diagonal_mask(layout, q.device)
    assert not ops.xformers_available()
    assert ops.packed_attention(q, q, q, layout).shape == q.shape
    ops._refusals.cache_clear()


def test_segments_that_do_not_cover_the_tokens_are_an_error(small):
    pytest.importorskip("xformers", reason="xformers is not installed")
    _, layout = small
    layout = PackedLayout(layout.keep_indices, (4,), (3,), (0,), 4, 1, (2, 2))
    with pytest.raises(
        ValueError, match=r"expects segments that cover the packed tokens.\n  sum\(seqlens\): 3\n  tokens      : 4"
    ):
        ops.block_diagonal_mask(layout, torch.device("cpu"))
