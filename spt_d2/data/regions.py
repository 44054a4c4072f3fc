"""
From the annotations of one image to its selection labels (Sec. 3.2, App. B.3), in coordinates of the augmented image.

An annotation marks its mask, or its box where it has no mask. Annotations that are crowds (``iscrowd``) or ignored
(``ignore``, ``ignored``) mark tokens that take no part in the selection loss, unless an object covers them.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from detectron2.data import transforms as T
from detectron2.structures import BoxMode
from torch import Tensor

from spt_d2.data.rasterize import Runs, edges_enter, paint_runs, polygon_arrays, polygon_runs, union_rle
from spt_d2.ops.labels import box_labels, combine_labels, pool_labels

# detectron2.data.detection_utils.filter_empty_instances drops boxes whose sides are not longer than this, in pixels.
_EMPTY_SIDE = 1e-5

# Nearest-neighbour resampling can lose a whole mask only if it is small; smaller ones than this, in pixels of the
# augmented image, are looked at one by one.
_SMALL_SIDE = 8


@dataclass
class Regions:
    """
    What the annotations of an image mark.

    Attributes:
        boxes: (n, 4) float32 XYXY, augmented and clipped to the image, as Detectron2's ground truth has them.
        ignored: (n,) bool, crowds and ignored regions.
        masks: per annotation its segmentation in the original image, None where its box stands for it.
        moved: by index, masks that are known in the augmented image already.
        alive: (n,) bool, False for an annotation of which the augmented image shows nothing.
        drawn: "mask" or "box", what marks an annotation that has both.
    """

    boxes: np.ndarray
    ignored: np.ndarray
    masks: list[Any]
    moved: dict[int, Any]
    alive: np.ndarray
    drawn: str


def read_regions(
    annotations: Sequence[dict[str, Any]], transforms: T.TransformList, image_size: tuple[int, int], label_source: str
) -> Regions:
    """
    Collect boxes, masks and flags; boxes are augmented, masks still those of the original image.

    Args:
        annotations: of one image, in Detectron2's format; not changed.
        transforms: what happened to the image.
        image_size: (h, w) after them.
        label_source: ``auto`` takes masks where there are any, ``box`` none, ``mask`` insists on them.

    Raises:
        ValueError: a box that is not finite; ``label_source="mask"`` and an annotation without a mask.
    """
    h, w = image_size
    boxes = _read_boxes(annotations)
    if not np.isfinite(boxes).all():
        index = int((~np.isfinite(boxes)).any(axis=1).argmax())
        raise ValueError(f"An annotation's bbox expects finite numbers. Got {annotations[index]['bbox']}.")
    if len(boxes):
        # Detectron2's Boxes are float32, which also forgives what a resize leaves behind whole numbers.
        boxes = np.clip(transforms.apply_box(boxes), 0, [w, h, w, h]).astype(np.float32)
    masks = [annotation.get("segmentation") for annotation in annotations]
    masks = [None if mask is None or len(mask) == 0 else mask for mask in masks]
    if label_source == "mask" and any(mask is None for mask in masks):
        raise ValueError(
            f"label_source='mask' expects a segmentation in every annotation. Got none in {masks.count(None)} "
            f"of {len(masks)}.\nHINT: label_source='auto' takes the box of those (INPUT.SPT.LABEL_SOURCE)."
        )
    flags = [bool(a.get("iscrowd", 0) or a.get("ignore", 0) or a.get("ignored", 0)) for a in annotations]
    return Regions(
        boxes=boxes,
        ignored=np.array(flags, dtype=bool),
        masks=masks,
        moved={},
        alive=(boxes[:, 2:] - boxes[:, :2] > _EMPTY_SIDE).all(axis=1),
        drawn="box" if label_source == "box" else "mask",
    )


def _read_boxes(annotations: Sequence[dict[str, Any]]) -> np.ndarray:
    """(n, 4) float64 XYXY; lists pass through float32 as in BoxMode.convert, so that both round alike."""
    boxes = [annotation["bbox"] for annotation in annotations]
    modes = {annotation["bbox_mode"] for annotation in annotations}
    plain = all(isinstance(box, (list, tuple)) for box in boxes)
    if not annotations:
        return np.zeros((0, 4))
    if (plain and modes <= {BoxMode.XYWH_ABS}) or modes <= {BoxMode.XYXY_ABS}:
        array = np.array(boxes, dtype=np.float32 if plain and modes == {BoxMode.XYWH_ABS} else np.float64)
        if modes == {BoxMode.XYWH_ABS}:
            array[:, 2:] += array[:, :2]
        return array.astype(np.float64)
    converted = [BoxMode.convert(a["bbox"], a["bbox_mode"], BoxMode.XYXY_ABS) for a in annotations]
    return np.array(converted, dtype=np.float64).reshape(-1, 4)


def adopt_moved(
    regions: Regions,
    annotations: Sequence[dict[str, Any]],
    transforms: T.TransformList,
    original_size: tuple[int, int],
    tighten: bool,
) -> None:
    """
    Take over the masks that Detectron2's mapper has augmented for its instances, in place of augmenting them again.

    What a crop has left nothing of is no longer alive; the mapper drops it as well.

    Args:
        regions: of the same annotations; changed in place.
        annotations: after ``transform_instance_annotations``, which rewrites ``segmentation`` and skips crowds.
        transforms: what happened to the image.
        original_size: (h, w) before it.
        tighten: whether boxes become those of the masks, as the mapper's ``recompute_boxes`` makes them.
    """
    for index, annotation in enumerate(annotations):
        mask = annotation.get("segmentation")
        if annotation.get("iscrowd", 0) or regions.masks[index] is None:
            continue
        empty = len(mask) == 0 if isinstance(mask, list) else not np.any(mask == 1)
        if empty:
            if not isinstance(mask, list) and _is_lost(regions.masks[index], transforms, original_size):
                regions.masks[index] = None
            else:
                regions.alive[index] = False
            continue
        regions.moved[index] = mask
        if tighten:
            regions.boxes[index] = _tight_box(mask)


def _tight_box(mask: Any) -> np.ndarray:
    """XYXY of polygons or of a bitmask; neither is empty."""
    if isinstance(mask, list):
        points = np.concatenate([np.asarray(polygon).reshape(-1, 2) for polygon in mask])
        return np.concatenate([points.min(axis=0), points.max(axis=0)])
    rows, columns = (np.flatnonzero((mask == 1).any(axis=axis)) for axis in (1, 0))
    return np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1])


def draw_labels(
    regions: Regions,
    transforms: T.TransformList,
    original_size: tuple[int, int],
    image_size: tuple[int, int],
    strides: Sequence[int],
) -> dict[int, Tensor]:
    """
    Make the selection labels of an image.

    Args:
        regions: what is marked.
        transforms: what happened to the image.
        original_size, image_size: (h, w) before and after it.
        strides: pixels per token.

    Returns:
        ``{stride: (ceil(h / stride), ceil(w / stride)) uint8}``: 1 object, 0 background, 255 ignored.
    """
    base = math.gcd(*strides)
    by_box: list[int] = []
    by_polygon: list[int] = []
    by_pixel: list[int] = []
    for index in np.flatnonzero(regions.alive).tolist():
        mask = regions.masks[index] if regions.drawn == "mask" else None
        (by_box if mask is None else by_polygon if isinstance(mask, list) else by_pixel).append(index)
    # Objects, then ignore regions, on the coarsest grid that all strides are multiples of.
    maps = torch.zeros(2, -(-image_size[0] // base), -(-image_size[1] // base), dtype=torch.bool)
    if by_polygon:
        by_box += _mark_polygons(maps, regions, by_polygon, transforms, image_size, base)
    if by_pixel:
        by_box += _mark_pixels(maps, regions, by_pixel, transforms, original_size, image_size, base)
    for kind, chosen in _by_kind(regions, by_box):
        maps[kind] |= box_labels(torch.from_numpy(regions.boxes[chosen]), image_size, base).bool()
    label = combine_labels(maps[0], maps[1])
    return {stride: pool_labels(label, stride // base) for stride in strides}


def _by_kind(regions: Regions, indices: list[int]) -> list[tuple[int, list[int]]]:
    """Split annotations into objects (0) and ignore regions (1), leaving out what has none."""
    kinds = [(kind, [i for i in indices if regions.ignored[i] == bool(kind)]) for kind in (0, 1)]
    return [(kind, chosen) for kind, chosen in kinds if chosen]


def _mark_polygons(
    maps: Tensor,
    regions: Regions,
    indices: list[int],
    transforms: T.TransformList,
    image_size: tuple[int, int],
    stride: int,
) -> list[int]:
    """Mark polygons in ``maps``; return the annotations whose polygons are too thin to cover a pixel's centre."""
    vertices, sizes, instance = polygon_arrays([regions.moved.get(i, regions.masks[i]) for i in indices])
    view = None
    still = np.array([i not in regions.moved for i in indices])
    if still.any():
        still = np.repeat(still[instance], sizes)
        vertices[still] = transforms.apply_coords(vertices[still])
        view = cropped_view(transforms, image_size)
    runs = polygon_runs(vertices, sizes, image_size)

    ignored = regions.ignored[indices][instance]
    for kind, chosen in enumerate(_split(runs, ignored)):
        if len(chosen.top) == 0:
            continue
        pixels = paint_runs(chosen, image_size, stride if view is None else 1)
        if view is None:
            maps[kind] |= torch.from_numpy(pixels)
        else:
            maps[kind] |= pool_labels(torch.from_numpy(pixels & view), stride).bool()

    if view is not None:
        above = np.pad(view.cumsum(axis=0), ((1, 0), (0, 0)))
        runs = runs.take(above[runs.bottom, runs.column] > above[runs.top, runs.column])
    covered = np.zeros(len(indices), dtype=bool)
    covered[instance[runs.polygon]] = True
    if covered.all():
        return []
    inside = np.zeros(len(indices), dtype=bool)
    entering = edges_enter(vertices, sizes, image_size)
    if view is not None:
        entering &= [_lie_in(view, corners).all() for corners in np.split(vertices, np.cumsum(sizes)[:-1])]
    inside[instance[entering]] = True
    return [index for index, thin in zip(indices, inside & ~covered, strict=True) if thin]


def _split(runs: Runs, ignored: np.ndarray) -> tuple[Runs, ...]:
    """Runs of objects and, where there are any, those of ignore regions; ``ignored`` is (P,) bool."""
    if not ignored.any():
        return (runs,)
    of_ignored = ignored[runs.polygon]
    return runs.take(~of_ignored), runs.take(of_ignored)


def cropped_view(transforms: T.TransformList, image_size: tuple[int, int]) -> np.ndarray | None:
    """
    Part of the augmented image that shows something, where a crop is followed by what lets its outside reappear.

    A crop's outside lies outside the image, until a rotation or padding brings its coordinates back in. Nothing is
    there: polygons have to end where the crop did, and a mask that comes out empty was too small to draw, and is not
    one that the crop cut away, only if all of it lies in the view.

    Args:
        transforms: what happened to the image.
        image_size: (h, w) after it.

    Returns:
        (h, w) bool, or None for the whole image.
    """
    h, w = image_size
    view = None
    for index, transform in enumerate(transforms.transforms):
        rest = transforms.transforms[index + 1 :]
        if not isinstance(transform, T.CropTransform) or not rest:
            continue
        window = np.array([[0, 0], [transform.w, 0], [transform.w, transform.h], [0, transform.h]], dtype=np.float64)
        window = T.TransformList(rest).apply_coords(window)
        upright = np.isclose(window, np.roll(window, 1, axis=0)).any(axis=1).all()
        if upright and (window.min(axis=0) <= 1e-3).all() and (window.max(axis=0) >= np.array([w, h]) - 1e-3).all():
            continue
        seen = paint_runs(polygon_runs(window, np.array([4]), image_size), image_size, 1)
        view = seen if view is None else view & seen
    return view


def _mark_pixels(
    maps: Tensor,
    regions: Regions,
    indices: list[int],
    transforms: T.TransformList,
    original_size: tuple[int, int],
    image_size: tuple[int, int],
    stride: int,
) -> list[int]:
    """Mark run-length encodings and bitmasks in ``maps``; return the annotations whose masks the resampling lost."""
    lost = []
    for kind, chosen in _by_kind(regions, indices):
        union = np.zeros(image_size, dtype=bool)
        for index in chosen:
            if index in regions.moved:
                union |= regions.moved[index] == 1
        still = [index for index in chosen if index not in regions.moved]
        if still:
            # Resampling takes each pixel from one place: that of the union is the union of all, and is made once.
            # What is not 1 afterwards is background, or what a transform padded with.
            union |= transforms.apply_segmentation(_union([regions.masks[i] for i in still], original_size)) == 1
            small = [i for i in still if (regions.boxes[i, 2:] - regions.boxes[i, :2]).min() < _SMALL_SIDE]
            lost += [index for index in small if _is_lost(regions.masks[index], transforms, original_size)]
        maps[kind] |= pool_labels(torch.from_numpy(union), stride).bool()
    return lost


def _union(masks: list[Any], size: tuple[int, int]) -> np.ndarray:
    """Union of run-length encodings and bitmasks of one image, (h, w) uint8, 1 or 0."""
    encoded = [mask for mask in masks if isinstance(mask, dict)]
    union = union_rle(encoded, size)
    for mask in masks:
        if isinstance(mask, np.ndarray):
            if mask.shape != tuple(size):
                raise ValueError(
                    f"A bitmask expects the size of its image.\n  bitmask: {mask.shape}\n  image  : {tuple(size)}"
                )
            union |= mask != 0
        elif not isinstance(mask, dict):
            raise TypeError(
                "A segmentation expects polygons as a list, a run-length encoding as a dict, or a bitmask as an array. "
                f"Got {type(mask).__name__}."
            )
    return union


def _is_lost(mask: Any, transforms: T.TransformList, size: tuple[int, int]) -> bool:
    """Whether the augmented image shows the place of a mask, but not one of its pixels."""
    pixels = _union([mask], size)
    augmented = transforms.apply_segmentation(pixels)
    if (augmented == 1).any():
        return False
    rows, columns = np.nonzero(pixels)
    if len(rows) == 0:
        return True  # there never was a mask
    centres = transforms.apply_coords(np.stack([columns, rows], axis=1) + 0.5)
    view = cropped_view(transforms, augmented.shape[:2])
    if view is not None:
        return bool(_lie_in(view, centres).all())
    return bool(_lie_in(np.ones(augmented.shape[:2], dtype=bool), centres).any())


def _lie_in(view: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Which of the points (k, 2) lie where ``view`` (h, w) is set: (k,) bool."""
    inside = np.asarray(np.logical_and(points > 0, points < view.shape[::-1]).all(axis=1))
    columns, rows = np.floor(np.where(inside[:, None], points, 0)).astype(np.int64).T
    return inside & view[rows, columns]
