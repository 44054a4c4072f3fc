"""Segments of whole images: their packing and attention, against loops and dense attention with a mask."""

import pytest
import torch
from torch import Tensor

from spt_d2.ops import attention as ops
from spt_d2.ops.packing import pack_layout
from spt_d2.ops.selection import BlockSelection, split_selections
from tests import reference

HEADS, HEAD_DIM, WINDOW = 2, 4, 3
RULES = [pytest.param(order, shift, id=f"{order}-shift{shift}") for order in ("window", "raster") for shift in (0, 1)]


def rule_of(order: str, shift: int) -> dict:
    return {
        "container_size": WINDOW**2,
        "window_size": WINDOW,
        "shift_size": shift,
        "order": order,
        "segment": "image",
    }


@pytest.mark.parametrize("case", reference.KEEP_CASES)
@pytest.mark.parametrize("order, shift", RULES)
def test_a_segment_is_all_that_an_image_kept(order, shift, case):
    keep = dict(reference.keep_masks(3, 5, 7))[case]
    layout = pack_layout(keep, **rule_of(order, shift))
    expected = reference.packed_sequence(keep, WINDOW, shift, order)
    assert layout.keep_indices.tolist() == [b * 35 + i * 7 + j for b, i, j in expected]
    counts = keep.flatten(1).sum(dim=1).tolist()
    assert list(layout.counts) == counts
    assert list(layout.seqlens) == [count for count in counts if count]
    held = [b for b, count in enumerate(counts) if count]
    assert [held[k] for k in layout.segment_ids.tolist()] == [b for b, _, _ in expected]


@pytest.mark.parametrize("case", reference.KEEP_CASES)
def test_every_pair_computed_is_a_pair_within_an_image(case):
    keep = dict(reference.keep_masks(3, 5, 7))[case]
    layout = pack_layout(keep, **rule_of("window", 1))
    pairs = int(reference.attention_mask(keep, **rule_of("window", 1)).sum())
    assert layout.executed_pairs == layout.useful_pairs == pairs


def compare_with_dense(keep: Tensor, rule: dict, dtype: torch.dtype, device: torch.device, backend: str = "auto"):
    """Forward, and the gradients of q, k and v."""
    total = keep.numel()
    inputs = [torch.randn(total, HEADS, HEAD_DIM, dtype=dtype, device=device) for _ in range(3)]
    weight = torch.randn(total, HEADS, HEAD_DIM, dtype=dtype, device=device)
    fast = [t.clone().requires_grad_() for t in inputs]
    layout = pack_layout(keep.to(device), **rule)
    packed = ops.packed_attention(*(t[layout.keep_indices] for t in fast), layout, backend=backend)
    assert packed.shape == (int(keep.sum()), HEADS, HEAD_DIM) and packed.dtype == dtype
    out = torch.zeros(total, HEADS, HEAD_DIM, dtype=dtype, device=device).index_copy(0, layout.keep_indices, packed)
    (out * weight).sum().backward()

    # The truth is computed in a precision above that of half inputs.
    work = dtype if dtype.itemsize >= 4 else torch.float32
    slow = [t.to(work).requires_grad_() for t in inputs]
    expected = reference.dense_attention(*slow, reference.attention_mask(keep, **rule).to(device))
    (expected * weight.to(work)).sum().backward()
    reference.close(out, expected.detach().to(dtype))
    for actual, truth in zip(fast, slow):
        assert actual.grad is not None
        reference.close(actual.grad, truth.grad.to(dtype))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("grid", [(5, 7), (1, 1)], ids=str)
@pytest.mark.parametrize("order, shift", RULES)
def test_attention_equals_dense_attention(order, shift, grid, dtype, device):
    for _, keep in reference.keep_masks(3, *grid):
        compare_with_dense(keep, rule_of(order, shift), dtype, device)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
def test_xformers_kernels_equal_dense_attention(dtype, monkeypatch):
    monkeypatch.setattr(f"{__name__}.HEAD_DIM", 32)
    device = torch.device("cuda")
    reasons = ops._refusals(device, dtype, 32, False)
    if reasons:
        pytest.skip("xformers refuses the input: " + "; ".join(reasons))
    for _, keep in reference.keep_masks(3, 6, 8):
        compare_with_dense(keep, rule_of("window", 1), dtype, device, backend="xformers")


@pytest.mark.parametrize("case", [case for case in reference.KEEP_CASES if case != "nothing"])
def test_mask_given_to_xformers_is_the_slow_mask(case):
    pytest.importorskip("xformers", reason="xformers is not installed")
    keep, rule = dict(reference.keep_masks(3, 5, 7))[case], rule_of("window", 1)
    mask = ops.block_diagonal_mask(pack_layout(keep, **rule), torch.device("cpu"))
    packed = [b * 35 + i * 7 + j for b, i, j in reference.packed_sequence(keep, WINDOW, 1, "window")]
    truth = reference.attention_mask(keep, **rule)[packed][:, packed]
    assert torch.equal(mask.materialize((len(packed), len(packed))) == 0, truth)


def test_gradcheck():
    layout = pack_layout(torch.rand(2, 3, 4) < 0.5, **rule_of("window", 0))
    inputs = [torch.randn(layout.num_tokens, 1, 4, dtype=torch.float64, requires_grad=True) for _ in range(3)]
    assert torch.autograd.gradcheck(lambda q, k, v: ops.packed_attention(q, k, v, layout), inputs)


def test_dropout_drops_weights_and_none_by_default():
    layout = pack_layout(torch.ones(2, 8, 8, dtype=torch.bool), **rule_of("window", 0))
    q, k = torch.randn(2, 128, HEADS, HEAD_DIM).unbind(0)
    v = torch.ones(128, HEADS, HEAD_DIM)
    assert torch.allclose(ops.packed_attention(q, k, v, layout), v)
    dropped = ops.packed_attention(q, k, v, layout, dropout=0.5)
    assert not torch.allclose(dropped, v) and abs(float(dropped.mean()) - 1.0) < 0.3


def test_memory_is_that_of_the_longest_image_not_of_the_batch(monkeypatch):
    """No call of the kernel sees more than one image, nor a mask."""
    calls = []
    kernel = torch.nn.functional.scaled_dot_product_attention

    def spy(q, k, v, attn_mask=None, **kwargs):
        calls.append((tuple(q.shape), attn_mask))
        return kernel(q, k, v, attn_mask=attn_mask, **kwargs)

    monkeypatch.setattr(ops.F, "scaled_dot_product_attention", spy)
    keep = torch.zeros(3, 6, 6, dtype=torch.bool)
    keep[0], keep[2, :2] = True, True
    layout = pack_layout(keep, **rule_of("window", 0))
    q = torch.randn(layout.num_tokens, HEADS, HEAD_DIM)
    ops.packed_attention(q, q, q, layout)
    assert calls == [((1, HEADS, 36, HEAD_DIM), None), ((1, HEADS, 12, HEAD_DIM), None)]


def test_an_image_is_billed_its_own_pairs():
    keep = torch.zeros(3, 4, 4, dtype=torch.bool)
    keep[0], keep[2, 0, :3] = True, True
    layout = pack_layout(keep, **rule_of("window", 0))
    valid = torch.ones_like(keep)
    selection = BlockSelection(1, 0, 16, torch.zeros(3, 4, 4), keep, valid, layout)
    split = split_selections([selection], [(64, 64)] * 3, (64, 64))
    assert [image.blocks[0].useful_pairs for image in split] == [256.0, 0.0, 9.0]
    assert [image.blocks[0].executed_pairs for image in split] == pytest.approx([256.0, 0.0, 9.0])


def test_there_are_no_containers_to_fill():
    layout = pack_layout(torch.ones(1, 2, 2, dtype=torch.bool), **rule_of("window", 0))
    assert layout.is_ragged
    for use in (lambda: layout.fill_containers(torch.zeros(4, 1)), lambda: layout.container_mask):
        with pytest.raises(ValueError, match="expects containers of one length(.*)Got segment='image'"):
            use()


def test_a_bias_over_whole_images_is_an_error_that_names_the_cure():
    layout = pack_layout(torch.ones(1, 2, 2, dtype=torch.bool), **rule_of("window", 0))
    q, table = torch.randn(4, 1, 4), torch.zeros((2 * WINDOW - 1) ** 2, 1)
    with pytest.raises(ValueError, match=r"bias_table=\) expects containers of one length(.|\n)*HINT: position 'rope'"):
        ops.packed_attention(q, q, q, layout, bias_table=table, window_size=WINDOW)
