"""Are the image files there, can they be read, and are they of the size that the json says?"""

import os
import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from detectron2.data.detection_utils import read_image
from PIL import Image

from spt_d2.data.coco_check.draft import Draft
from spt_d2.data.progress import Progress, no_progress

_EXIF_ORIENTATION = 274
# These swap width and height.
_SIDEWAYS = (5, 6, 7, 8)
# Modes whose values Pillow cuts off at 255 when it makes them RGB, as Detectron2 does.
_DEEP_MODES = ("I", "F", "I;16", "I;16B", "I;16L", "I;16N")
# Where a smaller share of the files is found, the folder is more likely wrong than the files are gone.
_FEW_FOUND = 0.05


@dataclass(frozen=True)
class Header:
    """
    What the header of an image file says.

    Attributes:
        size: (h, w) as Detectron2 reads it, turned as its EXIF orientation says; (0, 0) where it cannot be read.
        stored: (h, w) as it is stored.
        orientation: EXIF's, 1 to 8; 1 is upright.
        mode: Pillow's.
        error: why it cannot be read, None where it can; ``missing`` where there is no such file.
    """

    size: tuple[int, int] = (0, 0)
    stored: tuple[int, int] = (0, 0)
    orientation: int = 1
    mode: str = ""
    error: str | None = None


def read_header(path: str, decode: bool = False) -> Header:
    """
    Read the header of an image file.

    Args:
        path: of the file.
        decode: read the pixels too, by Detectron2's own reader.
    """
    if not os.path.isfile(path):
        return Header(error="missing")
    # Pillow's readers raise anything on a damaged file; whatever it is, training would stop at it.
    try:
        with Image.open(path) as image:
            mode, (w, h) = image.mode, image.size
            try:
                orientation = image.getexif().get(_EXIF_ORIENTATION, 1)
            except Exception:  # Detectron2 catches as much, and takes the image for upright
                orientation = 1
        size = (w, h) if orientation in _SIDEWAYS else (h, w)
        if decode:
            h_read, w_read = read_image(path, "BGR").shape[:2]
            size = (int(h_read), int(w_read))
    except Exception as error:
        return Header(error=f"{type(error).__name__}: {error}")
    return Header(size, (h, w), orientation if orientation in range(2, 9) else 1, mode)


def read_headers(
    paths: Sequence[str], decode: bool = False, workers: int | None = None, progress: Progress = no_progress
) -> list[Header]:
    """
    Read the headers of many image files, in threads.

    Args:
        paths: of the files.
        decode: read the pixels too.
        workers: threads; by default four per CPU for headers, which wait for the disk, and one for pixels.
        progress: sees the files go by.
    """
    workers = workers or (os.cpu_count() or 1) * (1 if decode else 4)
    what = "reading images" if decode else "reading headers"
    with warnings.catch_warnings(), ThreadPoolExecutor(workers) as pool:
        # Of huge pictures and of odd EXIF: training only warns of them, too.
        warnings.simplefilter("ignore")
        return list(progress(pool.map(lambda path: read_header(path, decode), paths), len(paths), what))


def find_elsewhere(image_root: str, names: Sequence[str], found: int) -> str:
    """
    Say how many of the files the folder above would find, and how many the names without their folders.

    Args:
        image_root: folder in which they, or nearly all, are not.
        names: relative to a folder.
        found: how many are in ``image_root`` after all; what finds no more is no way.
    """
    parent = os.path.dirname(os.path.abspath(image_root))
    parent = parent if os.path.isabs(image_root) else os.path.relpath(parent)
    above = sum(os.path.isfile(os.path.join(parent, name)) for name in names)
    # A json that was made on Windows may have its separators.
    base = [name.replace("\\", "/").rpartition("/")[2] for name in names]
    bare = sum(os.path.isfile(os.path.join(image_root, name)) for name in base)
    if max(above, bare) <= found:
        return f"neither --images {parent} nor file_name without its folders would find more"
    ways = [
        *([f"--images {parent} would find {above} of {len(names)}"] if above > found else []),
        *([f"file_name without its folders would find {bare} of {len(names)} in {image_root}"] if bare > found else []),
    ]
    return "; ".join(ways)


def check_files(draft: Draft, image_root: str, decode: bool, workers: int | None, progress: Progress) -> None:
    """
    Find images whose file is missing, unreadable, or of another size than the json says.

    Sizes that the json lacks are filled in.

    Args:
        draft: after :func:`~spt_d2.data.coco_check.records.check_images`; its problems, sizes and keep flags change.
        image_root: folder that file names are relative to.
        decode: read the pixels too.
        workers: threads.
        progress: sees the files go by.
    """
    named = np.flatnonzero(draft.keep_images).tolist()
    paths = [os.path.join(image_root, draft.images[index]["file_name"]) for index in named]
    headers = dict(zip(named, read_headers(paths, decode, workers, progress)))

    def where(test: np.ndarray | list[bool]) -> np.ndarray:
        bad = np.zeros(len(draft.images), dtype=bool)
        bad[named] = test
        return bad

    missing = [headers[i].error == "missing" for i in named]
    tried = dict(zip(named, paths))
    cure, hint = "leaves them out, with their annotations", ""
    if sum(missing) > (1 - _FEW_FOUND) * len(named):
        names = [draft.images[index]["file_name"] for index in named]
        hint = find_elsewhere(image_root, names, len(named) - sum(missing))
        # Nothing would be left.
        cure = "" if all(missing) else f"leaves out {sum(missing)} of {len(named)} images, with their annotations"
    draft.add_images(
        "image_missing",
        True,
        where(missing),
        "have no file",
        cure=cure,
        detail=lambda i: f": not {tried[i]}",
        hint=hint,
    )
    draft.add_images(
        "image_unreadable",
        True,
        where([headers[i].error not in (None, "missing") for i in named]),
        "cannot be read",
        detail=lambda i: f": {headers[i].error}",
    )
    read = [i for i in named if headers[i].error is None]
    size, stored, stated = (np.zeros((len(draft.images), 2), dtype=np.int64) for _ in range(3))
    size[read] = np.array([headers[i].size for i in read]).reshape(-1, 2)
    stored[read] = np.array([headers[i].stored for i in read]).reshape(-1, 2)
    stated[read] = draft.sizes[read]
    unknown = (size > 0).all(axis=1) & (stated == 0).any(axis=1)
    draft.sizes[unknown] = stated[unknown] = size[unknown]

    other = (size != stated).any(axis=1)
    turned = other & (stored == stated).all(axis=1)

    def sizes(i: int) -> str:
        return f": {stated[i, 1]} x {stated[i, 0]} in the json, {size[i, 1]} x {size[i, 0]} as read"

    draft.add_images(
        "exif_size",
        True,
        turned,
        "are stored sideways, and the json has their stored size: Detectron2 turns them as their EXIF says, and stops",
        detail=lambda i: f"{sizes(i)} (orientation {headers[i].orientation})",
    )
    draft.add_images("image_size", True, other & ~turned, "are of another size than the json says", detail=sizes)
    draft.add_images(
        "exif_turned",
        False,
        where([headers[i].orientation != 1 for i in named]) & ~other,
        "are turned as their EXIF says when Detectron2 reads them; see that the boxes were drawn on the turned image",
        drop=False,
        cure="keeps them as they are",
        detail=lambda i: f": orientation {headers[i].orientation}",
    )
    draft.add_images(
        "image_depth",
        False,
        where([headers[i].mode in _DEEP_MODES for i in named]),
        "have more than 8 bits a channel; Detectron2 cuts them off at 255",
        drop=False,
        cure="keeps them as they are",
        detail=lambda i: f": mode {headers[i].mode}",
    )
