"""From what the annotations of an image mark to its selection labels, in coordinates of the augmented image."""

import math
from collections.abc import Sequence

import numpy as np
import torch
from detectron2.data import transforms as T
from torch import Tensor

from spt_d2.data.rasterize import Runs, edges_enter, paint_runs, polygon_arrays, polygon_runs
from spt_d2.data.regions import Regions
from spt_d2.data.visibility import cropped_view, is_lost, lie_in, mask_union
from spt_d2.ops.labels import box_labels, combine_labels, pool_labels

# Nearest-neighbour resampling can lose a whole mask only if it is small; smaller ones than this, in pixels of the
# augmented image, are looked at one by one.
_SMALL_SIDE = 8


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
        entering &= [lie_in(view, corners).all() for corners in np.split(vertices, np.cumsum(sizes)[:-1])]
    inside[instance[entering]] = True
    return [index for index, thin in zip(indices, inside & ~covered, strict=True) if thin]


def _split(runs: Runs, ignored: np.ndarray) -> tuple[Runs, ...]:
    """Runs of objects and, where there are any, those of ignore regions; ``ignored`` is (P,) bool."""
    if not ignored.any():
        return (runs,)
    of_ignored = ignored[runs.polygon]
    return runs.take(~of_ignored), runs.take(of_ignored)


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
            union |= transforms.apply_segmentation(mask_union([regions.masks[i] for i in still], original_size)) == 1
            small = [i for i in still if (regions.boxes[i, 2:] - regions.boxes[i, :2]).min() < _SMALL_SIDE]
            lost += [index for index in small if is_lost(regions.masks[index], transforms, original_size)]
        maps[kind] |= pool_labels(torch.from_numpy(union), stride).bool()
    return lost
