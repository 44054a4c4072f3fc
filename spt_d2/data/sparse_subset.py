"""
The sparse part of a data set: images whose objects cover little of them, as BDD-S is of BDD100K (Sec. 4.1).

The paper keeps samples with an object-to-pixel ratio below 25 % and says no more of how it is computed. The union of
the boxes is our reading, after the mask of stacked boxes in the work it cites; the sum of the boxes' areas is the other
one that is near at hand.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from spt_d2.data.coco_json import annotations_by_image, category_names, is_object, naming_image
from spt_d2.data.coverage import measure_coverage
from spt_d2.data.progress import Progress, no_progress

RATIOS = ("union", "sum")
# Below this share of object pixels the paper calls an image sparse (Sec. 4.1).
SPARSE_RATIO = 0.25


@dataclass(frozen=True)
class SubsetReport:
    """
    What was kept.

    Attributes:
        images, empty_images, objects, annotations: kept, and all there were. Empty images have no object; annotations
            count crowds as well.
        mean_ratio: over the images that were kept, and over all.
        classes: by name, objects kept and all.
    """

    images: tuple[int, int]
    empty_images: tuple[int, int]
    objects: tuple[int, int]
    annotations: tuple[int, int]
    mean_ratio: tuple[float, float]
    classes: dict[str, tuple[int, int]]


def sparse_subset(
    content: Mapping[str, Any], max_ratio: float, ratio: str, source: str, progress: Progress = no_progress
) -> tuple[dict[str, Any], SubsetReport]:
    """
    Take the images of a COCO json whose object-to-pixel ratio is below a bound. Images without objects are among them.

    Args:
        content: of a COCO json without faults; not changed.
        max_ratio: bound, in (0, 1]; images at the bound are left out.
        ratio: ``union``, the share of pixels that objects cover, or ``sum``, in which a pixel under two objects counts
            twice.
        source: ``box``, ``mask`` or ``auto``: what an object covers, see
            :func:`~spt_d2.data.coverage.measure_coverage`.
        progress: sees the images go by.

    Returns:
        a COCO json with the same ids, which says in its ``info`` how it was made; and what was kept.

    Raises:
        ValueError: an argument out of range; what :func:`~spt_d2.data.coco_stats.measure_dataset` raises.
    """
    if not 0 < max_ratio <= 1:
        raise ValueError(f"sparse_subset(max_ratio=) expects a share in (0, 1]. Got {max_ratio}.")
    if ratio not in RATIOS:
        raise ValueError(f"sparse_subset(ratio=) expects one of {', '.join(RATIOS)}. Got {ratio!r}.")
    names = category_names(content)
    images: list[dict[str, Any]] = []
    kept_ids = set()
    ratios: list[float] = []
    empty = Counter[bool]()
    classes: dict[bool, Counter[str]] = {True: Counter(), False: Counter()}
    pairs = zip(content["images"], annotations_by_image(content))
    for image, annotations in progress(pairs, len(content["images"]), f"drawing ({source})"):
        with naming_image(image):
            coverage = measure_coverage(annotations, (image["height"], image["width"]), source)
            objects = [names[annotation["category_id"]] for annotation in annotations if is_object(annotation)]
        ratios.append((coverage.union if ratio == "union" else coverage.total) / coverage.pixels)
        kept = ratios[-1] < max_ratio
        if kept:
            images.append(image)
            kept_ids.add(image["id"])
        classes[kept].update(objects)
        empty[kept] += not objects
    annotations = [annotation for annotation in content["annotations"] if annotation["image_id"] in kept_ids]
    made_by = {"max_ratio": max_ratio, "ratio": ratio, "source": source}
    subset = {
        **content,
        "info": {**(content.get("info") or {}), "sparse_subset": made_by},
        "images": images,
        "annotations": annotations,
    }
    sparse = [value for value in ratios if value < max_ratio]
    number = {kept: sum(counter.values()) for kept, counter in classes.items()}
    report = SubsetReport(
        images=(len(images), len(ratios)),
        empty_images=(empty[True], empty.total()),
        objects=(number[True], number[True] + number[False]),
        annotations=(len(annotations), len(content["annotations"])),
        mean_ratio=(sum(sparse) / max(len(sparse), 1), sum(ratios) / max(len(ratios), 1)),
        classes={name: (classes[True][name], classes[True][name] + classes[False][name]) for name in names.values()},
    )
    return subset, report
