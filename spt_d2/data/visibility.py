"""
What an augmentation leaves of a mask: which part of the augmented image shows something, and whether a mask is in it.

Shape shorthand in this module:

    h, w: image in pixels    k: points
"""

from typing import Any

import numpy as np
from detectron2.data import transforms as T

from spt_d2.data.rasterize import paint_runs, polygon_runs, union_rle


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


def is_lost(mask: Any, transforms: T.TransformList, size: tuple[int, int]) -> bool:
    """Whether the augmented image shows the place of a mask, but not one of its pixels."""
    pixels = mask_union([mask], size)
    augmented = transforms.apply_segmentation(pixels)
    if (augmented == 1).any():
        return False
    rows, columns = np.nonzero(pixels)
    if len(rows) == 0:
        return True  # there never was a mask
    centres = transforms.apply_coords(np.stack([columns, rows], axis=1) + 0.5)
    view = cropped_view(transforms, augmented.shape[:2])
    if view is not None:
        return bool(lie_in(view, centres).all())
    return bool(lie_in(np.ones(augmented.shape[:2], dtype=bool), centres).any())


def lie_in(view: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Which of the points (k, 2) lie where ``view`` (h, w) is set: (k,) bool."""
    inside = np.asarray(np.logical_and(points > 0, points < view.shape[::-1]).all(axis=1))
    columns, rows = np.floor(np.where(inside[:, None], points, 0)).astype(np.int64).T
    return inside & view[rows, columns]


def mask_union(masks: list[Any], size: tuple[int, int]) -> np.ndarray:
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
