"""
How much of an image its objects cover: in pixels, and in tokens of each stride.

Drawn by the code that draws selection labels, so that a token counts here exactly if it is labelled 1 in training, and
a pixel exactly if it would be at stride 1. Crowds and ignore regions cover nothing.

Shape shorthand in this module:

    n: boxes    h, w: image in pixels
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from detectron2.data import transforms as T
from detectron2.structures import BoxMode

from spt_d2.data.label_drawing import draw_labels
from spt_d2.data.object_sizes import annotation_area
from spt_d2.data.rasterize import Runs, polygon_arrays, polygon_runs
from spt_d2.data.regions import Regions, read_regions
from spt_d2.ops.labels import box_labels

_UNCHANGED = T.TransformList([])


@dataclass(frozen=True)
class Coverage:
    """
    What the objects of an image cover.

    Attributes:
        pixels: of the image.
        union: pixels that at least one object covers.
        total: pixels that each object covers, summed over the objects; more than ``pixels`` where many overlap.
        tokens: by stride, those that show an object, and all.
    """

    pixels: int
    union: int
    total: int
    tokens: dict[int, tuple[int, int]]


def measure_coverage(
    annotations: Sequence[Mapping[str, Any]], image_size: tuple[int, int], source: str, strides: Sequence[int] = ()
) -> Coverage:
    """
    Measure one image.

    Args:
        annotations: of the image, in COCO's format.
        image_size: (h, w).
        source: ``box``, ``mask`` or ``auto``, as ``INPUT.SPT.LABEL_SOURCE``: what an annotation that has both marks.
        strides: pixels per token.

    Raises:
        ValueError: a box that is not finite; ``source="mask"`` and an annotation without a mask.
    """
    # Json may write whole sizes with a point.
    image_size = h, w = int(image_size[0]), int(image_size[1])
    records = [{**annotation, "bbox_mode": BoxMode.XYWH_ABS} for annotation in annotations]
    regions = read_regions(records, _UNCHANGED, image_size, source)
    objects = np.flatnonzero(regions.alive & ~regions.ignored)
    masks = [regions.masks[index] if regions.drawn == "mask" else None for index in objects.tolist()]
    labels = draw_labels(regions, _UNCHANGED, image_size, image_size, strides) if strides else {}
    if not any(mask is not None for mask in masks):
        union, total = _box_union(regions.boxes[objects], image_size), int(_box_pixels(regions.boxes[objects]).sum())
    else:
        union, total = _polygon_pixels(masks, image_size) or _drawn_pixels(regions, objects, masks, image_size)
    tokens = {stride: (int((label == 1).sum()), label.numel()) for stride, label in labels.items()}
    return Coverage(h * w, union, total, tokens)


def _whole_pixels(boxes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(n, 2) first pixel, and the one behind the last, of boxes inside the image."""
    return np.floor(boxes[:, :2]).astype(np.int64), np.ceil(boxes[:, 2:]).astype(np.int64)


def _box_pixels(boxes: np.ndarray) -> np.ndarray:
    """(n,) pixels of each box."""
    low, high = _whole_pixels(boxes)
    return np.prod(high - low, axis=1)


def _box_union(boxes: np.ndarray, image_size: tuple[int, int]) -> int:
    """
    Pixels in the union of boxes.

    The boxes' own borders are the grid, at most 2n + 1 lines a side: drawn on it, the union of a handful of boxes takes
    a hundredth of the cells that the image has pixels.
    """
    low, high = _whole_pixels(boxes)
    lines = [
        np.unique(np.concatenate([[0, size], low[:, k], high[:, k]]))
        for k, size in ((0, image_size[1]), (1, image_size[0]))
    ]
    ranks = [np.searchsorted(lines[k], corner[:, k]) for corner in (low, high) for k in (0, 1)]
    cells = box_labels(torch.from_numpy(np.stack(ranks, axis=1)).double(), (len(lines[1]) - 1, len(lines[0]) - 1), 1)
    return int(np.diff(lines[1]) @ (cells.numpy().astype(np.int64) @ np.diff(lines[0])))


def _polygon_pixels(masks: Sequence[Any], image_size: tuple[int, int]) -> tuple[int, int] | None:
    """
    Pixels in the union of masks, and in all of them one by one, from their runs; nothing is drawn.

    Returns:
        both, or None where a mask is no list of polygons or sets no pixel: then a box is drawn in its place.
    """
    if not all(isinstance(mask, list) for mask in masks):
        return None
    h, w = image_size
    vertices, sizes, instance = polygon_arrays(masks)
    runs = polygon_runs(vertices, sizes, image_size)
    owner = instance[runs.polygon]
    if len(np.unique(owner)) < len(masks):
        return None
    # One line of pixels, column after column: of the image, and of each instance, whose own polygons may overlap.
    return _length(runs.column * h, runs), _length((owner * w + runs.column) * h, runs)


def _length(offset: np.ndarray, runs: Runs) -> int:
    """Length of the union of runs, laid on a line from ``offset`` on."""
    order = np.argsort(offset + runs.top)
    begin, end = (offset + runs.top)[order], (offset + runs.bottom)[order]
    reached = np.append(0, np.maximum.accumulate(end)[:-1])
    return int(np.maximum(end - np.maximum(begin, reached), 0).sum())


def _drawn_pixels(
    regions: Regions, objects: np.ndarray, masks: Sequence[Any], image_size: tuple[int, int]
) -> tuple[int, int]:
    """What :func:`_polygon_pixels` gives, for masks of any kind, by drawing them."""
    sizes = _box_pixels(regions.boxes[objects])
    for place, mask in enumerate(masks):
        if isinstance(mask, list):
            # pycocotools takes four numbers for a box.
            mask = [polygon for polygon in mask if len(polygon) >= 6]
        # As in the labels, a mask without a pixel leaves its place to the box.
        if mask:
            sizes[place] = int(annotation_area({"segmentation": mask}, image_size)) or sizes[place]
    label = draw_labels(regions, _UNCHANGED, image_size, image_size, (1,))[1]
    return int((label == 1).sum()), int(sizes.sum())
