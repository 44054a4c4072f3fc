"""
Draw the instances of one image: polygons, run-length encodings and bitmasks, as pycocotools does, and their union.

Polygons are never drawn instance by instance. :func:`polygon_runs` computes, for all of them at once, the vertical runs
of pixels that pycocotools would set, and :func:`paint_runs` marks the cells those runs touch, at any stride. Both are
exact, and cost a fraction of encoding, merging, decoding and pooling pixel masks.

Shape shorthand in this module:

    P: polygons    V: vertices of all polygons    R: runs    h, w: image in pixels    Hs, Ws = ceil(h / s), ceil(w / s)
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pycocotools.mask as mask_util

# pycocotools draws on a grid five times as fine, and reads off pixel columns at their centre: between the third and the
# fourth of a pixel's five sub-columns.
_FINE = 5
_CENTRE = 2

_FAR = float(1 << 40)


@dataclass(frozen=True)
class Runs:
    """
    Vertical runs of covered pixels; one polygon may have several in a column.

    Attributes:
        polygon: (R,) index of the polygon.
        column: (R,) pixel column.
        top, bottom: (R,) the rows [top, bottom) are covered; top < bottom.
    """

    polygon: np.ndarray
    column: np.ndarray
    top: np.ndarray
    bottom: np.ndarray

    def take(self, chosen: np.ndarray) -> "Runs":
        """The runs at an index or (R,) bool."""
        return Runs(self.polygon[chosen], self.column[chosen], self.top[chosen], self.bottom[chosen])


def polygon_runs(vertices: np.ndarray, sizes: np.ndarray, image_size: tuple[int, int]) -> Runs:
    """
    Pixels that pycocotools sets for each polygon (``frPyObjects``), without drawing them.

    It walks each edge on the fine grid and records where it crosses the centre of a pixel column; between two crossings
    of a column the polygon is inside (even-odd rule). Here the crossings of all edges are computed at once.

    Args:
        vertices: (V, 2) x and y in pixels, polygon after polygon; they may lie outside the image.
        sizes: (P,) vertices per polygon. Fewer than three enclose nothing.
        image_size: (h, w).

    Returns:
        the runs inside the image, sorted by polygon, column and row.

    Raises:
        ValueError: a coordinate that is not finite.
    """
    h, w = image_size
    if not np.isfinite(vertices).all():
        raise ValueError("polygon_runs(vertices=) expects finite coordinates. Got NaN or infinity.")
    if len(vertices) == 0:
        return Runs(*(np.zeros(0, np.int64),) * 4)
    # Far outside the image only the side matters; the bound keeps every product below exact.
    start = np.trunc(np.clip(vertices, -_FAR, _FAR) * _FINE + 0.5)
    stop = start[_successors(sizes)]

    # Each edge runs along its longer side from the lower end, so that both directions give the same pixels.
    dx, dy = (stop - start).T
    steep = np.abs(dy) > np.abs(dx)
    run = np.where(steep, dy, dx)
    slope = np.where(steep, dx, dy) / (run + (run == 0))
    x0, y0 = np.where(run < 0, stop.T, start.T)

    # One entry per edge and column whose centre the edge crosses.
    x_low, x_high = np.minimum(start[:, 0], stop[:, 0]), np.maximum(start[:, 0], stop[:, 0])
    first = np.maximum(np.ceil((x_low - _CENTRE) / _FINE), 0).astype(np.int64)
    last = np.minimum(np.floor((x_high - _CENTRE - 1) / _FINE), w - 1).astype(np.int64)
    count = np.maximum(last - first + 1, 0)
    edge = np.repeat(np.arange(len(start)), count)
    column = np.arange(len(edge)) + (first - np.cumsum(count) + count)[edge]

    # Its fine row: the lesser of those just left and just right of the centre. The rounding, in float64, is that of
    # pycocotools, (int)(y0 + slope * step + 0.5).
    nearer = _CENTRE - x0 + (slope < 0)
    slopes = slope[edge]
    y = np.floor(y0[edge] + slopes * (column * _FINE + nearer[edge]) + 0.5)
    upright = np.flatnonzero(steep[edge])
    if len(upright):
        chosen = edge[upright]
        y[upright] = _steep_rows(x0[chosen], y0[chosen], slopes[upright], column[upright] * _FINE + _CENTRE + 1)
    row = np.ceil((y - _CENTRE) / _FINE).clip(0, h).astype(np.int64)

    # Crossings sort by (polygon, column, row), packed into one integer, as short a one as will do.
    row_bits, column_bits = int(h).bit_length(), int(w).bit_length()
    small = len(sizes) << row_bits + column_bits < 1 << 31
    owner = np.repeat(np.arange(len(sizes)) << row_bits + column_bits, sizes)
    key = (owner[edge] | column << row_bits | row).astype(np.int32 if small else np.int64)
    key.sort()
    begin, end = key[0::2], key[1::2]  # a closed line crosses a column an even number of times
    solid = np.flatnonzero(end > begin)
    begin, end = begin[solid].astype(np.int64), end[solid].astype(np.int64)
    row_mask, column_mask = (1 << row_bits) - 1, (1 << column_bits) - 1
    return Runs(
        polygon=begin >> row_bits + column_bits,
        column=(begin >> row_bits) & column_mask,
        top=begin & row_mask,
        bottom=end & row_mask,
    )


def _successors(sizes: np.ndarray) -> np.ndarray:
    """Index of the next vertex on each polygon's closed line."""
    ends = np.cumsum(sizes)
    following = np.arange(1, int(sizes.sum()) + 1)
    filled = sizes > 0
    following[ends[filled] - 1] = (ends - sizes)[filled]
    return following


def _steep_rows(x0: np.ndarray, y0: np.ndarray, slope: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Fine row at which edges that descend by one row a step are last on their side of fine column ``right``."""
    # First step on the far side: a guess, put right by the very expression that decides.
    step = np.ceil((right - 0.5 - x0) / slope)
    rising = slope > 0
    step -= (x0 + slope * (step - 1) + 0.5 >= right) == rising
    step += (x0 + slope * step + 0.5 >= right) != rising
    return y0 + step - 1


def paint_runs(runs: Runs, image_size: tuple[int, int], stride: int) -> np.ndarray:
    """
    Cells that hold a pixel of any run.

    Args:
        runs: inside the image.
        image_size: (h, w).
        stride: pixels per cell; 1 gives the pixel mask.

    Returns:
        (Hs, Ws) bool.
    """
    rows, columns = -(-image_size[0] // stride), -(-image_size[1] // stride)
    # Along each column +1 where a run begins and -1 behind its last cell; the running sum counts the runs in a cell.
    offset = runs.column // stride * (rows + 1)
    change = np.bincount(offset + runs.top // stride, minlength=columns * (rows + 1))
    change -= np.bincount(offset + (runs.bottom - 1) // stride + 1, minlength=columns * (rows + 1))
    covered = change.reshape(columns, rows + 1)[:, :rows].cumsum(axis=1) > 0
    return np.ascontiguousarray(covered.T)


def edges_enter(vertices: np.ndarray, sizes: np.ndarray, image_size: tuple[int, int]) -> np.ndarray:
    """
    Tell polygons that are too thin to set a pixel from those that lie outside the image.

    Args:
        vertices, sizes, image_size: as in :func:`polygon_runs`.

    Returns:
        (P,) bool, True where an edge passes through the open rectangle (0, w) x (0, h).
    """
    h, w = image_size
    owner = np.repeat(np.arange(len(sizes)), sizes)
    start, step = vertices, vertices[_successors(sizes)] - vertices
    bound = np.array([w, h], dtype=np.float64)
    # Share of each edge, from `enter` to `leave`, that lies within both pairs of sides.
    with np.errstate(divide="ignore", invalid="ignore"):
        a, b = -start / step, (bound - start) / step
    level = step == 0
    inside = (start > 0) & (start < bound)
    enter = np.where(level, np.where(inside, -np.inf, np.inf), np.minimum(a, b)).max(axis=1)
    leave = np.where(level, np.where(inside, np.inf, -np.inf), np.maximum(a, b)).min(axis=1)
    enter, leave = np.maximum(enter, 0), np.minimum(leave, 1)
    point = level.all(axis=1) & inside.all(axis=1)
    hit = np.zeros(len(sizes), dtype=bool)
    hit[owner[(enter < leave) | point]] = True
    return hit


def polygon_arrays(segmentations: Sequence[Sequence[Any]]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """
    Lay the polygons of several instances one after another.

    Args:
        segmentations: per instance its polygons, each flat ``[x1, y1, x2, y2, ...]`` or of shape (k, 2).

    Returns:
        vertices (V, 2) float64, a copy; sizes (P,); instance (P,), the index of the polygon's instance.

    Raises:
        ValueError: an odd number of coordinates.
    """
    polygons = [np.asarray(polygon, dtype=np.float64).reshape(-1) for polygons in segmentations for polygon in polygons]
    lengths = np.array([len(polygon) for polygon in polygons], dtype=np.int64)
    if (lengths % 2).any():
        odd = int(lengths[lengths % 2 == 1][0])
        raise ValueError(f"A polygon expects pairs of x and y. Got {odd} coordinates.")
    vertices = np.concatenate(polygons).reshape(-1, 2) if polygons else np.zeros((0, 2))
    instance = np.repeat(np.arange(len(segmentations)), [len(polygons) for polygons in segmentations])
    return vertices, lengths // 2, instance


def union_rle(segmentations: Sequence[dict[str, Any]], image_size: tuple[int, int]) -> np.ndarray:
    """
    Union of run-length encodings, compressed or not: merged first, decoded once.

    Args:
        segmentations: dicts with ``size`` [h, w] and ``counts`` (bytes, str or list).
        image_size: (h, w) that every one of them must have.

    Returns:
        (h, w) uint8, 1 or 0.

    Raises:
        ValueError: an encoding of another size.
    """
    for segmentation in segmentations:
        if tuple(segmentation["size"]) != tuple(image_size):
            raise ValueError(
                "A run-length encoding expects the size of its image.\n"
                f"  encoding: {tuple(segmentation['size'])}\n  image   : {tuple(image_size)}"
            )
    if not segmentations:
        return np.zeros(image_size, dtype=np.uint8)
    encoded = [_compress(segmentation) for segmentation in segmentations]
    return mask_util.decode(mask_util.merge(encoded) if len(encoded) > 1 else encoded[0])


def _compress(segmentation: dict[str, Any]) -> dict[str, Any]:
    """A run-length encoding in the compressed form that pycocotools computes with."""
    if isinstance(segmentation["counts"], (list, tuple, np.ndarray)):
        return mask_util.frPyObjects({**segmentation, "counts": list(segmentation["counts"])}, *segmentation["size"])
    return segmentation
