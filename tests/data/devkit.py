"""VOC 2012's devkit with five images, and data sets registered from it."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import numpy as np
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image

from spt_d2.data import register_voc_multilabel
from spt_d2.data.voc import CLASSES

H, W = 60, 80
# Class, difficult, xmin, ymin, xmax, ymax: pixels counted from 1, the last included.
IMAGES = {
    "2008_000001": [("person", 0, 1, 1, 80, 60), ("dog", 1, 11, 21, 30, 40)],
    "2008_000002": [("dog", 0, 11, 21, 30, 40), ("dog", 1, 40, 1, 60, 10), ("cat", 1, 5, 5, 14, 24)],
    "2009_000003": [("tvmonitor", 0, 1, 1, 40, 30)],
    "2009_000004": [("car", 0, 1, 1, 40, 30), ("car", 0, 40, 30, 40, 30)],
    "2010_000005": [("sheep", 0, 11, 11, 40, 30), ("sheep", 0, 21, 21, 50, 40)],
}
SPLITS = {"train": ["2008_000001", "2009_000003", "2010_000005"], "val": ["2008_000002", "2009_000004"]}
SPLITS["trainval"] = sorted(SPLITS["train"] + SPLITS["val"])
OBJECT = """
  <object><name>{}</name><pose>Left</pose><truncated>1</truncated>
    <part><name>head</name><bndbox><xmin>3</xmin><ymin>4</ymin><xmax>5</xmax><ymax>6</ymax></bndbox></part>
    <difficult>{}</difficult>
    <bndbox><xmax>{}</xmax><xmin>{}</xmin><ymax>{}</ymax><ymin>{}</ymin></bndbox>
  </object>"""


def owners(objects, missing=()):
    """The pixel map of SegmentationObject: the k-th object is k, its rim void."""
    owner = np.zeros((H, W), dtype=np.uint8)
    for number, (_, _, x1, y1, x2, y2) in enumerate(objects, start=1):
        if number not in missing:
            owner[y1 - 1 : y2, x1 - 1 : x2] = 255
            owner[y1 + 3 : y2 - 4, x1 + 3 : x2 - 4] = number
    return owner


def make_devkit(folder: Path) -> Path:
    """``VOC2012`` in a folder: the devkit's layout, lists of classes included, which nobody reads but the tests."""
    folder = folder / "VOC2012"
    for part in ("JPEGImages", "Annotations", "ImageSets/Main", "SegmentationObject", "SegmentationClass"):
        (folder / part).mkdir(parents=True)
    generator = np.random.default_rng(0)
    for name, objects in IMAGES.items():
        pixels = generator.integers(0, 256, (H, W, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / "JPEGImages" / f"{name}.jpg")
        size = f"<size><width>{W}</width><height>{H}</height><depth>3</depth></size>"
        items = "".join(OBJECT.format(c, d, x2, x1, y2, y1) for c, d, x1, y1, x2, y2 in objects)
        (folder / "Annotations" / f"{name}.xml").write_text(f"<annotation>{size}{items}\n</annotation>\n")
    # The second object of one image is not segmented; the others of the devkit are not at all.
    save_owners(folder, "2008_000002", owners(IMAGES["2008_000002"], missing=[2]))
    save_owners(folder, "2009_000003", owners(IMAGES["2009_000003"]))
    for split, names in SPLITS.items():
        (folder / "ImageSets" / "Main" / f"{split}.txt").write_text("\n".join(names) + "\n")
        for cls in CLASSES:
            rows = [f"{name} {devkit_label(IMAGES[name], cls):2d}" for name in names]
            (folder / "ImageSets" / "Main" / f"{cls}_{split}.txt").write_text("\n".join(rows) + "\n")
    return folder


def save_owners(folder, name, owner):
    image = Image.fromarray(owner)
    # Colours like the devkit's: what counts is the index, not the colour.
    image.putpalette([(37 * i) % 256 for i in range(3 * 256)])
    image.save(folder / "SegmentationObject" / f"{name}.png")


def devkit_label(objects, cls):
    """1, 0 where the image shows difficult objects of the class only, -1, as in ImageSets/Main/<class>_<split>.txt."""
    found = [difficult for name, difficult, *_ in objects if name == cls]
    return -1 if not found else 1 if 0 in found else 0


@contextlib.contextmanager
def registered(devkit: Path) -> Iterator[set[str]]:
    """Names under which the package registers its data sets of VOC, for a while those of this devkit."""
    names = {name for name in DatasetCatalog.list() if name.startswith("voc_2012_multilabel")}

    def register_anew() -> None:
        for name in names:
            DatasetCatalog.remove(name)
            MetadataCatalog.remove(name)
        register_voc_multilabel()

    with mock.patch.dict(os.environ, {"DETECTRON2_DATASETS": str(devkit.parent)}):
        register_anew()
    try:
        yield names
    finally:
        register_anew()
