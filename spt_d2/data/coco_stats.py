"""
Figures of a data set: how many objects, how large, and what share of pixels and tokens they cover.

The object-to-pixel ratio of an image is the share of its pixels that objects cover (Sec. 4.1; Zhang et al. 2024 stack
all boxes into one binary mask), and the object-token density of a stride the share of tokens that overlap an object by
a pixel (App. B.3): what a perfect gate would keep.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from detectron2.structures import BoxMode

from spt_d2.data.coco_json import annotations_by_image, category_names, is_object, naming_image
from spt_d2.data.coverage import measure_coverage
from spt_d2.data.object_sizes import annotation_area
from spt_d2.data.progress import Progress, no_progress

STRIDES = (4, 8, 16, 32)
# COCO's areas in pixels^2, from the first to below the second.
BUCKETS = {"small": (0, 32**2), "medium": (32**2, 96**2), "large": (96**2, float("inf"))}
# Bounds of the histogram of ratios; images without objects are counted apart.
RATIO_EDGES = (0.0, 0.01, 0.02, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5, 0.75, 1.0)
PERCENTILES = (5, 50, 95)


@dataclass(frozen=True)
class DatasetStats:
    """
    Figures of a data set; objects are annotations that are neither crowds nor ignored.

    Attributes:
        source: ``box``, ``mask`` or ``auto``, what was drawn.
        per_image: (images,) objects of each image.
        crowds: crowds and ignore regions in all.
        classes: objects by name, in the order of the categories.
        sides: (objects,) longer side of each box in pixels.
        areas: (objects,) area in pixels^2, as COCO's evaluation takes it.
        unions: (images,) share of pixels that objects cover.
        sums: (images,) the objects' own pixels added up, as a share of the image's; may exceed 1.
        tokens: by stride (images, 2) object tokens and all tokens.
    """

    source: str
    per_image: np.ndarray
    crowds: int
    classes: dict[str, int]
    sides: np.ndarray
    areas: np.ndarray
    unions: np.ndarray
    sums: np.ndarray
    tokens: dict[int, np.ndarray]

    def histogram(self) -> np.ndarray:
        """
        Share of images by ratio.

        Returns:
            (1 + bins,) images without objects, then those of each range of ``RATIO_EDGES``, the last one closed.
        """
        covered = self.unions[self.unions > 0]
        counts = np.concatenate([[len(self.unions) - len(covered)], np.histogram(covered, RATIO_EDGES)[0]])
        return counts / max(len(self.unions), 1)

    def summary(self) -> dict[str, Any]:
        """
        The figures as plain numbers.

        Returns:
            ``images``, ``objects``, ``crowds``, ``empty_share``, ``objects_per_image`` (mean), ``classes``;
            ``box_side`` (pixels), ``area`` (pixels^2), ``ratio_union`` and ``ratio_sum``, each with ``mean``, ``min``,
            ``p5``, ``p50``, ``p95``, ``max``, None where there is nothing; ``buckets`` (objects by COCO's size);
            ``below_25`` (share of images whose union and sum are below a quarter); ``histogram`` (``edges`` and
            ``share``, the first of them images without objects); ``token_density`` (by stride, of all tokens of the
            set).
        """
        images, objects = len(self.per_image), len(self.areas)
        totals = {stride: counts.sum(axis=0) for stride, counts in self.tokens.items()}
        return {
            "source": self.source,
            "images": images,
            "objects": objects,
            "crowds": self.crowds,
            "empty_share": float((self.per_image == 0).mean()) if images else None,
            "objects_per_image": objects / images if images else None,
            "classes": self.classes,
            "box_side": _spread(self.sides),
            "area": _spread(self.areas),
            "buckets": {
                k: int(((self.areas >= low) & (self.areas < high)).sum()) for k, (low, high) in BUCKETS.items()
            },
            "ratio_union": _spread(self.unions),
            "ratio_sum": _spread(self.sums),
            "below_25": {
                name: float((ratios < 0.25).mean()) if images else None
                for name, ratios in (("union", self.unions), ("sum", self.sums))
            },
            "histogram": {"edges": list(RATIO_EDGES), "share": self.histogram().tolist()},
            "token_density": {str(stride): int(n) / int(total) for stride, (n, total) in totals.items() if total},
        }


def _spread(values: np.ndarray) -> dict[str, float | None]:
    names = ("min", *(f"p{p}" for p in PERCENTILES), "max")
    if len(values) == 0:
        return dict.fromkeys(("mean", *names))
    return {"mean": float(values.mean()), **dict(zip(names, np.percentile(values, (0, *PERCENTILES, 100)).tolist()))}


def measure_dataset(
    content: Mapping[str, Any], source: str, strides: Sequence[int] = STRIDES, progress: Progress = no_progress
) -> DatasetStats:
    """
    Measure a data set.

    Args:
        content: of a COCO json without faults.
        source: ``box``, ``mask`` or ``auto``, as ``INPUT.SPT.LABEL_SOURCE``.
        strides: pixels per token.
        progress: sees the images go by.

    Raises:
        ValueError: what :func:`~spt_d2.data.coverage.measure_coverage` raises, an image without its size, a category
            that is not known, with the image's id; an image, an annotation or a category without its ids.
    """
    names = category_names(content)
    classes = dict.fromkeys(names.values(), 0)
    images = content["images"]
    per_image, unions, sums = (np.zeros(len(images)) for _ in range(3))
    tokens = {stride: np.zeros((len(images), 2), np.int64) for stride in strides}
    sides: list[float] = []
    areas: list[float] = []
    crowds = 0
    pairs = zip(images, annotations_by_image(content))
    for index, (image, annotations) in enumerate(progress(pairs, len(images), f"drawing ({source})")):
        with naming_image(image):
            size = (image["height"], image["width"])
            coverage = measure_coverage(annotations, size, source, strides)
            objects = [annotation for annotation in annotations if is_object(annotation)]
            per_image[index] = len(objects)
            crowds += len(annotations) - len(objects)
            unions[index], sums[index] = coverage.union / coverage.pixels, coverage.total / coverage.pixels
            for stride in strides:
                tokens[stride][index] = coverage.tokens[stride]
            for annotation in objects:
                classes[names[annotation["category_id"]]] += 1
                sides.append(max(annotation["bbox"][2:]))
                areas.append(annotation_area({**annotation, "bbox_mode": BoxMode.XYWH_ABS}, size))
    return DatasetStats(
        source, per_image, crowds, classes, np.array(sides, float), np.array(areas, float), unions, sums, tokens
    )


def stats_table(summaries: Mapping[str, Mapping[str, Any]]) -> str:
    """
    Data sets side by side, as a Markdown table.

    Args:
        summaries: of :meth:`DatasetStats.summary`, by the title of their column.
    """
    strides = sorted({stride for s in summaries.values() for stride in s["token_density"]}, key=int)
    rows = [["", *summaries]]

    def row(label: str, cell: Any) -> None:
        rows.append([label, *(cell(summary) for summary in summaries.values())])

    row("drawn by", lambda s: s["source"])
    row("images, of these without objects", lambda s: f"{s['images']}, {_percent(s['empty_share'])}")
    row("objects, per image", lambda s: f"{s['objects']}, {_number(s['objects_per_image'])}")
    row("crowds and ignore regions", lambda s: str(s["crowds"]))
    row("classes, of these with objects", lambda s: f"{len(s['classes'])}, {sum(n > 0 for n in s['classes'].values())}")
    row("COCO sizes: small / medium / large", lambda s: " / ".join(str(n) for n in s["buckets"].values()))
    row("longer box side: 5 %, median, 95 %", lambda s: _percentiles(s["box_side"], _number))
    row("area: 5 %, median, 95 %", lambda s: _percentiles(s["area"], _number))
    row("object-to-pixel ratio (union): mean", lambda s: _percent(s["ratio_union"]["mean"]))
    row("  5 %, median, 95 % of the images", lambda s: _percentiles(s["ratio_union"], _percent))
    row("  images below 25 %", lambda s: _percent(s["below_25"]["union"]))
    row("object-to-pixel ratio (sum): mean", lambda s: _percent(s["ratio_sum"]["mean"]))
    row("  images below 25 %", lambda s: _percent(s["below_25"]["sum"]))
    for stride in strides:
        row(f"object tokens at stride {stride}", lambda s, k=stride: _percent(s["token_density"].get(k)))
    widths = [max(len(r[i]) for r in rows) for i in range(len(rows[0]))]
    lines = ["| " + " | ".join(cell.ljust(width) for cell, width in zip(r, widths)) + " |" for r in rows]
    lines.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    return "\n".join(lines)


def _percentiles(spread: Mapping[str, float | None], text: Any) -> str:
    return ", ".join(text(spread[f"p{p}"]) for p in PERCENTILES)


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.2f} %"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"
