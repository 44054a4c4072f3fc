"""
PASCAL VOC 2012 for multi-label classification, as its devkit lays it out, and its subset of sparse images (Sec. 4.1).

::

    VOC2012/
      JPEGImages/            *.jpg
      Annotations/           *.xml
      ImageSets/Main/        train.txt, val.txt, trainval.txt
      SegmentationObject/    *.png, of the images that are segmented: 2,913 of 17,125

The data sets are ``voc_2012_multilabel_{train,val,trainval}``. Of each, ``voc_2012_multilabel_sparse_*`` are the images
whose objects cover less than 25 % of the pixels. How the paper counts is not said: here it is the union of the boxes,
which all images have; ``voc_2012_multilabel_sparse_mask_*`` goes by segmentations, of the images that have one.
"""

import logging
import os
import xml.etree.ElementTree as ElementTree
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.detection_utils import read_image
from detectron2.structures import BoxMode
from detectron2.utils.file_io import PathManager

from spt_d2.data.coverage import measure_coverage
from spt_d2.data.datasets import dataset_root
from spt_d2.data.sparse_subset import RATIOS, SPARSE_RATIO

logger = logging.getLogger(__name__)

CLASSES = (
    "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable", "dog",
    "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
)  # fmt: skip
# Images of each split as published; some copies hold other lists.
PUBLISHED = {"train": 5717, "val": 5823, "trainval": 11540}
SOURCES = ("box", "mask")

# Key of a dataset dict: the file in which the pixels of its k-th object are k, counted from 1.
OBJECT_MASKS = "object_mask_file_name"


def load_voc_multilabel(
    folder: str, split: str, *, max_ratio: float | None = None, ratio: str = "union", source: str = "box"
) -> list[dict[str, Any]]:
    """
    Images of a split in Detectron2's dataset format, each annotation with ``difficult``, 0 or 1.

    VOC counts pixels from 1 and includes the last: [xmin, xmax] becomes the interval [xmin - 1, xmax).

    Args:
        folder: ``VOC2012``.
        split: name of a list in ``ImageSets/Main``: train, val, trainval, or one of one's own.
        max_ratio: keep the images whose ratio of object pixels, see :func:`object_ratio`, is less than this; None keeps
            all.
        ratio, source: see :func:`object_ratio`. With ``mask``, images without a segmentation are left out.

    Raises:
        FileNotFoundError: a list or an annotation is missing.
        ValueError: an object of an unknown class, or an unknown ratio or source.
    """
    listed = os.path.join(folder, "ImageSets", "Main", f"{split}.txt")
    # A list of one class has a second column.
    names = [line.split()[0] for line in _read(listed).decode().splitlines() if line.strip()]
    if len(names) != PUBLISHED.get(split, len(names)):
        logger.warning(
            "%s lists %d images; VOC 2012 has %d in '%s'. Results compare with nobody else's.",
            listed, len(names), PUBLISHED[split], split,
        )  # fmt: skip
    masks = os.path.join(folder, "SegmentationObject")
    segmented = set(PathManager.ls(masks)) if PathManager.isdir(masks) else set()
    images = []
    for name in names:
        image = {
            "file_name": os.path.join(folder, "JPEGImages", f"{name}.jpg"),
            "image_id": name,
            **_read_annotation(os.path.join(folder, "Annotations", f"{name}.xml")),
        }
        if f"{name}.png" in segmented:
            image[OBJECT_MASKS] = os.path.join(masks, f"{name}.png")
        images.append(image)
    if max_ratio is None:
        return images
    if source == "mask":
        images = [image for image in images if OBJECT_MASKS in image]
    kept = [image for image in images if object_ratio(image, ratio=ratio, source=source) < max_ratio]
    logger.info(
        "%d of %d images of VOC 2012 '%s' have objects (%s of %s) on less than %g %% of their pixels.",
        len(kept), len(images), split, ratio, "boxes" if source == "box" else "segmentations", 100 * max_ratio,
    )  # fmt: skip
    return kept


def _read(path: str) -> bytes:
    if not PathManager.isfile(path):
        raise FileNotFoundError(
            f"VOC 2012 expects a file {path}. There is none.\n"
            "HINT: VOC2012 of the devkit belongs into $DETECTRON2_DATASETS (by default ./datasets)."
        )
    with PathManager.open(path, "rb") as file:
        return file.read()


def _read_annotation(path: str) -> dict[str, Any]:
    """Height, width and annotations of one image; parts of persons (heads, hands, feet) are no objects."""
    root = ElementTree.fromstring(_read(path))
    annotations = []
    for item in root.findall("object"):
        name = item.findtext("name", "").strip()
        if name not in CLASSES:
            raise ValueError(f"VOC 2012 expects objects of its {len(CLASSES)} classes. Got {name!r} in {path}.")
        x1, y1, x2, y2 = (float(item.findtext(f"bndbox/{key}", "nan")) for key in ("xmin", "ymin", "xmax", "ymax"))
        annotations.append(
            {
                "category_id": CLASSES.index(name),
                "bbox": [x1 - 1, y1 - 1, x2, y2],
                "bbox_mode": BoxMode.XYXY_ABS,
                "iscrowd": 0,
                "difficult": int(item.findtext("difficult", "0")),
            }
        )
    height, width = (int(root.findtext(f"size/{key}", "0")) for key in ("height", "width"))
    return {"height": height, "width": width, "annotations": annotations}


def object_ratio(image: Mapping[str, Any], *, ratio: str = "union", source: str = "box") -> float:
    """
    Share of an image's pixels that objects cover, difficult ones included.

    Args:
        image: a dataset dict of :func:`load_voc_multilabel`.
        ratio: ``union`` (a pixel counts once) or ``sum`` of the areas of boxes, which may exceed 1.
        source: ``box``, or ``mask``: the segmentation, in which objects do not overlap. Its void is no object.

    Raises:
        ValueError: an unknown ratio or source; ``mask`` and an image without a segmentation.
    """
    if ratio not in RATIOS or source not in SOURCES:
        raise ValueError(
            f"object_ratio expects a ratio among {RATIOS} and a source among {SOURCES}. Got {ratio!r}, {source!r}."
        )
    size = image["height"], image["width"]
    if source == "mask":
        if OBJECT_MASKS not in image:
            raise ValueError(f"object_ratio(source='mask') expects a segmentation. Got none in {image['file_name']}.")
        owner = read_image(image[OBJECT_MASKS])
        return np.count_nonzero((owner > 0) & (owner <= len(image["annotations"]))) / owner.size
    corners = [annotation["bbox"] for annotation in image["annotations"]]
    boxes = [{"bbox": [x1, y1, x2 - x1, y2 - y1]} for x1, y1, x2, y2 in corners]
    coverage = measure_coverage(boxes, size, "box")
    return (coverage.union if ratio == "union" else coverage.total) / coverage.pixels


def add_object_masks(image: Mapping[str, Any]) -> dict[str, Any]:
    """
    A copy of a dataset dict whose annotations have their segmentations, read from the file under ``OBJECT_MASKS``.

    An object that the file does not show keeps its box. Void pixels, which are the rims of objects and what annotators
    left open, become an ignore region: an annotation that is a crowd, as are pixels that belong to no annotation.

    Returns:
        the dict without ``OBJECT_MASKS``; segmentations are (h, w) bool.
    """
    image = dict(image)
    owner = read_image(image.pop(OBJECT_MASKS))
    height, width = owner.shape
    annotations: Sequence[Mapping[str, Any]] = image["annotations"]
    shown = [owner == number for number in range(1, len(annotations) + 1)]
    image["annotations"] = [
        {**annotation, "segmentation": mask} if mask.any() else dict(annotation)
        for annotation, mask in zip(annotations, shown)
    ]
    void = owner > len(annotations)
    if void.any():
        whole = {"bbox": [0.0, 0.0, float(width), float(height)], "bbox_mode": BoxMode.XYXY_ABS}
        image["annotations"].append({"category_id": 0, "iscrowd": 1, "segmentation": void, **whole})
    return image


def register_voc_multilabel() -> None:
    """Register VOC 2012 under the names above; harmless if they are."""
    folder = os.path.join(dataset_root(), "VOC2012")
    kinds: dict[str, dict[str, Any]] = {
        "": {},
        "_sparse": {"max_ratio": SPARSE_RATIO},
        "_sparse_mask": {"max_ratio": SPARSE_RATIO, "source": "mask"},
    }
    for kind, options in kinds.items():
        for split in PUBLISHED:
            name = f"voc_2012_multilabel{kind}_{split}"
            if name in DatasetCatalog:
                continue
            DatasetCatalog.register(name, partial(load_voc_multilabel, folder, split, **options))
            MetadataCatalog.get(name).set(
                thing_classes=list(CLASSES), evaluator_type="multi_label", dirname=folder, split=split, year=2012
            )
