"""Read and write json files in COCO's instance format."""

import contextlib
import difflib
import json
import os
import reprlib
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets.coco import convert_to_coco_dict

_LISTS = ("images", "annotations", "categories")
_HINT = "HINT: tools/check_dataset.py finds all faults."


def find_coco(name: str) -> tuple[str, str | None]:
    """
    The json of a data set, and its folder of images where that is known.

    Args:
        name: path of a json, or the name of a registered data set.

    Raises:
        FileNotFoundError: neither; a registered data set whose json is not there.
        ValueError: a registered data set that has none.
    """
    if os.path.isfile(name):
        return name, None
    known = DatasetCatalog.list()
    if name not in known:
        close = difflib.get_close_matches(name, known, n=3)
        raise FileNotFoundError(
            f"A data set expects the path of a COCO json or a registered name. Got {name!r}, which is neither."
            + (f"\nHINT: close to it: {', '.join(close)}." if close else "")
        )
    metadata = MetadataCatalog.get(name)
    json_file = metadata.get("json_file")
    if json_file is None:
        raise ValueError(f"The data set {name!r} expects a COCO json behind it. It is registered without one.")
    if not os.path.isfile(json_file):
        raise FileNotFoundError(
            f"The data set {name!r} is registered, and its json is not there: {json_file}.\n"
            "HINT: datasets/README.md says where it goes; DETECTRON2_DATASETS names the folder of all."
        )
    return json_file, metadata.get("image_root")


def read_coco(path: str | os.PathLike[str]) -> dict[str, Any]:
    """
    Read a json file and see that it has COCO's three lists.

    Raises:
        ValueError: not json, or a list missing. What is in the lists is not looked at:
            :func:`spt_d2.data.coco_check.check_coco` does that.
    """
    problem = f"The file {os.fspath(path)} is not in COCO format: "
    with open(path, encoding="utf-8") as file:
        try:
            content = json.load(file)
        except ValueError as error:
            raise ValueError(f"{problem}{error}") from error
    for key in _LISTS:
        if not isinstance(content, dict) or not isinstance(content.get(key), list):
            raise ValueError(f"{problem}it expects a list under '{key}'.")
    return content


def is_without_json(name: str) -> bool:
    """Whether a data set of objects is registered, but without a json, as VOC 2012 is."""
    if os.path.isfile(name) or name not in DatasetCatalog:
        return False
    metadata = MetadataCatalog.get(name)
    return metadata.get("json_file") is None and metadata.get("thing_classes") is not None


def read_dataset(name: str) -> dict[str, Any]:
    """
    A data set in COCO's format: read from its json or, where it is registered without one, converted.

    Args:
        name: as in :func:`find_coco`.

    Raises:
        FileNotFoundError: neither a json nor a registered data set; one whose files are not there.
        ValueError: not in COCO's format.
    """
    if is_without_json(name):
        # Detectron2 leaves the list out where there is nothing to list.
        return {"annotations": [], **convert_to_coco_dict(name)}
    return read_coco(find_coco(name)[0])


def write_json(path: str | os.PathLike[str], content: Any, sources: tuple[str | os.PathLike[str], ...] = ()) -> None:
    """
    Write a json file, whole or not at all.

    Args:
        path: its folder is made if there is none.
        content: numbers have to be finite.
        sources: files that ``content`` was made from; they are not overwritten, under whatever name.

    Raises:
        ValueError: ``path`` is one of the sources; a number that is not finite.
    """
    for source in sources:
        if os.path.exists(path) and os.path.samefile(path, source):
            raise ValueError(
                f"write_json(path=) expects another file than the one that was read. Got {os.fspath(path)}.\n"
                "HINT: choose another name for the output."
            )
    # In one piece: json.dump would take the slow encoder.
    text = json.dumps(content, allow_nan=False)
    os.makedirs(os.path.dirname(os.path.abspath(path)), exist_ok=True)
    unfinished = f"{os.fspath(path)}.unfinished"
    with open(unfinished, "w", encoding="utf-8") as file:
        file.write(text)
    os.replace(unfinished, path)


def expect_new_files(paths: Iterable[str | os.PathLike[str]], force: bool) -> None:
    """
    See that nothing would be overwritten, before anything is read or written.

    Raises:
        FileExistsError: one of the files is there already, and no ``force``.
    """
    there = [os.fspath(path) for path in paths if os.path.exists(path)]
    if there and not force:
        raise FileExistsError(
            f"Files are written where there are none yet. Got {', '.join(there)}.\n"
            "HINT: choose another name, or --force overwrites what is there."
        )


def annotations_by_image(content: Mapping[str, Any]) -> list[list[dict[str, Any]]]:
    """
    The annotations of each image, in the order of ``content["images"]``.

    Raises:
        ValueError: an annotation without ``image_id``, an image without ``id``.
    """
    found: defaultdict[Any, list[dict[str, Any]]] = defaultdict(list)
    for image_id, annotation in zip(_values(content, "annotations", "image_id"), content["annotations"]):
        found[image_id].append(annotation)
    return [found.get(image_id, []) for image_id in _values(content, "images", "id")]


def category_names(content: Mapping[str, Any]) -> dict[Any, str]:
    """
    The names of the categories by their ids, in the order of the json.

    Raises:
        ValueError: a category without ``id`` or ``name``.
    """
    ids, names = (_values(content, "categories", key) for key in ("id", "name"))
    return dict(zip(ids, map(str, names)))


def _values(content: Mapping[str, Any], entries: str, key: str) -> list[Any]:
    """What each entry of a list has under a key, a number or a text; ValueError names an entry that has none."""
    values = []
    for index, entry in enumerate(content[entries]):
        value = entry.get(key) if isinstance(entry, dict) else None
        if not isinstance(value, (int, float, str)):
            # Entries with polygons are long.
            got = reprlib.repr(entry)
            raise ValueError(f"{entries}[{index}] expects a number or a text under '{key}'. Got {got}.\n{_HINT}")
        values.append(value)
    return values


def is_object(annotation: Mapping[str, Any]) -> bool:
    """Whether an annotation is an object; crowds and ignore regions are none."""
    return not (annotation.get("iscrowd", 0) or annotation.get("ignore", 0) or annotation.get("ignored", 0))


@contextlib.contextmanager
def naming_image(image: Mapping[str, Any]) -> Iterator[None]:
    """
    Within: say which image an error is of.

    Raises:
        ValueError: in place of a ValueError, of a KeyError for what a record lacks or a category that is not known, or
            of a TypeError for a null or a text where a number belongs.
    """
    try:
        yield
    except (KeyError, TypeError, ValueError) as error:
        what = f"lacks, or does not know, {error}" if isinstance(error, KeyError) else str(error)
        raise ValueError(f"Image {image.get('id')}: {what}\n{_HINT}") from error


@contextlib.contextmanager
def naming_file(path: str | os.PathLike[str]) -> Iterator[None]:
    """
    Within: say which json an error is of.

    Raises:
        ValueError: in place of a ValueError.
    """
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{os.fspath(path)}: {error}") from error
