"""
Are the masks of a COCO json polygons that enclose something, or run-length encodings of their image's size?

A mask that cannot be used is replaced by the outline of its box in a clean copy, as selection labels take the box where
a mask comes out empty.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np

from spt_d2.data.coco_check.draft import Draft
from spt_d2.data.progress import Progress
from spt_d2.data.rasterize import polygon_runs

# Annotations whose polygons are looked at together: some MB of corners.
_CHUNK = 20_000

_CURE = "puts the outline of the box in their place"


def check_masks(draft: Draft, progress: Progress) -> None:
    """
    Find masks that Detectron2 drops, or that no reader understands.

    Args:
        draft: after boxes and references were checked.
        progress: sees chunks of annotations go by.
    """
    records = draft.records()
    masks: list[Any] = [record.get("segmentation") for record in records]
    sizes = draft.annotation_sizes()
    kinds = np.array([_kind(mask) for mask in masks])
    faults = np.full(len(masks), "", dtype="<U16")
    faults[kinds == "other"] = "mask_format"
    chunks = range(0, len(masks), _CHUNK)
    for begin in progress(chunks, len(chunks), "looking at masks"):
        chosen = begin + np.flatnonzero(kinds[begin : begin + _CHUNK] == "polygons")
        for index, fault in _polygon_faults(masks, sizes, chosen.tolist()):
            faults[index] = fault
            if fault == "polygon_part":
                draft.change(index, segmentation=_usable(masks[index], sizes[index]))
    for index in np.flatnonzero(kinds == "rle").tolist():
        faults[index] = _rle_fault(masks[index], sizes[index])

    for fault, error, what in (
        ("mask_format", True, "have a segmentation that is neither a list of polygons nor a run-length encoding"),
        (
            "polygon",
            True,
            "have no polygon that encloses something in the image; Detectron2 drops some of those",
        ),
        ("rle_size", True, "have a run-length encoding of another size than their image"),
        ("rle_counts", True, "have a run-length encoding whose runs do not add up to its size"),
        ("rle_empty", False, "have a run-length encoding without a pixel"),
    ):
        draft.add_annotations(fault, error, faults == fault, what, drop=False, cure=_CURE)
        draft.outline(faults == fault)
    draft.add_annotations(
        "polygon_part",
        False,
        faults == "polygon_part",
        "have a polygon among others that encloses nothing, or nothing in the image",
        drop=False,
        cure="leaves out those polygons",
    )
    objects = draft.keep_annotations & np.array([not record.get("iscrowd", 0) for record in records], dtype=bool)
    without = objects & (kinds == "none")
    if (objects & (kinds != "none")).any():
        draft.add_annotations(
            "mask_missing",
            False,
            without,
            "have no mask where others have; training with masks stops at them",
            drop=False,
            cure=_CURE,
        )
        draft.outline(without)
    draft.add_annotations(
        "rle_object",
        False,
        objects & (kinds == "rle"),
        "are objects with a run-length encoding; training with masks expects INPUT.MASK_FORMAT bitmask",
        drop=False,
        cure="keeps them as they are",
    )


def _kind(mask: Any) -> str:
    if isinstance(mask, dict):
        return "rle" if mask else "none"
    if isinstance(mask, list):
        return "none" if not mask else "polygons" if all(isinstance(polygon, list) for polygon in mask) else "other"
    return "none" if mask is None else "other"


def _corners(polygon: list[Any]) -> np.ndarray | None:
    """(k, 2) of a flat list of at least three finite corners; None for anything else, which Detectron2 drops."""
    if len(polygon) < 6 or len(polygon) % 2:
        return None
    try:
        values = np.array(polygon)
    except ValueError:
        return None
    if values.ndim != 1 or values.dtype.kind not in "if" or not np.isfinite(values).all():
        return None
    return values.astype(np.float64).reshape(-1, 2)


def _polygon_faults(masks: list[Any], sizes: np.ndarray, indices: list[int]) -> Iterator[tuple[int, str]]:
    """The annotations some of whose polygons are no good (``polygon_part``), or all (``polygon``)."""
    corners: list[np.ndarray] = []
    owners: list[int] = []
    faulty: dict[int, int] = {}
    for index in indices:
        for polygon in masks[index]:
            found = _corners(polygon)
            if found is None:
                faulty[index] = faulty.get(index, 0) + 1
            else:
                corners.append(found)
                owners.append(index)
    for place in np.flatnonzero(~_enclosing(corners, sizes[owners])).tolist():
        faulty[owners[place]] = faulty.get(owners[place], 0) + 1
    for index, count in faulty.items():
        yield index, "polygon" if count == len(masks[index]) else "polygon_part"


def _usable(mask: list[Any], size: np.ndarray) -> list[Any]:
    """The polygons of a mask that are good."""
    found = [(polygon, corners) for polygon in mask if (corners := _corners(polygon)) is not None]
    good = _enclosing([corners for _, corners in found], np.tile(size, (len(found), 1)))
    return [polygon for (polygon, _), ok in zip(found, good.tolist()) if ok]


def _enclosing(polygons: list[np.ndarray], sizes: np.ndarray) -> np.ndarray:
    """
    Which polygons enclose an area that reaches into their image.

    Args:
        polygons: (k, 2) corners each, three or more.
        sizes: (P, 2) h and w of the image of each; NaN where not known.

    Returns:
        (P,) bool.
    """
    if not polygons:
        return np.ones(0, dtype=bool)
    lengths = np.array([len(polygon) for polygon in polygons])
    begins = np.cumsum(lengths) - lengths
    vertices = np.concatenate(polygons)
    low, high = np.minimum.reduceat(vertices, begins), np.maximum.reduceat(vertices, begins)
    # The surveyor's formula, from a corner of each polygon so that no digits are lost.
    x, y = (vertices - np.repeat(vertices[begins], lengths, axis=0)).T
    after = np.arange(1, len(vertices) + 1)
    after[begins + lengths - 1] = begins
    area = np.abs(np.add.reduceat(x * y[after] - x[after] * y, begins)) / 2
    inside = (high > 0).all(axis=1) & ~(low >= sizes[:, ::-1]).any(axis=1)
    flat = area <= 1e-9 * (1 + (high - low).max(axis=1)) ** 2
    known = np.isfinite(sizes).all(axis=1)
    for place in np.flatnonzero(flat & inside & known & ((high - low) > 0).all(axis=1)).tolist():
        # The two halves of an eight cancel out, and yet there are pixels in them.
        h, w = sizes[place].astype(int).tolist()
        flat[place] = len(polygon_runs(polygons[place], lengths[place : place + 1], (h, w)).top) == 0
    return inside & ~flat


def _rle_fault(mask: dict[str, Any], size: np.ndarray) -> str:
    """What is wrong with a run-length encoding; empty for nothing."""
    stated = mask.get("size")
    if not isinstance(stated, list) or len(stated) != 2 or not all(type(side) is int for side in stated):
        return "rle_size"
    if not np.isnan(size).any() and stated != size.tolist():
        return "rle_size"
    counts = mask.get("counts")
    if isinstance(counts, str):
        runs = rle_runs(counts)
    else:
        good = isinstance(counts, list) and all(type(run) is int for run in counts)
        runs = np.array(counts, dtype=np.int64) if good else None
    if runs is None or (runs < 0).any() or runs.sum() != stated[0] * stated[1]:
        return "rle_counts"
    return "" if runs[1::2].any() else "rle_empty"


def rle_runs(text: str) -> np.ndarray | None:
    """
    Runs of 0, 1, 0, ... that a compressed run-length encoding holds, without drawing it.

    Each run is written in characters of five bits, the lowest first, a sixth bit saying that more follow, the last of
    five the sign; from the fourth on a run is the difference from the one two before (COCO's ``maskApi.c``).

    Returns:
        (runs,) int64, or None where the text cannot be such an encoding.
    """
    codes = np.frombuffer(text.encode("utf-8"), dtype=np.uint8).astype(np.int64) - 48
    if len(codes) == 0 or codes.min() < 0 or codes.max() > 63 or codes[-1] & 32:
        return None
    ends = np.flatnonzero(~codes & 32)
    begins = np.append(0, ends[:-1] + 1)
    digits = ends - begins + 1
    if digits.max() > 10:
        return None
    values = np.add.reduceat((codes & 31) << 5 * (np.arange(len(codes)) - np.repeat(begins, digits)), begins)
    values -= ((codes[ends] & 16) > 0).astype(np.int64) << 5 * digits
    for chain in (values[1::2], values[2::2]):
        np.cumsum(chain, out=chain)
    return values
