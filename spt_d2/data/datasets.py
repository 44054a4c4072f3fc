"""
Data sets of one's own, named in a config instead of in Python, and the demo's Shapes.

An entry is ``[name, json file, image folder]``, COCO format. The number of classes is read from the training json.
"""

import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import load_coco_json

from spt_d2.data.bdd100k import CLASSES as BDD100K_CLASSES
from spt_d2.data.coco_json import read_coco

logger = logging.getLogger(__name__)

# Detectron2 keeps "iscrowd" by itself; the mappers read these too.
_EXTRA_KEYS = ["ignored", "area", "difficult"]


@dataclass(frozen=True)
class Categories:
    """
    Categories of a data set, sorted by id: the order in which Detectron2 numbers classes.

    Attributes:
        source: where they were read, for messages.
        names: one per class.
        ids: one per class, with gaps perhaps; empty where not known.
    """

    source: str
    names: tuple[str, ...]
    ids: tuple[int, ...] = ()


def dataset_root() -> str:
    """The folder of data sets, as Detectron2 has it: ``$DETECTRON2_DATASETS``, else ``datasets``."""
    return os.path.expanduser(os.getenv("DETECTRON2_DATASETS", "datasets"))


def register_custom_datasets(entries: Sequence[Sequence[str]]) -> list[str]:
    """
    Register data sets in COCO format.

    Files are read when a data set is first asked for, its categories now. The same entry may be registered again.

    Args:
        entries: each ``[name, json file, image folder]``. Relative paths are taken from the working directory where
            they exist, else from ``$DETECTRON2_DATASETS``.

    Returns:
        the names.

    Raises:
        ValueError: an entry that is no triple of texts, a name that something else has, a json that is not COCO's.
        FileNotFoundError: no such json or folder.
    """
    names = []
    for entry in entries:
        if isinstance(entry, str) or len(entry) != 3 or not all(isinstance(part, str) and part for part in entry):
            raise ValueError(
                "DATASETS.CUSTOM expects entries [name, json file, image folder]. "
                f"Got {entry if isinstance(entry, str) else list(entry)!r}."
            )
        name, json_file, image_root = entry
        json_file = _find(json_file, os.path.isfile, f"json file of data set '{name}'")
        image_root = _find(image_root, os.path.isdir, f"image folder of data set '{name}'")
        _register(name, json_file, image_root, read_categories(json_file))
        names.append(name)
    return names


def _find(path: str, exists: Any, what: str) -> str:
    path = os.path.expanduser(path)
    tried = [path] if os.path.isabs(path) else [path, os.path.join(dataset_root(), path)]
    for candidate in tried:
        if exists(candidate):
            return os.path.abspath(candidate)
    places = "".join(f"\n  tried: {os.path.abspath(candidate)}" for candidate in tried)
    raise FileNotFoundError(f"The {what} does not exist.{places}\nHINT: see DATASETS.CUSTOM in the config.")


def _load(json_file: str, image_root: str, name: str) -> list[dict[str, Any]]:
    """The entries of a data set in COCO format."""
    if not os.path.isfile(json_file):
        raise FileNotFoundError(
            f"The data set '{name}' expects its annotations in {json_file}. There is no such file.\n"
            "HINT: datasets/README.md says how it is made; $DETECTRON2_DATASETS (by default ./datasets) holds it."
        )
    return load_coco_json(json_file, image_root, name, extra_annotation_keys=_EXTRA_KEYS)


def _register(name: str, json_file: str, image_root: str, categories: Categories | None) -> None:
    """Register a data set unless it is; its classes too where they are known."""
    wanted = {"json_file": json_file, "image_root": image_root}
    metadata = MetadataCatalog.get(name)
    taken = {key: metadata.get(key) for key in wanted if metadata.get(key) not in (None, wanted[key])}
    if taken or (name in DatasetCatalog and metadata.get("json_file") is None):
        known = "".join(
            f"\n  registered {key}: {value}\n  wanted     {key}: {wanted[key]}" for key, value in taken.items()
        )
        raise ValueError(f"The data set name '{name}' is taken.{known}\nHINT: choose another name in DATASETS.CUSTOM.")
    if name not in DatasetCatalog:
        DatasetCatalog.register(name, partial(_load, json_file, image_root, name))
    metadata.set(evaluator_type="coco", **wanted)
    if categories is not None:
        # What load_coco_json sets too, so that prediction and evaluation know the classes without the images.
        metadata.set(
            thing_classes=list(categories.names),
            thing_dataset_id_to_contiguous_id={number: index for index, number in enumerate(categories.ids)},
        )


def read_categories(json_file: str) -> Categories:
    """
    Read the categories of a json file, and check that it is COCO's.

    Raises:
        ValueError: not json, a part missing, categories that are not distinct, an annotation with ``ignore``.
    """
    return _read_categories(json_file, os.stat(json_file).st_mtime_ns)


@lru_cache(maxsize=64)
def _read_categories(json_file: str, mtime: int) -> Categories:
    problem = f"The file {json_file} is not in COCO format: "
    content = read_coco(json_file)
    for key in ("images", "categories"):
        if not content[key]:
            raise ValueError(f"{problem}its list of {key} is empty.")
    try:
        categories = sorted((int(category["id"]), str(category["name"])) for category in content["categories"])
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{problem}each category expects a whole number 'id' and a 'name'.") from error
    ids, names = zip(*categories, strict=True)
    if len(set(ids)) < len(ids):
        raise ValueError(f"{problem}category ids expect to be distinct. Got {list(ids)}.")
    if any(annotation.get("ignore", 0) for annotation in content["annotations"]):
        # detectron2 refuses them with a bare assertion.
        raise ValueError(
            f"{problem}it has annotations with 'ignore', which Detectron2 does not read.\n"
            "HINT: use 'iscrowd': 1 (no object to the detector either) or 'ignored': 1 (to the gates only)."
        )
    return Categories(json_file, names, ids)


def dataset_categories(name: str) -> Categories | None:
    """Categories of a registered data set; None where they are not known before it is loaded."""
    if name not in DatasetCatalog:
        return None
    metadata = MetadataCatalog.get(name)
    names, ids = metadata.get("thing_classes"), metadata.get("thing_dataset_id_to_contiguous_id")
    if names is not None:
        return Categories(metadata.get("json_file") or name, tuple(names), tuple(ids or ()))
    if name.startswith("shapes_") and os.path.isfile(metadata.json_file):
        return read_categories(metadata.json_file)
    return None


def register_shapes() -> None:
    """Register ``shapes_train`` and ``shapes_val``, which ``datasets/make_shapes.py`` makes; harmless if they are."""
    for split in ("train", "val"):
        if f"shapes_{split}" not in DatasetCatalog:
            folder = os.path.join(dataset_root(), "shapes")
            _register(f"shapes_{split}", os.path.join(folder, f"{split}.json"), os.path.join(folder, split), None)


def register_bdd100k() -> None:
    """
    Register ``bdd100k_{train,val}`` and ``bdd100k_sparse_{train,val}``; harmless if they are, or if files are missing.

    Their json files are made by ``datasets/prepare_bdd100k.py`` and ``datasets/make_sparse_subset.py``.
    """
    categories = Categories("BDD100K", tuple(BDD100K_CLASSES), tuple(range(1, len(BDD100K_CLASSES) + 1)))
    folder = os.path.join(dataset_root(), "bdd100k")
    for split in ("train", "val"):
        images = os.path.join(folder, "images", "100k", split)
        for name, file in ((f"bdd100k_{split}", f"det_{split}"), (f"bdd100k_sparse_{split}", f"det_sparse_{split}")):
            if name not in DatasetCatalog:
                _register(name, os.path.join(folder, "annotations", f"{file}.json"), images, categories)
