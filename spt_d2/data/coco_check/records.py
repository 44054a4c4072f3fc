"""Are ids, references, boxes and flags of a COCO json as Detectron2 and COCO's evaluation take them?"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from spt_d2.data.coco_check.draft import Draft
from spt_d2.data.regions import EMPTY_SIDE

# Pixels that a box may reach over the border: rounding, which Detectron2's clipping forgives.
BORDER_TOLERANCE = 1.0


def whole_numbers(values: Sequence[Any]) -> tuple[np.ndarray, np.ndarray]:
    """
    Take ids out of json values.

    Returns:
        (n,) int64, 0 where there is none; (n,) bool, where there is. 3.0 is one, as it finds what 3 does; true is not.
    """

    def is_whole(value: Any) -> bool:
        kind = type(value)
        return (kind is int and abs(value) < 1 << 62) or (kind is float and value.is_integer() and abs(value) < 1 << 53)

    good = np.fromiter(map(is_whole, values), bool, len(values))
    numbers = np.zeros(len(values), dtype=np.int64)
    numbers[good] = [int(value) for value, ok in zip(values, good.tolist()) if ok]
    return numbers, good


def is_number(value: Any) -> bool:
    """Whether a json value is a number; true and false are not."""
    return type(value) is int or type(value) is float


def repeated(numbers: np.ndarray, among: np.ndarray) -> np.ndarray:
    """(n,) bool: numbers that occur before, of those of (n,) int64 that ``among``, (n,) bool, names."""
    indices = np.flatnonzero(among)
    again = np.zeros(len(numbers), dtype=bool)
    again[np.delete(indices, np.unique(numbers[indices], return_index=True)[1])] = True
    return again


def check_categories(draft: Draft) -> np.ndarray:
    """
    Find categories that are none. There is no cure: nobody knows what was meant.

    Returns:
        (k,) int64, the ids that annotations may name.
    """
    categories = draft.content["categories"]
    draft.add("categories_missing", True, [] if categories else ["categories"], "the list of categories is empty")
    records = [category if isinstance(category, dict) else {} for category in categories]
    ids, good = whole_numbers([record.get("id") for record in records])
    names = [record.get("name") for record in records]
    named = np.array([isinstance(name, str) and name != "" for name in names], dtype=bool)
    first = {name: index for index, name in reversed(list(enumerate(names))) if isinstance(name, str)}
    again = named & np.array([first.get(name) != i for i, name in enumerate(map(str, names))], dtype=bool)

    def some(bad: np.ndarray) -> list[str]:
        return [f"category {records[i].get('id')!r} ({names[i]})" for i in np.flatnonzero(bad).tolist()]

    draft.add("category_id", True, some(~good), "have no whole number as id")
    draft.add("category_id_twice", True, some(repeated(ids, good)), "have the id of another")
    draft.add("category_name", True, some(~named), "have no name")
    draft.add(
        "category_name_twice",
        False,
        some(again),
        "have the name of another; results by class show one of them",
        "keeps them as they are",
    )
    return ids[good]


def check_images(draft: Draft) -> tuple[np.ndarray, np.ndarray]:
    """
    Find images with faulty ids and names, and read the sizes that the json states.

    Returns:
        (images,) int64 ids; (images,) bool, which have one.
    """
    is_record = np.array([isinstance(image, dict) for image in draft.images], dtype=bool)
    draft.add_images("image_record", True, ~is_record, "are no json objects")
    records = [image if ok else {} for image, ok in zip(draft.images, is_record.tolist())]
    ids, good = whole_numbers([record.get("id") for record in records])
    draft.add_images("image_id", True, is_record & ~good, "have no whole number as id")
    again = repeated(ids, good)
    draft.add_images(
        "image_id_twice",
        True,
        again,
        "have the id of another",
        cure="keeps one where all of an id are the same, else leaves out all of that id, with their annotations",
    )
    # Of different images with one id nobody knows which of them an annotation means.
    first = dict(zip(reversed(ids[good].tolist()), reversed(np.flatnonzero(good).tolist())))
    other = [i for i in np.flatnonzero(again).tolist() if draft.images[i] != draft.images[first[int(ids[i])]]]
    draft.keep_images[np.isin(ids, ids[other]) & good] = False

    names = [record.get("file_name") for record in records]
    unnamed = np.array([not isinstance(name, str) or not name for name in names], dtype=bool)
    draft.add_images("image_file_name", True, is_record & unnamed, "have no file_name")
    used: dict[str, int] = {}
    named = np.flatnonzero(is_record & ~unnamed & ~again).tolist()
    twice = np.zeros(len(records), dtype=bool)
    twice[named] = [used.setdefault(str(names[i]), i) != i for i in named]
    draft.add_images(
        "image_file_twice", False, twice, "have the file of another", drop=False, cure="keeps them as they are"
    )
    for column, key in enumerate(("height", "width")):
        numbers, whole = whole_numbers([record.get(key) for record in records])
        draft.sizes[:, column] = np.where(whole & (numbers > 0), numbers, 0)
    draft.sizes[(draft.sizes == 0).any(axis=1)] = 0
    return ids, good


def check_stated_sizes(draft: Draft, stated: np.ndarray) -> None:
    """
    Find images whose size the json does not state.

    Args:
        draft: after the files were looked at, if they were.
        stated: (images, 2) sizes that the json stated, 0 where it did not.
    """
    lacking = draft.keep_images & (stated == 0).any(axis=1)
    known = (draft.sizes > 0).all(axis=1)
    what = "have no height and width in whole pixels"
    draft.add_images("image_size_missing", True, lacking & known, what, drop=False, cure="fills in those of the file")
    draft.add_images("image_size_missing", True, lacking & ~known, what)


def check_references(draft: Draft, image_ids: np.ndarray, has_id: np.ndarray, category_ids: np.ndarray) -> None:
    """
    Find annotations that are none, that share an id, or whose image or category is not in the json.

    Args:
        draft: after the images were checked.
        image_ids, has_id: of :func:`check_images`.
        category_ids: of :func:`check_categories`.
    """
    draft.add_annotations("annotation_record", True, ~draft.is_record, "are no json objects")
    records = draft.records()
    ids, good = whole_numbers([record.get("id") for record in records])
    again = repeated(ids, good)
    new_id = int(ids.max(initial=0))
    for kind, error, bad, what in (
        ("annotation_id", True, draft.is_record & ~good, "have no whole number as id"),
        ("annotation_id_twice", True, again, "have the id of another"),
        (
            "annotation_id_zero",
            False,
            good & ~again & (ids == 0),
            "have the id 0, which COCO's evaluation takes for no object: what finds it counts as wrong",
        ),
    ):
        draft.add_annotations(kind, error, bad, what, drop=False, cure="gives them new ids")
        for index in np.flatnonzero(bad).tolist():
            new_id += 1
            draft.change(index, id=new_id)

    # An image that is left out is one too: it takes its annotations with it. Of several, the one that is kept.
    numbers, whole = whole_numbers([record.get("image_id") for record in records])
    candidates = np.flatnonzero(has_id)
    candidates = candidates[np.lexsort((~draft.keep_images[candidates], image_ids[candidates]))]
    if len(candidates):
        place = np.searchsorted(image_ids[candidates], numbers).clip(max=len(candidates) - 1)
        found = whole & (image_ids[candidates][place] == numbers)
        draft.image_of = np.where(found, candidates[place], -1)
    draft.add_annotations(
        "annotation_image",
        True,
        draft.is_record & (draft.image_of < 0),
        "name an image that is not in the json",
    )
    numbers, whole = whole_numbers([record.get("category_id") for record in records])
    draft.add_annotations(
        "annotation_category",
        True,
        draft.is_record & ~(whole & np.isin(numbers, category_ids)),
        "name a category that is not in the json",
        detail=lambda i: f": category {records[i].get('category_id')!r}",
    )


def check_boxes(draft: Draft) -> None:
    """Find boxes that are none, show nothing, or lie outside their image."""
    records = draft.records()
    boxes = [record.get("bbox") for record in records]
    good = np.array([type(b) is list and len(b) == 4 and all(map(is_number, b)) for b in boxes], dtype=bool)
    if good.any():
        draft.boxes[good] = np.array([box for box, ok in zip(boxes, good.tolist()) if ok], dtype=np.float64)

    def add(kind: str, error: bool, bad: np.ndarray, what: str) -> None:
        draft.add_annotations(kind, error, bad, what, detail=lambda i: f": {boxes[i]}")

    add("box_missing", True, draft.is_record & ~good, "have no box of four numbers")
    finite = np.isfinite(draft.boxes).all(axis=1)
    add("box_not_finite", True, good & ~finite, "have a box that is not finite")
    x, y, w, h = np.where(finite[:, None], draft.boxes, 0).T
    side = np.where(finite, np.minimum(w, h), np.nan)
    add("box_negative", True, side < 0, "have a box of negative width or height (XYXY for XYWH?)")
    add("box_no_area", False, (side >= 0) & (side <= EMPTY_SIDE), "have a box of no area; Detectron2 drops it")
    solid = side > EMPTY_SIDE
    if solid.any() and max((x + w)[solid].max(), (y + h)[solid].max()) <= 1 and (w[solid] % 1 > 0).any():
        draft.add("box_relative", True, ["all boxes"], "lie within [0, 1]: relative coordinates?")
        return

    height, width = draft.annotation_sizes().T
    outside = solid & ((x >= width) | (y >= height) | (x + w <= 0) | (y + h <= 0))
    add("box_outside", True, outside, "have a box outside the image (XYXY for XYWH?)")
    over = np.max([-x, -y, x + w - width, y + h - height], axis=0)
    reaching = solid & ~outside & (over > BORDER_TOLERANCE)
    draft.add_annotations(
        "box_over_border",
        False,
        reaching,
        "have a box that reaches over the border by more than a pixel; Detectron2 clips it",
        drop=False,
        cure="clips them",
        detail=lambda i: f": {boxes[i]} in {width[i]:g} x {height[i]:g}",
    )
    for i in np.flatnonzero(reaching).tolist():
        x1, y1, x2, y2 = max(x[i], 0), max(y[i], 0), min(x[i] + w[i], width[i]), min(y[i] + h[i], height[i])
        draft.change(i, bbox=[float(value) for value in (x1, y1, x2 - x1, y2 - y1)])
    draft.measure_area(reaching)


def check_flags(draft: Draft) -> None:
    """Find flags and areas that COCO's evaluation or Detectron2 stops at."""
    records = draft.records()
    flags = [record.get("iscrowd") for record in records]
    odd = draft.is_record & np.array([not (isinstance(f, (int, float)) and f in (0, 1)) for f in flags], dtype=bool)
    draft.add_annotations(
        "iscrowd",
        True,
        odd,
        "have no iscrowd of 0 or 1; COCO's evaluation stops at it",
        drop=False,
        cure="sets 0, or 1 where it is another number",
        detail=lambda i: f": {flags[i]!r}",
    )
    for index in np.flatnonzero(odd).tolist():
        draft.change(index, iscrowd=int(is_number(flags[index]) and flags[index] != 0))
    ignored = np.array([bool(record.get("ignore", 0)) for record in records], dtype=bool)
    draft.add_annotations(
        "ignore", True, ignored, "have 'ignore', which Detectron2 stops at", drop=False, cure="makes them crowds"
    )
    for index in np.flatnonzero(ignored).tolist():
        draft.change(index, ignore=None, iscrowd=1)

    stated = [record.get("area") for record in records]
    areas = np.array([area if is_number(area) else np.nan for area in stated], dtype=np.float64)
    lacking = draft.is_record & ~(np.isfinite(areas) & (areas >= 0))
    draft.add_annotations(
        "area",
        True,
        lacking,
        "have no area, or one that is negative or not finite",
        drop=False,
        cure="measures it",
        detail=lambda i: f": {stated[i]!r}",
    )
    w, h = draft.boxes[:, 2:].T
    solid = np.isfinite(draft.boxes).all(axis=1) & (w > EMPTY_SIDE) & (h > EMPTY_SIDE)
    # What masks count in pixels may touch a row and a column more than a box of fractions.
    odd = ~lacking & solid & ((areas > (w + 1) * (h + 1)) | ((areas == 0) & (w * h > 1)))
    draft.add_annotations(
        "area_of_box",
        False,
        odd,
        "have an area that is 0 or larger than their box: AP by size is not what it should be",
        drop=False,
        cure="measures it",
        detail=lambda i: f": area {areas[i]:g}, box {w[i]:g} x {h[i]:g}",
    )
    draft.measure_area(lacking | odd)
