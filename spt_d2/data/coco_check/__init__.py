"""Check a COCO json, and its images, for everything that training stumbles over, and make a clean copy."""

from collections.abc import Mapping
from typing import Any

from spt_d2.data.coco_check.draft import Draft, Problem
from spt_d2.data.coco_check.files import check_files
from spt_d2.data.coco_check.masks import check_masks
from spt_d2.data.coco_check.records import (
    check_boxes,
    check_categories,
    check_flags,
    check_images,
    check_references,
    check_stated_sizes,
)
from spt_d2.data.coco_check.report import CheckReport
from spt_d2.data.coco_json import is_object
from spt_d2.data.coco_stats import measure_dataset
from spt_d2.data.progress import Progress, no_progress

__all__ = ["CheckReport", "Problem", "check_coco"]


def check_coco(
    content: Mapping[str, Any],
    image_root: str | None = None,
    decode: bool = False,
    workers: int | None = None,
    progress: Progress = no_progress,
) -> CheckReport:
    """
    Find all faults of a COCO json at once.

    Args:
        content: of the json, with its three lists (:func:`spt_d2.data.coco_json.read_coco`); not changed.
        image_root: folder of the images; None to look at the json alone.
        decode: read every pixel, and not only the header of each file, which does not show a file that is cut short.
        workers: threads that read files.
        progress: sees images and annotations go by.

    Returns:
        the faults, the figures of what is without fault, and a copy of it. Its records are those of ``content`` where
        they had no fault.
    """
    draft = Draft(content)
    category_ids = check_categories(draft)
    image_ids, has_id = check_images(draft)
    stated = draft.sizes.copy()
    if image_root is not None:
        check_files(draft, image_root, decode, workers, progress)
    check_stated_sizes(draft, stated)
    check_references(draft, image_ids, has_id, category_ids)
    check_boxes(draft)
    check_flags(draft)
    check_masks(draft, progress)
    draft.add(
        "info_missing",
        False,
        [] if isinstance(content.get("info"), dict) else ["info"],
        "is missing; some versions of pycocotools stop at that",
        "adds an empty one",
    )
    clean = draft.clean_copy() if draft.mendable else None
    if clean is not None and not any(map(is_object, clean["annotations"])):
        draft.add("no_objects", True, ["annotations"], "hold no object that could be used")
        clean = None
    return CheckReport(
        images=len(draft.images),
        annotations=len(draft.annotations),
        categories=len(content["categories"]),
        problems=tuple(sorted(draft.problems, key=lambda problem: not problem.error)),
        clean=clean,
        statistics=measure_dataset(clean, "box", progress=progress).summary() if clean is not None else None,
    )
