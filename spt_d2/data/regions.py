"""
What the annotations of one image mark for its selection labels (Sec. 3.2, App. B.3), in the augmented image.

An annotation marks its mask, or its box where it has no mask. Annotations that are crowds (``iscrowd``) or ignored
(``ignore``, ``ignored``) mark tokens that take no part in the selection loss, unless an object covers them.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from detectron2.data import transforms as T
from detectron2.structures import BoxMode

from spt_d2.data.visibility import is_lost

# detectron2.data.detection_utils.filter_empty_instances drops boxes whose sides are not longer than this, in pixels.
EMPTY_SIDE = 1e-5


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
        alive=(boxes[:, 2:] - boxes[:, :2] > EMPTY_SIDE).all(axis=1),
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
            if not isinstance(mask, list) and is_lost(regions.masks[index], transforms, original_size):
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
