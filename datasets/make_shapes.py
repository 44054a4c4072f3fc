"""
Make **Shapes**, the embedded data set: pictures of ``shapes_scene.py`` as JPEG files with COCO json.

Picture ``i`` of a split is the same whatever the number of pictures and of workers. ``datasets/README.md`` says what
is drawn. Needs numpy and cv2 only. Run it, or load it from its path and call :func:`make_shapes`:

    python datasets/make_shapes.py

fills datasets/shapes, or $DETECTRON2_DATASETS/shapes, where training looks for it, or --output.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import cv2
import numpy as np

# The folder of data sets is no package; this finds the neighbour also when this file is loaded from its path.
sys.path.append(str(Path(__file__).resolve().parent))

from shapes_scene import CLASSES, SPLITS, VERSION, SceneObject, render_scene

JPEG_QUALITY = 95  # three times faster to decode than PNG on a CPU, and a sixth of its size
UNFINISHED = ".make_shapes_unfinished"  # marks a folder this program began to fill, so that a stopped run can be redone


def _annotation(obj: SceneObject) -> dict[str, Any]:
    """COCO annotation without its ids. Box and area are those of the polygon, computed in whole 1/100 pixels."""
    cents = np.round(obj.polygon * 100).astype(np.int64)
    (x0, y0), (x1, y1) = cents.min(axis=0).tolist(), cents.max(axis=0).tolist()
    x, y = cents.T
    area = abs(int((x * np.roll(y, -1) - y * np.roll(x, -1)).sum())) / 2
    return {
        "category_id": obj.category + 1,
        "segmentation": [(cents.reshape(-1) / 100).tolist()],
        "bbox": [x0 / 100, y0 / 100, (x1 - x0) / 100, (y1 - y0) / 100],
        "area": area / 1e4,
        "iscrowd": 0,
    }


def _make_split(output: Path, split: str, count: int, parameters: dict[str, Any], workers: int) -> dict[str, Any]:
    """Write the pictures of a split; return its COCO dictionary."""
    seed, size = parameters["seed"], parameters["size"]

    def make_image(index: int) -> list[dict[str, Any]]:
        scene = render_scene(seed, split, index, size)
        path = output / split / f"{index + 1:06d}.jpg"
        if not cv2.imwrite(str(path), scene.image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY]):
            raise OSError(f"make_shapes could not write {path}")
        return [_annotation(obj) for obj in scene.objects]

    (output / split).mkdir(exist_ok=True)
    # Threads, not processes: numpy and cv2 release the interpreter lock, and a module loaded from a path cannot be
    # imported again by a spawned process.
    with ThreadPoolExecutor(workers) as pool:
        per_image = list(pool.map(make_image, range(count)))
    images = [
        {"id": i + 1, "file_name": f"{i + 1:06d}.jpg", "width": size, "height": size, "license": 1}
        for i in range(count)
    ]
    annotations = [{"image_id": i + 1, **annotation} for i, found in enumerate(per_image) for annotation in found]
    return {
        "info": {
            "description": f"Shapes, {split}",
            "version": VERSION,
            "year": 2026,
            "contributor": "datasets/make_shapes.py",
            "date_created": "2026-11-22",  # of this version of the generator: the same bytes on every day
            "parameters": parameters,
        },
        "licenses": [{"id": 1, "name": "Apache-2.0", "url": "https://www.apache.org/licenses/LICENSE-2.0"}],
        "categories": [{"id": i + 1, "name": name, "supercategory": "shape"} for i, name in enumerate(CLASSES)],
        "images": images,
        "annotations": [{"id": i + 1, **annotation} for i, annotation in enumerate(annotations)],
    }


def _describe(coco: dict[str, Any]) -> dict[str, Any]:
    """Counts of a split. Objects never overlap, so the areas of a picture's objects add up to that of their union."""
    names = {category["id"]: category["name"] for category in coco["categories"]}
    counts = dict.fromkeys(names.values(), 0)
    for annotation in coco["annotations"]:
        counts[names[annotation["category_id"]]] += 1
    pixels = sum(image["width"] * image["height"] for image in coco["images"])
    with_objects = {annotation["image_id"] for annotation in coco["annotations"]}
    return {
        "images": len(coco["images"]),
        "objects": len(coco["annotations"]),
        "classes": counts,
        "object_to_pixel_ratio": sum(annotation["area"] for annotation in coco["annotations"]) / pixels,
        "empty_share": 1 - len(with_objects) / len(coco["images"]),
    }


def _found(output: Path) -> dict[str, dict[str, Any]] | None:
    """Both splits' COCO dictionaries if ``output`` holds a set made by this program, whatever its parameters."""
    try:
        found = {split: json.loads((output / f"{split}.json").read_text()) for split in SPLITS}
        for split in SPLITS:
            if found[split]["info"]["parameters"]["generator"] != "make_shapes":
                return None
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return found


def make_shapes(
    output: str | os.PathLike[str],
    *,
    seed: int = 0,
    num_train: int = 1200,
    num_val: int = 240,
    size: int = 256,
    workers: int | None = None,
) -> dict[str, Any]:
    """
    Make the data set in ``output``, unless the very same one is there already.

    Writes ``train.json``, ``val.json``, ``train/*.jpg`` and ``val/*.jpg``. A run that was interrupted, or a set with
    the same parameters that lacks pictures, is made again; anything else found in ``output`` is left alone.

    Args:
        output: folder, made if missing.
        seed: 0 or more; another seed is another data set.
        num_train, num_val: pictures per split, 1 or more; a larger set begins with the pictures of a smaller one.
        size: side of the square pictures in pixels, 64 or more. Object sizes do not scale with it.
        workers: threads; by default one per core, at most 4. Does not change the result.

    Returns:
        ``{"made": bool, "train": {...}, "val": {...}}``; made is False if everything was there. Each split has images,
        objects, classes (name to count), object_to_pixel_ratio (area of all objects over all pixels) and empty_share
        (share of pictures without an object).

    Raises:
        ValueError: an argument out of its range.
        FileExistsError: ``output`` holds something else.
    """
    for name, value, least in (
        ("seed", seed, 0),
        ("num_train", num_train, 1),
        ("num_val", num_val, 1),
        ("size", size, 64),
        ("workers", 1 if workers is None else workers, 1),
    ):
        if value < least:
            raise ValueError(f"make_shapes({name}=) expects an integer of at least {least}. Got {value}.")
    output = Path(output)
    counts = {"train": num_train, "val": num_val}
    parameters = {
        "generator": "make_shapes",
        "version": VERSION,
        "seed": seed,
        "num_train": num_train,
        "num_val": num_val,
        "size": size,
    }
    marker = output / UNFINISHED
    if marker.exists():
        for split in SPLITS:  # of a run with other counts, pictures may lie here that this one would not overwrite
            for path in (output / split).glob("[0-9]" * 6 + ".jpg"):
                path.unlink()
    elif output.exists() and (not output.is_dir() or any(output.iterdir())):
        found = _found(output)
        theirs = None if found is None else found["train"]["info"]["parameters"]
        if found is None or any(coco["info"]["parameters"] != parameters for coco in found.values()):
            raise FileExistsError(
                "make_shapes(output=) expects a new or empty folder, or one that holds this very data set.\n"
                f"  output: {output}\n"
                f"  wanted: {parameters}\n"
                f"  found : {theirs or 'something that make_shapes did not make'}\n"
                "HINT: choose another folder, or delete this one if nothing in it is needed."
            )
        paths = (output / split / image["file_name"] for split in SPLITS for image in found[split]["images"])
        if all(path.is_file() and path.stat().st_size > 0 for path in paths):
            return {"made": False, **{split: _describe(found[split]) for split in SPLITS}}
    output.mkdir(parents=True, exist_ok=True)
    marker.write_text("datasets/make_shapes.py is filling this folder, or was stopped before the end.\n")
    report: dict[str, Any] = {"made": True}
    for split in SPLITS:
        coco = _make_split(output, split, counts[split], parameters, workers or min(4, os.cpu_count() or 1))
        (output / f"{split}.json").write_text(json.dumps(coco) + "\n")
        report[split] = _describe(coco)
    marker.unlink()
    return report


def main() -> None:
    """Command line; see ``--help``."""
    parser = argparse.ArgumentParser(
        description="Make the Shapes data set: COCO json and JPEG pictures.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    # As spt_d2.data.datasets.dataset_root has it, which needs Detectron2.
    root = os.path.expanduser(os.getenv("DETECTRON2_DATASETS", "datasets"))
    parser.add_argument("--output", default=os.path.join(root, "shapes"), help="folder to fill")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--num-train", type=int, default=1200, help="training pictures")
    parser.add_argument("--num-val", type=int, default=240, help="validation pictures")
    parser.add_argument("--size", type=int, default=256, help="side of a picture, pixels")
    parser.add_argument("--workers", type=int, help="threads; one per core, at most 4, if not given")
    args = parser.parse_args()
    start = time.perf_counter()
    try:
        report = make_shapes(**vars(args))
    except (FileExistsError, ValueError) as error:
        parser.exit(1, f"{error}\n")
    state = f"made in {time.perf_counter() - start:.1f} s" if report["made"] else "already complete"
    print(f"Shapes in {args.output}: {state}")
    for split in SPLITS:
        split_report = report[split]
        classes = ", ".join(f"{name} {count}" for name, count in split_report["classes"].items())
        print(
            f"  {split:5s} {split_report['images']} images, {split_report['objects']} objects ({classes}), "
            f"object-to-pixel ratio {split_report['object_to_pixel_ratio']:.2%}, "
            f"empty images {split_report['empty_share']:.1%}"
        )


if __name__ == "__main__":
    main()
