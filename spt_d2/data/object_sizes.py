"""The objects of an image with COCO's area of each, for selection figures by object size."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pycocotools.mask as mask_util
import torch
from detectron2.structures import BoxMode
from torch import Tensor

from spt_d2.data.rasterize import union_rle
from spt_d2.data.regions import Regions


def sized_objects(
    regions: Regions, annotations: Sequence[Mapping[str, Any]], image_size: tuple[int, int]
) -> tuple[Tensor, Tensor]:
    """
    Boxes and areas of the objects that the augmented image shows; crowds and ignore regions are none.

    Args:
        regions: of the annotations, in the augmented image.
        annotations: as they were before it.
        image_size: (h, w) before it.

    Returns:
        (n, 4) float32 XYXY in pixels of the augmented image; (n,) float32 areas in pixels^2 of the original one.
    """
    chosen = np.flatnonzero(regions.alive & ~regions.ignored)
    areas = [annotation_area(annotations[index], image_size) for index in chosen.tolist()]
    return torch.from_numpy(regions.boxes[chosen]).float(), torch.tensor(areas, dtype=torch.float32)


def annotation_area(annotation: Mapping[str, Any], image_size: tuple[int, int]) -> float:
    """
    The area by which COCO calls an object small, medium or large, in pixels^2.

    Args:
        annotation: in Detectron2's format. Its ``area`` is taken where the loader kept it (Detectron2's own does not),
            else the pixels of its mask, which is how COCO computed it, else its box.
        image_size: (h, w).
    """
    if annotation.get("area") is not None:
        return float(annotation["area"])
    mask = annotation.get("segmentation")
    if isinstance(mask, np.ndarray):
        return float(np.count_nonzero(mask))
    if isinstance(mask, dict):
        return float(union_rle([mask], image_size).sum())
    if mask:
        return float(mask_util.area(mask_util.merge(mask_util.frPyObjects(mask, *image_size))))
    x1, y1, x2, y2 = BoxMode.convert(list(annotation["bbox"]), annotation["bbox_mode"], BoxMode.XYXY_ABS)
    return float((x2 - x1) * (y2 - y1))
