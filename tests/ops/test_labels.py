"""Selection labels on tensors, against masks drawn pixel by pixel."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from spt_d2.ops.labels import box_labels, combine_labels, pool_labels, stack_selection_labels

STRIDES = (1, 3, 4, 8, 16, 32)


def draw_boxes(boxes, h, w):
    """Pixel mask of a union of boxes: each pixel asks each box."""
    mask = torch.zeros(h, w, dtype=torch.uint8)
    for x1, y1, x2, y2 in boxes:
        x1, x2 = max(x1, 0), min(x2, w)
        y1, y2 = max(y1, 0), min(y2, h)
        if x1 >= x2 or y1 >= y2:
            continue
        for i in range(h):
            for j in range(w):
                if math.floor(y1) <= i < math.ceil(y2) and math.floor(x1) <= j < math.ceil(x2):
                    mask[i, j] = 1
    return mask


def coarsen(mask, stride):
    """Cell by cell: 1 if any pixel is 1, else 255 if any is 255, else 0."""
    h, w = mask.shape
    label = torch.zeros(math.ceil(h / stride), math.ceil(w / stride), dtype=torch.uint8)
    for i in range(label.shape[0]):
        for j in range(label.shape[1]):
            cell = set(mask[i * stride : (i + 1) * stride, j * stride : (j + 1) * stride].flatten().tolist())
            label[i, j] = 1 if 1 in cell else max(cell)
    return label


WORKED = {
    "one token": ([[1.0, 1.0, 7.0, 7.0]], [[1, 0, 0], [0, 0, 0]]),
    "touches the edge of its token only": ([[0.0, 0.0, 8.0, 8.0]], [[1, 0, 0], [0, 0, 0]]),
    "a hair beyond it": ([[0.0, 0.0, 8.001, 8.0]], [[1, 1, 0], [0, 0, 0]]),
    "begins in the last pixel of a token": ([[7.5, 7.5, 9.0, 9.0]], [[1, 1, 0], [1, 1, 0]]),
    "partial cells at the border count": ([[16.0, 8.0, 17.0, 9.0]], [[0, 0, 0], [0, 0, 1]]),
    "reaches over the image": ([[-50.0, -50.0, 50.0, 50.0]], [[1, 1, 1], [1, 1, 1]]),
    "left of it": ([[-9.0, 0.0, 0.0, 9.0]], [[0, 0, 0], [0, 0, 0]]),
    "right of it, in the padding of the last cell": ([[20.0, 0.0, 23.0, 9.0]], [[0, 0, 0], [0, 0, 0]]),
    "no width": ([[5.5, 1.0, 5.5, 7.0]], [[0, 0, 0], [0, 0, 0]]),
    "corners swapped": ([[7.0, 7.0, 1.0, 1.0]], [[0, 0, 0], [0, 0, 0]]),
    "none": ([], [[0, 0, 0], [0, 0, 0]]),
    "union, not sum": ([[0.0, 0.0, 4.0, 4.0]] * 3 + [[17.0, 0.0, 18.0, 1.0]], [[1, 0, 1], [0, 0, 0]]),
}


@pytest.mark.parametrize("boxes, expected", WORKED.values(), ids=WORKED)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_box_labels_by_hand(boxes, expected, dtype):
    label = box_labels(torch.tensor(boxes, dtype=dtype).view(-1, 4), (12, 20), 8)
    assert label.dtype == torch.uint8
    assert label.tolist() == expected


# Quarters: fractions and whole numbers both come up, and both are exact.
coordinate = st.integers(-40, 160).map(lambda n: n / 4)


@settings(max_examples=60, deadline=None)
@given(
    boxes=st.lists(st.tuples(coordinate, coordinate, coordinate, coordinate), max_size=5),
    size=st.tuples(st.integers(1, 37), st.integers(1, 37)),
)
def test_box_labels_equal_pooled_pixels(boxes, size):
    mask = draw_boxes(boxes, *size)
    for stride in STRIDES:
        label = box_labels(torch.tensor(boxes, dtype=torch.float32).view(-1, 4), size, stride)
        assert torch.equal(label, coarsen(mask, stride)), stride


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_box_that_is_not_finite_is_refused(bad):
    boxes = torch.tensor([[0.0, 0, 1, 1], [0, bad, 1, 1]])
    with pytest.raises(ValueError, match="finite.* at index 1"):
        box_labels(boxes, (8, 8), 8)


@pytest.mark.parametrize(
    "boxes, size, stride, message",
    [
        (torch.zeros(4), (8, 8), 8, r"expects \(n, 4\)"),
        (torch.zeros(2, 4, dtype=torch.long), (8, 8), 8, "float dtype"),
        (torch.zeros(2, 4), (0, 8), 8, "at least one pixel"),
        (torch.zeros(2, 4), (8, 8), 0, r"stride=\) expects at least 1"),
    ],
)
def test_box_labels_name_what_is_wrong(boxes, size, stride, message):
    with pytest.raises(ValueError, match=message):
        box_labels(boxes, size, stride)


@settings(max_examples=40, deadline=None)
@given(size=st.tuples(st.integers(1, 40), st.integers(1, 40)), seed=st.integers(0, 999), factor=st.integers(1, 33))
def test_pooling_equals_the_cell_loop(size, seed, factor):
    generator = torch.Generator().manual_seed(seed)
    label = torch.tensor([0, 0, 0, 1, 255], dtype=torch.uint8)[torch.randint(0, 5, size, generator=generator)]
    assert torch.equal(pool_labels(label, factor), coarsen(label, factor))
    assert torch.equal(pool_labels(label == 1, factor), coarsen((label == 1).to(torch.uint8), factor))


def test_pooling_in_steps_equals_pooling_at_once():
    label = torch.tensor([0, 0, 0, 0, 1, 255], dtype=torch.uint8)[torch.randint(0, 6, (53, 71))]
    assert torch.equal(pool_labels(pool_labels(label, 8), 4), pool_labels(label, 32))


def test_pooling_by_one_copies():
    label = torch.zeros(2, 2, dtype=torch.uint8)
    pool_labels(label, 1)[0, 0] = 1
    assert label.sum() == 0


def test_pooling_refuses_what_is_no_label():
    with pytest.raises(ValueError, match="bool or uint8"):
        pool_labels(torch.zeros(2, 2), 2)
    with pytest.raises(ValueError, match="at least 1"):
        pool_labels(torch.zeros(2, 2, dtype=torch.bool), 0)


@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8])
def test_objects_win_over_ignored(dtype):
    objects = torch.tensor([[1, 1, 0, 0]], dtype=dtype)
    ignored = torch.tensor([[0, 1, 1, 0]], dtype=dtype)
    assert combine_labels(objects, ignored).tolist() == [[1, 1, 255, 0]]
    with pytest.raises(ValueError, match="one shape"):
        combine_labels(objects, ignored[:, :2])


def make_labels(h, w, strides=(8, 16), value=1):
    return {s: torch.full((math.ceil(h / s), math.ceil(w / s)), value, dtype=torch.uint8) for s in strides}


def test_stacked_labels_are_padded_with_ignored():
    batch = stack_selection_labels([make_labels(20, 40), make_labels(30, 17, value=0)], (64, 64), "cpu")
    assert sorted(batch) == [8, 16]
    assert batch[8].shape == (2, 8, 8) and batch[16].shape == (2, 4, 4)
    for stride, stacked in batch.items():
        for image, (h, w, value) in enumerate([(20, 40, 1), (30, 17, 0)]):
            for i in range(stacked.shape[1]):
                for j in range(stacked.shape[2]):
                    inside = i * stride < h and j * stride < w
                    assert stacked[image, i, j] == (value if inside else 255)


def test_stacked_labels_of_an_odd_input_size():
    assert stack_selection_labels([make_labels(20, 40)], (20, 41))[16].tolist() == [[[1, 1, 1], [1, 1, 1]]]


def test_stacking_does_not_alias_its_input():
    labels = make_labels(16, 16)
    stack_selection_labels([labels], (16, 16))[8].zero_()
    assert labels[8].all()


def test_stacking_names_what_is_wrong():
    with pytest.raises(ValueError, match="at least one image"):
        stack_selection_labels([], (64, 64))
    with pytest.raises(ValueError, match=r"same strides[\s\S]*image 1: \[8\]"):
        stack_selection_labels([make_labels(20, 40), make_labels(20, 40, (8,))], (64, 64))
    with pytest.raises(
        ValueError, match=r"fit into the padded input[\s\S]*\(3, 5\) at stride 8, image 0[\s\S]*\(3, 4\)"
    ):
        stack_selection_labels([make_labels(20, 40)], (20, 32))
    with pytest.raises(ValueError, match="uint8 at stride 8"):
        stack_selection_labels([{8: torch.zeros(2, 2)}], (16, 16))
    with pytest.raises(ValueError, match="uint8 at stride 8"):
        stack_selection_labels([{8: torch.zeros(1, 2, 2, dtype=torch.uint8)}], (16, 16))
