"""
Measure the objects of a COCO-format data set: counts, sizes, and the share of pixels and of tokens that they cover.

    python datasets/measure_coco.py datasets/shapes/train.json

A token of stride s counts as an object token if an object covers a pixel of its s x s cell, as in the labels that
supervise selection. Crowd annotations are left out. Needs numpy and pycocotools.
"""

from __future__ import annotations

import argparse
from typing import Any

import numpy as np
from pycocotools.coco import COCO

BUCKETS = {"small": (0, 32**2), "medium": (32**2, 96**2), "large": (96**2, float("inf"))}  # area in pixels, COCO's
STRIDES = (8, 16, 32)
PERCENTILES = (5, 50, 95)


def _token_share(covered: np.ndarray, stride: int) -> tuple[int, int]:
    """Object tokens and all tokens of an image whose covered pixels are given, (H, W) bool."""
    height, width = covered.shape
    padded = np.pad(covered, ((0, -height % stride), (0, -width % stride)))
    cells = padded.reshape(padded.shape[0] // stride, stride, padded.shape[1] // stride, stride).any(axis=(1, 3))
    return int(cells.sum()), cells.size


def measure(json_file: str) -> dict[str, Any]:
    """
    Measure one COCO json.

    Returns:
        images, objects; empty_share of the images; classes (name to objects); objects_per_image (mean);
        box_side (the longer side in pixels) and area (pixels), each as minimum, percentiles 5, 50, 95 and maximum;
        buckets (objects per COCO area range); ratio (mean over the images of the share of pixels that masks cover)
        and ratio_percentiles (minimum to maximum, as above); mask_tokens and box_tokens (stride to share of object
        tokens).
    """
    coco = COCO(json_file)
    names = {category["id"]: category["name"] for category in coco.loadCats(coco.getCatIds())}
    classes = dict.fromkeys(names.values(), 0)
    sides: list[float] = []
    areas: list[float] = []
    ratios: list[float] = []
    empty = 0
    tokens = {kind: {stride: np.zeros(2, np.int64) for stride in STRIDES} for kind in ("mask", "box")}
    for image in coco.loadImgs(coco.getImgIds()):
        masks, boxes = (np.zeros((image["height"], image["width"]), bool) for _ in range(2))
        annotations = coco.loadAnns(coco.getAnnIds(imgIds=[image["id"]], iscrowd=False))
        empty += not annotations
        for annotation in annotations:
            classes[names[annotation["category_id"]]] += 1
            x, y, width, height = annotation["bbox"]
            sides.append(max(width, height))
            areas.append(annotation["area"])
            masks |= coco.annToMask(annotation).astype(bool)
            x0, y0 = (max(int(np.floor(v)), 0) for v in (x, y))
            boxes[y0 : int(np.ceil(y + height)), x0 : int(np.ceil(x + width))] = True
        ratios.append(float(masks.mean()))
        for kind, covered in (("mask", masks), ("box", boxes)):
            for stride in STRIDES:
                tokens[kind][stride] += _token_share(covered, stride)

    def spread(values: list[float]) -> list[float]:
        return np.percentile(values, (0, *PERCENTILES, 100)).tolist() if values else []

    return {
        "images": len(ratios),
        "objects": len(areas),
        "empty_share": empty / len(ratios),
        "classes": classes,
        "objects_per_image": len(areas) / len(ratios),
        "box_side": spread(sides),
        "area": spread(areas),
        "buckets": {name: sum(low <= area < high for area in areas) for name, (low, high) in BUCKETS.items()},
        "ratio": float(np.mean(ratios)),
        "ratio_percentiles": spread(ratios),
        **{f"{kind}_tokens": {s: n / total for s, (n, total) in tokens[kind].items()} for kind in tokens},
    }


def main() -> None:
    """Command line: one json or more."""
    parser = argparse.ArgumentParser(description="Measure the objects of a COCO-format data set.")
    parser.add_argument("json_file", nargs="+")
    for json_file in parser.parse_args().json_file:
        result = measure(json_file)
        print(json_file)
        for name, value in result.items():
            if isinstance(value, list):
                value = "min, p5, p50, p95, max: " + ", ".join(f"{v:.4g}" for v in value)
            elif isinstance(value, dict):
                value = ", ".join(f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in value.items())
            elif isinstance(value, float):
                value = f"{value:.4g}"
            print(f"  {name:18s} {value}")


if __name__ == "__main__":
    main()
