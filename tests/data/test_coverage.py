"""What objects cover, against every annotation drawn alone and every cell looked at."""

import numpy as np
import pytest

from spt_d2.data.coverage import measure_coverage
from tests.data.scenes import STRIDES, H, W, annotation, draw, draw_mask, mask_object, polygon_object, truth


def random_boxes(rng, count):
    """Boxes of all sizes; some on whole pixels, some reaching over the image, some outside, some of no area."""
    boxes = []
    for index in range(count):
        x, y = rng.uniform(-20, W), rng.uniform(-20, H)
        w, h = rng.uniform(0, 40, 2) * (rng.random(2) > 0.1)
        box = [float(v) for v in (x, y, w, h)]
        boxes.append(annotation([float(round(v)) for v in box] if index % 3 == 0 else box))
    return boxes


def with_crowds(annotations):
    for index, anno in enumerate(annotations):
        anno["iscrowd"] = int(index % 5 == 1)
        anno["ignored"] = int(index % 5 == 2)
    return annotations


def mixed_objects(rng):
    kinds = [
        polygon_object(rng),
        polygon_object(rng, 3),
        mask_object(rng, "compressed"),
        mask_object(rng, "uncompressed"),
    ]
    return [*kinds, *random_boxes(rng, 3), polygon_object(rng), mask_object(rng, "compressed")]


def assert_equal_to_truth(annotations, source, coverage):
    labels = truth(annotations, [], (1, *STRIDES), use_mask=source != "box")
    objects = [anno for anno in annotations if not anno["iscrowd"] and not anno.get("ignored")]
    assert coverage.pixels == H * W
    assert coverage.union == int((labels[1] == 1).sum())
    assert coverage.total == sum(int(draw(anno, [], source != "box").sum()) for anno in objects)
    expected = {s: (int((labels[s] == 1).sum()), labels[s].numel()) for s in STRIDES}
    assert coverage.tokens == expected


@pytest.mark.parametrize("count", [0, 1, 2, 7, 60])
def test_boxes_cover_what_they_cover_when_drawn_one_by_one(count):
    annotations = random_boxes(np.random.default_rng(count), count)
    assert_equal_to_truth(annotations, "box", measure_coverage(annotations, (H, W), "box", STRIDES))


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("source", ["auto", "box"])
def test_masks_and_boxes_together(seed, source):
    annotations = mixed_objects(np.random.default_rng(seed))
    assert_equal_to_truth(annotations, source, measure_coverage(annotations, (H, W), source, STRIDES))


def overlapping_polygons(rng):
    """Objects of one polygon and of several, which overlap each other and themselves."""
    objects = [polygon_object(rng, points) for points in (3, 5, 8, 13, 8, 8)]
    whole = [annotation([0.0, 0.0, float(W), float(H)], segmentation=[*one["segmentation"], *other["segmentation"]])
             for one, other in zip(objects[::2], objects[1::2])]  # fmt: skip
    return [*objects, *whole, annotation([5.0, 5.0, 50.0, 50.0], segmentation=2 * [[5, 5, 55, 5, 55, 55, 5, 55]])]


@pytest.mark.parametrize("seed", range(6))
def test_polygons_alone_are_measured_without_being_drawn(seed, monkeypatch):
    annotations = overlapping_polygons(np.random.default_rng(seed))
    annotations = [anno for anno in annotations if draw_mask(anno, []).any()]
    assert len(annotations) > 6
    monkeypatch.setattr("spt_d2.data.coverage._drawn_pixels", None)
    assert_equal_to_truth(annotations, "mask", measure_coverage(annotations, (H, W), "mask", STRIDES))


@pytest.mark.parametrize("source", ["auto", "box"])
def test_crowds_and_ignore_regions_cover_nothing(source):
    rng = np.random.default_rng(7)
    annotations = with_crowds([*mixed_objects(rng), *random_boxes(rng, 8)])
    assert_equal_to_truth(annotations, source, measure_coverage(annotations, (H, W), source, STRIDES))
    crowds = [anno for anno in annotations if anno["iscrowd"] or anno["ignored"]]
    assert crowds and measure_coverage(crowds, (H, W), source).union == 0


def test_objects_that_overlap_count_once_in_the_union_and_each_in_the_sum():
    square = annotation([10.0, 10.0, 20.0, 20.0])
    coverage = measure_coverage([square, square, annotation([20.0, 20.0, 20.0, 20.0])], (H, W), "box")
    assert (coverage.union, coverage.total) == (400 + 400 - 100, 1200)


def test_without_strides_no_tokens_are_counted():
    coverage = measure_coverage([annotation([0.0, 0.0, 8.0, 8.0])], (H, W), "box")
    assert coverage.tokens == {} and coverage.union == 64


def test_a_mask_too_thin_for_a_pixel_leaves_its_place_to_the_box():
    thin = annotation([10.0, 10.0, 20.0, 0.2], segmentation=[[10, 10, 30, 10.0, 30, 10.2, 10, 10.2]])
    coverage = measure_coverage([thin], (H, W), "mask")
    assert (coverage.union, coverage.total) == (20, 20)


def test_mask_insists_on_masks():
    with pytest.raises(ValueError, match="expects a segmentation in every annotation"):
        measure_coverage([annotation([1.0, 1.0, 5.0, 5.0])], (H, W), "mask")
