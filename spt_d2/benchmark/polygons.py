"""A data set in COCO's format whose images hold many polygons of many corners: the hard case for a mapper."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

# COCO has 7 objects an image, of 25 corners in the mean.
OBJECTS, CORNERS = 20, 60
IMAGE_SIZE = (480, 640)


def make_polygon_data(folder: Path, images: int, seed: int = 0) -> tuple[Path, Path]:
    """
    Write images and annotations.

    Args:
        folder: to write into, ``annotations.json`` and ``images``.
        images: how many, of :data:`IMAGE_SIZE`.
        seed: of all of it.

    Returns:
        paths of the annotations and of the images' folder.
    """
    random = np.random.default_rng(seed)
    height, width = IMAGE_SIZE
    pictures = folder / "images"
    pictures.mkdir(parents=True, exist_ok=True)
    entries: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for number in range(1, images + 1):
        name = f"{number:06d}.jpg"
        # Smooth, with some grain: a JPEG file as large as a photograph's, and as slow to decode.
        smooth = Image.fromarray(random.integers(0, 256, (15, 20, 3), dtype=np.uint8)).resize((width, height))
        grain = random.normal(0.0, 8.0, (height, width, 3))
        Image.fromarray((np.asarray(smooth) + grain).clip(0, 255).astype(np.uint8)).save(pictures / name, quality=90)
        entries.append({"id": number, "file_name": name, "height": height, "width": width})
        for _ in range(OBJECTS):
            polygon = star(random, width, height)
            x, y = polygon.T
            area = 0.5 * abs(np.dot(x, np.roll(y, 1)) - np.dot(y, np.roll(x, 1)))
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": number,
                    "category_id": 1,
                    "iscrowd": 0,
                    "bbox": [round(float(value), 2) for value in (x.min(), y.min(), np.ptp(x), np.ptp(y))],
                    "area": float(area),
                    "segmentation": [[round(float(value), 2) for value in polygon.flatten()]],
                }
            )
    path = folder / "annotations.json"
    categories = [{"id": 1, "name": "object"}]
    path.write_text(json.dumps({"images": entries, "annotations": annotations, "categories": categories}))
    return path, pictures


def star(random: np.random.Generator, width: int, height: int) -> np.ndarray:
    """(CORNERS, 2) x and y in pixels of an outline that does not cross itself, within the image."""
    radius = math.exp(random.uniform(math.log(12.0), math.log(120.0)))
    angles = 2 * math.pi * np.arange(CORNERS) / CORNERS
    lengths = radius * random.uniform(0.7, 1.0, CORNERS)
    centre = random.uniform((radius, radius), (width - radius, height - radius))
    return centre + lengths[:, None] * np.stack((np.cos(angles), np.sin(angles)), axis=1)
