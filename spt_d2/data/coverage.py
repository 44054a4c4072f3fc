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

from spt_d2.data.object_sizes import annotation_area
from spt_d2.data.regions import Regions, draw_labels, read_regions
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
    h, w = image_size
    records = [{**annotation, "bbox_mode": BoxMode.XYWH_ABS} for annotation in annotations]
    regions = read_regions(records, _UNCHANGED, image_size, source)
    objects = np.flatnonzero(regions.alive & ~regions.ignored)
    has_masks = regions.drawn == "mask" and any(regions.masks[index] is not None for index in objects.tolist())
    drawn = {*strides, 1} if has_masks else {*strides}
    labels = draw_labels(regions, _UNCHANGED, image_size, image_size, sorted(drawn)) if drawn else {}
    covered = {stride: int((label == 1).sum()) for stride, label in labels.items()}
    sizes = _box_pixels(regions.boxes[objects])
    if has_masks:
        for place, index in enumerate(objects.tolist()):
            # As in the labels, a mask without a pixel leaves its place to the box.
            sizes[place] = _mask_pixels(regions, index, image_size) or sizes[place]
    return Coverage(
        pixels=h * w,
        union=covered[1] if has_masks else _box_union(regions.boxes[objects], image_size),
        total=int(sizes.sum()),
        tokens={stride: (covered[stride], labels[stride].numel()) for stride in strides},
    )


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


def _mask_pixels(regions: Regions, index: int, image_size: tuple[int, int]) -> int:
    """Pixels of an annotation's mask; 0 where it has none, or one of too few corners."""
    mask = regions.masks[index]
    if isinstance(mask, list):
        # pycocotools takes four numbers for a box.
        mask = [polygon for polygon in mask if len(polygon) >= 6]
    return int(annotation_area({"segmentation": mask}, image_size)) if mask else 0
