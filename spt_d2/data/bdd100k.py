"""
BDD100K's detection labels as a COCO json.

A label file is a list of frames ``{"name", "labels": [{"id", "category", "attributes", "box2d"}], ...}``, or that list
under ``frames``. Two vintages are about: Detection 2020 (``det_20``), which is the one to use, and the labels of 2018,
which are deprecated. Their annotations differ, and so does AP.

Classes, their order and ids, the names of 2018, and the classes that are ignored are those of the official converter
(github.com/bdd100k/bdd100k, ``bdd100k/configs/det.toml``).
"""

import json
import math
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from spt_d2.data.progress import Progress, no_progress

IMAGE_SIZE = (720, 1280)  # (h, w) of every image

# Names in the order of their ids 1 to 10, with what they belong to.
CLASSES = {
    "pedestrian": "human",
    "rider": "human",
    "car": "vehicle",
    "truck": "vehicle",
    "bus": "vehicle",
    "train": "vehicle",
    "motorcycle": "bike",
    "bicycle": "bike",
    "traffic light": "traffic light",
    "traffic sign": "traffic sign",
}
OTHER_NAMES = {
    "bike": "bicycle",
    "caravan": "car",
    "motor": "motorcycle",
    "person": "pedestrian",
    "van": "car",
}
# Something is there, but nobody may be blamed for finding it or not: crowds of these classes.
IGNORED = {"other person": "pedestrian", "other vehicle": "car", "trailer": "truck"}

# Categories that stand in the files of one vintage alone.
_OF_2018 = {"bike", "motor", "person", "drivable area", "lane"}
_OF_2020 = {"bicycle", "motorcycle", "pedestrian", *IGNORED}


@dataclass
class ConversionReport:
    """
    What was found on the way, for a program to print.

    Attributes:
        vintage: ``2020``, ``2018``, ``mixed``, or ``unknown`` where no category tells.
        frames: entries in the label file.
        empty_frames: entries that give no annotation: ``labels`` absent, null or empty, or none of a known class with a
            box.
        unlabelled_images: files of the image folder that have no entry.
        missing_images: entries whose file the image folder lacks.
        images: in the json.
        objects: boxes of the ten classes in the json, crowds not counted.
        ignored: boxes of ignored classes, by their name.
        crowds: boxes with the attribute ``crowd``.
        without_box: labels without ``box2d``: lanes and drivable areas, in the files of 2018.
        faulty_boxes: labels left out because their box is not finite, of no area, or outside the image.
        unknown: labels left out because of their category, by its name.
    """

    vintage: str = "unknown"
    frames: int = 0
    empty_frames: list[str] = field(default_factory=list)
    unlabelled_images: list[str] = field(default_factory=list)
    missing_images: list[str] = field(default_factory=list)
    images: int = 0
    objects: int = 0
    ignored: Counter[str] = field(default_factory=Counter)
    crowds: int = 0
    without_box: Counter[str] = field(default_factory=Counter)
    faulty_boxes: list[str] = field(default_factory=list)
    unknown: Counter[str] = field(default_factory=Counter)


def read_frames(path: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """
    Read a label file.

    Returns:
        the frames, in the file's order.

    Raises:
        ValueError: not json, or not a list of frames with distinct names.
    """
    problem = f"The file {os.fspath(path)} is no BDD100K label file: "
    with open(path, encoding="utf-8") as file:
        try:
            content = json.load(file)
        except ValueError as error:
            raise ValueError(f"{problem}{error}") from error
    if isinstance(content, dict):
        content = content.get("frames")
    if not isinstance(content, list):
        raise ValueError(f"{problem}it expects a list of frames.")
    for index, frame in enumerate(content):
        labels = frame.get("labels") if isinstance(frame, dict) else None
        if not isinstance(frame, dict) or not isinstance(frame.get("name"), str) or not frame["name"]:
            raise ValueError(
                f"{problem}frame {index} has no name.\nHINT: the labels of one json per image, from before the "
                "detection files of 2018, are not read."
            )
        if labels is not None and not (isinstance(labels, list) and all(isinstance(label, dict) for label in labels)):
            raise ValueError(f"{problem}the labels of frame '{frame['name']}' are no list of objects.")
    if not content:
        raise ValueError(f"{problem}it has no frames.")
    counts = Counter(frame["name"] for frame in content)
    twice = [name for name, count in counts.items() if count > 1]
    if twice:
        raise ValueError(f"{problem}{len(twice)} frames have the name of another, '{twice[0]}' among them.")
    return content


def label_vintage(frames: Sequence[Mapping[str, Any]]) -> str:
    """Tell 2018 from 2020 by the categories; ``mixed`` where both speak, ``unknown`` where none does."""
    found = {str(label.get("category")) for frame in frames for label in frame.get("labels") or ()}
    if found & _OF_2018:
        return "mixed" if found & _OF_2020 else "2018"
    return "2020" if found & _OF_2020 else "unknown"


def convert(
    frames: Sequence[Mapping[str, Any]],
    split: str,
    image_names: Sequence[str] | None = None,
    include_unlabelled: bool = False,
    inclusive: bool = False,
    progress: Progress = no_progress,
) -> tuple[dict[str, Any], ConversionReport]:
    """
    Make a COCO json.

    Images are numbered from 1 by the names of the frames, sorted; images without an entry follow. So an id is the same
    whatever the image folder holds and whatever is included.

    Args:
        frames: of :func:`read_frames`.
        split: named in ``info``.
        image_names: files in the image folder; None to believe the label file.
        include_unlabelled: take in images without an entry, as images that show nothing. Their labels are missing by
            accident, so that training on them teaches that what they show is background.
        inclusive: take x2 and y2 for the last pixels of a box, as the latest official converter does, in place of its
            right and lower border, as earlier ones did: boxes are a pixel wider and higher.
        progress: sees the frames go by.

    Returns:
        the json, without images that the image folder lacks; and a report.
    """
    report = ConversionReport(vintage=label_vintage(frames), frames=len(frames))
    class_ids = {name: number for number, name in enumerate(CLASSES, start=1)}
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    ordered = sorted(frames, key=lambda frame: frame["name"])
    for image_id, frame in enumerate(progress(ordered, len(ordered), f"converting {split}"), start=1):
        images.append(_image(frame["name"], image_id))
        before = len(annotations)
        for label in frame.get("labels") or ():
            record = _annotation(label, frame["name"], class_ids, inclusive, report)
            if record is not None:
                annotations.append({"id": len(annotations) + 1, "image_id": image_id, **record})
        if len(annotations) == before:
            report.empty_frames.append(frame["name"])
    if image_names is not None:
        images, annotations = _match_folder(images, annotations, image_names, include_unlabelled, report)
    report.images = len(images)
    report.objects = sum(not annotation["iscrowd"] for annotation in annotations)
    year = report.vintage if report.vintage in ("2018", "2020") else None
    content = {
        "info": {
            "description": f"BDD100K detection, {split}, labels of {year or 'unknown date'}",
            "version": report.vintage,
            "year": int(year) if year else None,
            "contributor": "datasets/prepare_bdd100k.py",
            "parameters": {"include_unlabelled": include_unlabelled, "inclusive": inclusive},
        },
        "licenses": [
            {
                "id": 1,
                "name": "BDD100K: education, research and not-for-profit purposes",
                "url": "https://doc.bdd100k.com/license.html",
            }
        ],
        "categories": [
            {"id": number, "name": name, "supercategory": CLASSES[name]} for name, number in class_ids.items()
        ],
        "images": images,
        "annotations": annotations,
    }
    return content, report


def _image(name: str, image_id: int) -> dict[str, Any]:
    return {"id": image_id, "file_name": name, "height": IMAGE_SIZE[0], "width": IMAGE_SIZE[1], "license": 1}


def _annotation(
    label: Mapping[str, Any], frame: str, class_ids: Mapping[str, int], inclusive: bool, report: ConversionReport
) -> dict[str, Any] | None:
    """A label without its ids, or None, with the reason in the report."""
    category = str(label.get("category"))
    if label.get("box2d") is None:
        report.without_box[category] += 1
        return None
    name = OTHER_NAMES.get(category, category)
    if name not in class_ids and name not in IGNORED:
        report.unknown[category] += 1
        return None
    box = _box(label["box2d"], inclusive)
    if box is None:
        report.faulty_boxes.append(f"{frame}: {category} {label['box2d']}")
        return None
    # The capital stands in the files of tracking.
    attributes = label.get("attributes") or {}
    crowd = bool(attributes.get("crowd") or attributes.get("Crowd"))
    if name in IGNORED:
        report.ignored[category] += 1
    elif crowd:
        report.crowds += 1
    return {
        "category_id": class_ids[IGNORED.get(name, name)],
        "bbox": box,
        "area": round(box[2] * box[3], 6),
        "iscrowd": int(crowd or name in IGNORED),
        # Of a crowd the class is known; of these it is a guess that no classifier is to learn.
        **({"ignored": 1} if name in IGNORED else {}),
    }


def _box(box2d: Any, inclusive: bool) -> list[float] | None:
    """XYWH, or None where the box is not finite, shows nothing, or lies outside the image."""
    try:
        x1, y1, x2, y2 = (float(box2d[key]) for key in ("x1", "y1", "x2", "y2"))
    except (KeyError, TypeError, ValueError):
        return None
    if not all(map(math.isfinite, (x1, y1, x2, y2))):
        return None
    x2, y2 = x2 + inclusive, y2 + inclusive
    h, w = IMAGE_SIZE
    if min(x2, w) <= max(x1, 0) or min(y2, h) <= max(y1, 0):
        return None
    return [round(value, 6) for value in (x1, y1, x2 - x1, y2 - y1)]


def _match_folder(
    images: list[dict[str, Any]],
    annotations: list[dict[str, Any]],
    image_names: Sequence[str],
    include_unlabelled: bool,
    report: ConversionReport,
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Leave out images that have no file, and note the files that have no entry."""
    there = set(image_names)
    report.missing_images = [image["file_name"] for image in images if image["file_name"] not in there]
    report.unlabelled_images = sorted(there.difference(image["file_name"] for image in images))
    first = len(images) + 1
    if report.missing_images:
        images = [image for image in images if image["file_name"] in there]
        ids = {image["id"] for image in images}
        annotations = [annotation for annotation in annotations if annotation["image_id"] in ids]
    if include_unlabelled:
        images += [_image(name, number) for number, name in enumerate(report.unlabelled_images, start=first)]
    return images, annotations
