"""Rows padded to the batch's fullest image, against loops that fill them one token at a time, and dense attention."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from spt_d2.ops import attention as ops
from spt_d2.ops.packing import pack_layout
from spt_d2.ops.padding import PaddedLayout, pad_layout
from spt_d2.ops.selection import BlockSelection, split_selections
from tests import reference

HEADS, HEAD_DIM, WINDOW = 2, 4, 3
KINDS = (*reference.ORDERS_AND_SEGMENTS, ("window", "image"), ("raster", "image"))
RULES = [
    pytest.param(order, segment, shift, size, id=f"{order}-{segment}-shift{shift}-L{size}")
    for order, segment in KINDS
    for shift in (0, 1)
    for size in ({"window": (9, 13), "image": (9,)}.get(segment, (9, 4)))
]


def rule_of(order: str, segment: str, shift: int, size: int) -> dict:
    return {
        "container_size": size,
        "window_size": WINDOW,
        "shift_size": shift,
        "order": order,
        "segment": segment,
    }


@st.composite
def cases(draw) -> tuple[Tensor, dict, PaddedLayout]:
    """A keep mask whose images differ in density, a rule that goes together, and the padded layout."""
    shape = draw(st.tuples(st.integers(1, 4), st.integers(1, 8), st.integers(1, 8)))
    order, segment = draw(st.sampled_from(KINDS))
    rule = rule_of(order, segment, draw(st.integers(0, 1)), draw(st.integers(9 if segment == "window" else 1, 20)))
    density = torch.tensor([draw(st.sampled_from([0.0, 0.2, 0.7, 1.0])) for _ in range(shape[0])])
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    keep = torch.rand(shape, generator=generator) < density[:, None, None]
    return keep, rule, pad_layout(pack_layout(keep, **rule))


def slow_rows(keep: Tensor, rule: dict) -> list[list[int]]:
    """Per image the flat indices of its tokens, in packed order, then -1 up to the length of the longest row."""
    batch, height, width = keep.shape
    rows: list[list[int]] = [[] for _ in range(batch)]
    for b, i, j in reference.packed_sequence(keep, rule["window_size"], rule["shift_size"], rule["order"]):
        rows[b].append((b * height + i) * width + j)
    longest = max(map(len, rows))
    return [row + [-1] * (longest - len(row)) for row in rows]


def slow_containers(keep: Tensor, rule: dict) -> list[list[list[int]]]:
    """Per image the flat indices in each of its containers: of an image packed as if it were alone, but shared ones."""
    batch, height, width = keep.shape
    names = reference.segment_of_tokens(keep, **rule)
    size = rule["container_size"] if rule["segment"] != "image" else len(slow_rows(keep, rule)[0])
    images: list[list[list[int]]] = []
    for b in range(batch):
        containers: list[list[int]] = []
        own = [token for token in names if token[0] == b]
        for _, group in itertools.groupby(own, key=names.__getitem__):
            tokens = [(b * height + i) * width + j for _, i, j in group]
            if not containers or len(containers[-1]) + len(tokens) > size:
                containers.append([])
            containers[-1] += tokens
        images.append(containers)
    return images


@settings(max_examples=150)
@given(cases())
def test_rows_are_filled_as_by_hand(case):
    keep, rule, layout = case
    expected = slow_rows(keep, rule)
    rows = layout.pad(layout.keep_indices + 1).view(keep.shape[0], layout.row_length) - 1
    assert rows.tolist() == expected
    assert layout.rows.counts == (layout.row_length,) * keep.shape[0]
    # Every slot stands on a token of its row's image.
    assert layout.rows.image_ids.tolist() == [b for b, row in enumerate(expected) for _ in row]
    held = [index for row in expected for index in row if index >= 0]
    assert layout.rows.keep_indices[layout.row_places].tolist() == held


@settings(max_examples=150)
@given(cases())
def test_what_was_padded_is_as_it_was(case):
    keep, rule, layout = case
    plain = pack_layout(keep, **rule)
    assert torch.equal(layout.keep_indices, plain.keep_indices)
    for name in ("counts", "seqlens", "segment_starts", "num_tokens", "useful_pairs", "is_ragged"):
        assert getattr(layout, name) == getattr(plain, name), name
    x = torch.randn(layout.num_tokens, 3)
    assert plain.rows is plain and plain.pad(x) is x and plain.unpad(x) is x


@settings(max_examples=150)
@given(cases())
def test_containers_are_counted_within_each_row(case):
    keep, rule, layout = case
    expected, rows = slow_containers(keep, rule), layout.rows
    per_row = max(map(len, expected))
    assert rows.num_containers == keep.shape[0] * per_row
    if rule["segment"] in ("container", "image"):
        assert per_row == -(-layout.row_length // rows.container_size)
    assert layout.executed_pairs == rows.num_containers * rows.container_size**2
    if not layout.num_tokens:
        return
    filled = rows.fill_containers(layout.pad(layout.keep_indices + 1)) - 1
    held = [[index for index in container if index >= 0] for container in filled.tolist()]
    filler: list[list[int]] = [[]]
    assert held == [c for containers in expected for c in containers + filler * (per_row - len(containers))]
    # No slot of a row is without its slot in a container, and none has two.
    assert len(set(rows.slots.tolist())) == rows.num_tokens == sum(rows.seqlens) and min(rows.seqlens) > 0
    if rule["segment"] == "container":
        straight = rows.fill_containers(torch.arange(1, rows.num_tokens + 1)).view(keep.shape[0], -1)
        assert straight[:, : layout.row_length].flatten().tolist() == list(range(1, rows.num_tokens + 1))
        assert not straight[:, layout.row_length :].any()


@settings(max_examples=150)
@given(cases())
def test_tokens_see_those_that_the_slow_mask_lets_them_and_no_empty_slot(case):
    keep, rule, layout = case
    if not layout.num_tokens:
        return
    truth, mask = reference.attention_mask(keep, **rule), layout.rows.container_mask[:, 0]
    indices = layout.rows.fill_containers(layout.pad(layout.keep_indices + 1)) - 1
    seen = 0
    for container, sees in zip(indices, mask):
        held = container >= 0
        kept = container[held]
        assert torch.equal(sees[held][:, held], truth[kept[:, None], kept[None, :]])
        assert not sees[held][:, ~held].any() and not sees[~held][:, held].any()
        assert sees.any(dim=-1).all(), "a row that sees nothing gives NaN"
        seen += int(sees[held][:, held].sum())
    assert seen == int(truth.sum()) == layout.useful_pairs


def test_worked_example():
    keep = torch.tensor([[[1, 1, 1, 1], [1, 0, 1, 0]], [[0, 1, 0, 0], [0, 0, 0, 0]]], dtype=torch.bool)
    layout = pad_layout(pack_layout(keep, container_size=4, window_size=2, order="raster"))
    assert layout.pad(layout.keep_indices).tolist() == [0, 1, 2, 3, 4, 6, 9, 0, 0, 0, 0, 0]
    rows = layout.rows
    assert rows.keep_indices.tolist() == [0, 1, 2, 3, 4, 6, 9, 8, 8, 8, 8, 8]
    assert rows.seqlens == (4, 2, 1, 3, 2)
    assert rows.segment_starts == (0, 4, 8, 9, 12)
    assert (rows.num_containers, rows.container_size) == (4, 4)
    # Containers would have been three.
    assert (layout.executed_pairs, layout.useful_pairs) == (4 * 16, 16 + 4 + 1)


@pytest.mark.parametrize("order, segment", KINDS)
def test_a_batch_of_one_has_nothing_to_pad(order, segment):
    keep = dict(reference.keep_masks(1, 5, 7))["some"]
    plain = pack_layout(keep, **rule_of(order, segment, 1, 10))
    layout = pad_layout(plain)
    assert torch.equal(layout.rows.keep_indices, plain.keep_indices)
    assert layout.rows.seqlens == plain.seqlens and layout.rows.segment_starts == plain.segment_starts
    assert layout.executed_pairs == plain.executed_pairs


def test_padding_and_its_inverse_pass_gradients_through():
    keep = torch.zeros(3, 3, 4, dtype=torch.bool)
    keep[0, 0], keep[2] = True, True
    layout = pad_layout(pack_layout(keep, container_size=4, window_size=2))
    tokens = torch.randn(layout.num_tokens, 2, dtype=torch.float64, requires_grad=True)
    assert torch.equal(layout.unpad(layout.pad(tokens)), tokens)
    assert torch.autograd.gradcheck(layout.pad, tokens)
    rows = layout.pad(tokens.detach()).requires_grad_()
    assert rows.shape == (36, 2)
    assert torch.autograd.gradcheck(layout.unpad, rows)


def compare_with_dense(
    keep: Tensor, rule: dict, dtype: torch.dtype, with_bias: bool, device: torch.device, backend: str = "auto"
) -> None:
    """Forward and the gradients of q, k, v and the table, whatever stands in the empty slots."""
    batch, height, width = keep.shape
    total = keep.numel()
    inputs = [torch.randn(total, HEADS, HEAD_DIM, dtype=dtype, device=device) for _ in range(3)]
    if with_bias:
        inputs.append(torch.randn((2 * WINDOW - 1) ** 2, HEADS, dtype=dtype, device=device))
    weight = torch.randn(total, HEADS, HEAD_DIM, dtype=dtype, device=device)

    fast = [t.clone().requires_grad_() for t in inputs]
    layout = pad_layout(pack_layout(keep.to(device), **rule))
    empty = layout.pad(torch.ones(layout.num_tokens, 1, 1, dtype=dtype, device=device)) == 0
    rubbish = [100 * torch.randn(batch * layout.row_length, HEADS, HEAD_DIM).to(weight) for _ in range(3)]
    q, k, v = (torch.where(empty, r, layout.pad(t[layout.keep_indices])) for t, r in zip(fast, rubbish))
    table = fast[3] if with_bias else None
    rows = ops.packed_attention(q, k, v, layout.rows, bias_table=table, window_size=WINDOW, backend=backend)
    assert rows.shape == (batch * layout.row_length, HEADS, HEAD_DIM) and rows.dtype == dtype
    out = torch.zeros_like(weight).index_copy(0, layout.keep_indices, layout.unpad(rows))
    (out * weight).sum().backward()

    # The truth is computed in a precision above that of half inputs.
    work = dtype if dtype.itemsize >= 4 else torch.float32
    slow = [t.to(work).requires_grad_() for t in inputs]
    bias = reference.position_bias(slow[3], batch, height, width, WINDOW) if with_bias else None
    expected = reference.dense_attention(*slow[:3], reference.attention_mask(keep, **rule).to(device), bias)
    (expected * weight.to(work)).sum().backward()
    reference.close(out, expected.detach().to(dtype))
    for actual, truth in zip(fast, slow):
        assert actual.grad is not None
        reference.close(actual.grad, truth.grad.to(dtype))


@pytest.mark.parametrize("with_bias", [False, True], ids=["no_bias", "bias"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("order, segment, shift, size", RULES)
def test_attention_over_rows_equals_dense_attention(order, segment, shift, size, dtype, with_bias, device):
    for _, keep in reference.keep_masks(3, 5, 7):
        compare_with_dense(keep, rule_of(order, segment, shift, size), dtype, with_bias, device)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("with_bias", [False, True], ids=["no_bias", "bias"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("order, segment", KINDS)
def test_xformers_kernels_over_rows_equal_dense_attention(order, segment, dtype, with_bias, monkeypatch):
    device = torch.device("cuda")
    monkeypatch.setattr(f"{__name__}.HEAD_DIM", 32)
    reasons = ops._refusals(device, dtype, 32, with_bias)
    if reasons:
        pytest.skip("xformers refuses the input: " + "; ".join(reasons))
    for _, keep in reference.keep_masks(3, 6, 8):
        compare_with_dense(keep, rule_of(order, segment, 1, 9), dtype, with_bias, device, backend="xformers")


@pytest.mark.parametrize("case", [case for case in reference.KEEP_CASES if case != "nothing"])
@pytest.mark.parametrize("order, segment, shift, size", RULES)
def test_mask_given_to_xformers_is_the_slow_mask_between_tokens(order, segment, shift, size, case):
    pytest.importorskip("xformers", reason="xformers is not installed")
    keep, rule = dict(reference.keep_masks(3, 5, 7))[case], rule_of(order, segment, shift, size)
    layout = pad_layout(pack_layout(keep, **rule))
    slots = layout.rows.num_tokens
    sees = ops.block_diagonal_mask(layout.rows, torch.device("cpu")).materialize((slots, slots)) == 0
    indices = torch.tensor(slow_rows(keep, rule)).flatten()
    held = indices >= 0
    truth = reference.attention_mask(keep, **rule)[indices[held]][:, indices[held]]
    assert torch.equal(sees[held][:, held], truth)
    assert not sees[held][:, ~held].any() and not sees[~held][:, held].any()


@pytest.mark.parametrize("segment", ["container", "image"])
def test_every_image_is_billed_a_row_and_its_padding(segment):
    keep = torch.zeros(3, 4, 4, dtype=torch.bool)
    keep[0], keep[2, 0, :3] = True, True
    plain = pack_layout(keep, **rule_of("window", segment, 0, 9))
    scores, valid = torch.zeros(3, 4, 4), torch.ones_like(keep)
    images = [
        [
            image.blocks[0]
            for image in split_selections(
                [BlockSelection(1, 0, 16, scores, keep, valid, layout)], [(64, 64)] * 3, (64, 64)
            )
        ]
        for layout in (pad_layout(plain), plain)
    ]
    row = 256.0 if segment == "image" else 2 * 81.0
    assert [block.executed_pairs for block in images[0]] == pytest.approx([row] * 3)
    assert [block.padding for block in images[0]] == [0, 16, 13]
    assert [block.padding for block in images[1]] == [0, 0, 0]
    for padded, packed in zip(*images):
        assert (padded.kept, padded.useful_pairs) == (packed.kept, packed.useful_pairs)
