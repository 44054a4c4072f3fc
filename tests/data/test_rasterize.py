"""Runs and unions of masks, against pycocotools one instance at a time."""

import math

import numpy as np
import pycocotools.mask as mask_util
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spt_d2.data.rasterize import edges_enter, paint_runs, polygon_arrays, polygon_runs, union_rle


def draw_polygon(points, h, w):
    """What pycocotools makes of one polygon."""
    return mask_util.decode(mask_util.frPyObjects([np.asarray(points, float).reshape(-1).tolist()], h, w))[:, :, 0]


def runs_as_masks(runs, count, h, w):
    """One pixel mask per polygon, run by run."""
    masks = np.zeros((count, h, w), dtype=np.uint8)
    for polygon, column, top, bottom in zip(runs.polygon, runs.column, runs.top, runs.bottom, strict=True):
        assert 0 <= top < bottom <= h and 0 <= column < w
        masks[polygon, top:bottom, column] += 1
    assert masks.max(initial=0) <= 1  # a polygon's runs do not overlap
    return masks


# Whole pixels, halves and tenths bring the ties of rounding; any float the rest. Some lie far outside.
number = st.one_of(
    st.integers(-15, 60),
    st.integers(-30, 120).map(lambda n: n / 2),
    st.integers(-150, 600).map(lambda n: n / 10),
    st.floats(-15, 60, allow_nan=False),
    st.sampled_from([-500, 500]),
)
polygon = st.lists(st.tuples(number, number), min_size=3, max_size=9)


@settings(max_examples=400)
@given(polygons=st.lists(polygon, min_size=1, max_size=4), h=st.integers(1, 48), w=st.integers(1, 48))
def test_runs_are_the_pixels_of_pycocotools(polygons, h, w):
    vertices, sizes, instance = polygon_arrays([[np.ravel(points)] for points in polygons])
    assert instance.tolist() == list(range(len(polygons)))
    masks = runs_as_masks(polygon_runs(vertices, sizes, (h, w)), len(polygons), h, w)
    for mask, points in zip(masks, polygons, strict=True):
        np.testing.assert_array_equal(mask, draw_polygon(points, h, w))


def star(rng, x, y, radius, points):
    angle = np.sort(rng.random(points) * 2 * np.pi)
    r = radius * rng.uniform(0.2, 1, points)
    return np.stack([x + r * np.cos(angle), y + r * np.sin(angle)], axis=1)


@pytest.mark.parametrize("stride", [1, 7, 8, 16, 32, 500])
def test_painted_runs_are_the_pooled_union(stride):
    h, w = 203, 301
    rng = np.random.default_rng(0)
    polygons = [star(rng, *rng.uniform(-20, 320, 2), rng.uniform(2, 60), 12) for _ in range(40)]
    vertices, sizes, _ = polygon_arrays([[p.ravel().tolist()] for p in polygons])
    union = np.max([draw_polygon(p, h, w) for p in polygons], axis=0)
    expected = [[union[i : i + stride, j : j + stride].any() for j in range(0, w, stride)] for i in range(0, h, stride)]
    painted = paint_runs(polygon_runs(vertices, sizes, (h, w)), (h, w), stride)
    assert painted.shape == (math.ceil(h / stride), math.ceil(w / stride))
    np.testing.assert_array_equal(painted, expected)


def test_many_polygons_on_a_large_image():
    """More than 31 bits of polygon, column and row."""
    h, w = 3000, 4000
    rng = np.random.default_rng(1)
    polygons = [star(rng, rng.uniform(0, w), rng.uniform(0, h), 9, 6) for _ in range(300)]
    vertices, sizes, _ = polygon_arrays([[p] for p in polygons])
    painted = paint_runs(polygon_runs(vertices, sizes, (h, w)), (h, w), 1)
    merged = mask_util.merge(mask_util.frPyObjects([p.ravel().tolist() for p in polygons], h, w))
    np.testing.assert_array_equal(painted, mask_util.decode(merged))


def test_polygons_with_too_few_points_enclose_nothing():
    vertices, sizes, instance = polygon_arrays([[[1, 1, 9, 9]], [], [[], [5, 5], [2, 2, 8, 2, 8, 8, 2, 8]]])
    assert sizes.tolist() == [2, 0, 1, 4] and instance.tolist() == [0, 2, 2, 2]
    runs = polygon_runs(vertices, sizes, (10, 10))
    assert set(runs.polygon) == {3}
    np.testing.assert_array_equal(paint_runs(runs, (10, 10), 1), draw_polygon([[2, 2], [8, 2], [8, 8], [2, 8]], 10, 10))


def test_no_polygons():
    runs = polygon_runs(*polygon_arrays([])[:2], (10, 12))
    assert len(runs.top) == 0
    assert not paint_runs(runs, (10, 12), 8).any() and paint_runs(runs, (10, 12), 8).shape == (2, 2)


def test_bad_polygons_are_refused():
    with pytest.raises(ValueError, match="pairs of x and y. Got 7"):
        polygon_arrays([[[0, 0, 1, 1, 2, 2, 3]]])
    with pytest.raises(ValueError, match="finite"):
        polygon_runs(np.array([[0, 0], [1, np.nan], [2, 2]]), np.array([3]), (8, 8))


@pytest.mark.parametrize(
    "points, enters",
    [
        ([[2, 2], [2.1, 2], [2.1, 2.1]], True),
        ([[2, 2], [2, 2], [2, 2]], True),
        ([[-5, 4], [20, 4.1], [20, 4]], True),
        ([[-5, 4], [-1, 4], [-1, 8]], False),
        ([[-5, -5], [20, -5], [20, 0]], False),  # touches the corner, and the border above
        ([[0, 0], [10, 0], [10, 0]], False),  # along the border
        ([[-4, 3], [3, -4], [-4, -4]], False),  # its bounding box enters, it does not
        ([[9, -3], [14, 5], [20, -3]], False),
    ],
)
def test_edges_enter_the_open_rectangle(points, enters):
    vertices, sizes, _ = polygon_arrays([[np.ravel(points)], [[2, 2, 8, 2, 8, 8]]])
    assert edges_enter(vertices, sizes, (8, 10)).tolist() == [enters, True]


def random_masks(rng, count, h, w):
    return [(rng.random((h, w)) < rng.uniform(0.02, 0.4)).astype(np.uint8) for _ in range(count)]


def uncompressed(mask):
    # Lengths of the runs of 0, 1, 0, ... down the columns; a 2 behind the last pixel ends the last run.
    changes = np.flatnonzero(np.diff(np.concatenate([[0], mask.ravel(order="F"), [2]])))
    return {"size": list(mask.shape), "counts": np.diff(changes, prepend=0).tolist()}


@pytest.mark.parametrize("count", [1, 2, 5])
@pytest.mark.parametrize("kind", ["compressed", "text", "uncompressed", "mixed"])
def test_union_of_encodings(count, kind):
    h, w = 21, 34
    masks = random_masks(np.random.default_rng(count), count, h, w)
    encoded = []
    for index, mask in enumerate(masks):
        rle = mask_util.encode(np.asfortranarray(mask))
        if kind == "text":
            rle = {**rle, "counts": rle["counts"].decode()}
        if kind == "uncompressed" or (kind == "mixed" and index % 2 == 0):
            rle = uncompressed(mask)
        encoded.append(rle)
    np.testing.assert_array_equal(union_rle(encoded, (h, w)), np.max(masks, axis=0))


def test_union_of_no_encodings_and_of_another_size():
    assert not union_rle([], (3, 4)).any()
    with pytest.raises(ValueError, match=r"encoding: \(3, 5\)\n  image   : \(3, 4\)"):
        union_rle([{"size": [3, 5], "counts": [15]}], (3, 4))
