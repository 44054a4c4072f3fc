"""Data sets named in a config: registered from a COCO json, whatever their ids; errors that say what is wrong."""

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("detectron2", reason="detectron2 is not installed")
from detectron2.data import DatasetCatalog, MetadataCatalog, get_detection_dataset_dicts

from spt_d2.data import register_custom_datasets, register_shapes
from spt_d2.data.datasets import Categories, dataset_categories, dataset_root, read_categories


@pytest.fixture(autouse=True)
def catalogs() -> Iterator[None]:
    """What a test registers is gone after it."""
    before = [dict(catalog) for catalog in (DatasetCatalog, MetadataCatalog)]
    yield
    for catalog, entries in zip((DatasetCatalog, MetadataCatalog), before):
        for name in set(catalog) - set(entries):
            catalog.pop(name)


def coco(**parts: Any) -> dict[str, Any]:
    """Two images, the second without objects, and three categories whose ids have gaps and are in no order."""
    box = {"bbox": [4.0, 5.0, 20.0, 10.0], "area": 150.0, "image_id": 12}
    return {
        "images": [
            {"id": 12, "file_name": "sub/a.jpg", "height": 48, "width": 64},
            {"id": 7, "file_name": "b.jpg", "height": 32, "width": 32},
        ],
        "annotations": [
            {"id": 1, "category_id": 90, "iscrowd": 0, **box},
            {"id": 2, "category_id": 3, "iscrowd": 1, **box},
            {"id": 3, "category_id": 17, "iscrowd": 0, "ignored": 1, **box},
        ],
        "categories": [{"id": 90, "name": "cat"}, {"id": 3, "name": "dog"}, {"id": 17, "name": "cow"}],
        **parts,
    }


Write = Callable[..., tuple[str, str]]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Write a json below a folder, which is made with an image folder beside it; gives both paths."""

    def write(content: Any = None, folder: Path = tmp_path, name: str = "train.json") -> tuple[str, str]:
        (folder / "images").mkdir(parents=True, exist_ok=True)
        text = content if isinstance(content, str) else json.dumps(coco() if content is None else content)
        (folder / name).write_text(text)
        return str(folder / name), str(folder / "images")

    return write


def test_a_registered_set_reads_as_detectron2_reads_it(write: Write) -> None:
    json_file, images = write()
    assert register_custom_datasets([["mine", json_file, images]]) == ["mine"]
    records = {record["image_id"]: record for record in DatasetCatalog.get("mine")}
    assert records[12]["file_name"] == os.path.join(images, "sub/a.jpg")
    assert (records[12]["height"], records[12]["width"]) == (48, 64)
    assert records[7]["annotations"] == []
    annotations = records[12]["annotations"]
    # Classes are numbered in the order of the ids 3, 17, 90.
    assert [annotation["category_id"] for annotation in annotations] == [2, 0, 1]
    assert [annotation["iscrowd"] for annotation in annotations] == [0, 1, 0]
    # What the mapper and the evaluator of selections read besides.
    assert [annotation.get("ignored", 0) for annotation in annotations] == [0, 0, 1]
    assert [annotation["area"] for annotation in annotations] == [150.0] * 3


def test_classes_are_known_before_the_images_are_read(write: Write) -> None:
    json_file, images = write()
    register_custom_datasets([["mine", json_file, images]])
    metadata = MetadataCatalog.get("mine")
    before = (list(metadata.thing_classes), dict(metadata.thing_dataset_id_to_contiguous_id))
    assert before == (["dog", "cow", "cat"], {3: 0, 17: 1, 90: 2})
    assert (metadata.json_file, metadata.image_root, metadata.evaluator_type) == (json_file, images, "coco")
    # Detectron2 sets them again, and refuses others.
    DatasetCatalog.get("mine")
    assert (metadata.thing_classes, metadata.thing_dataset_id_to_contiguous_id) == before
    assert dataset_categories("mine") == Categories(json_file, ("dog", "cow", "cat"), (3, 17, 90))


def test_images_without_objects_are_kept_or_left_out_as_detectron2_does(write: Write) -> None:
    json_file, images = write()
    register_custom_datasets([["mine", json_file, images]])
    assert len(get_detection_dataset_dicts("mine", filter_empty=False)) == 2
    assert len(get_detection_dataset_dicts("mine", filter_empty=True)) == 1


def test_files_are_read_when_a_set_is_asked_for(write: Write) -> None:
    json_file, images = write()
    register_custom_datasets([["mine", json_file, images]])
    content = coco()
    write({**content, "images": content["images"][:1]})
    assert len(DatasetCatalog.get("mine")) == 1


# Where files are


def test_a_relative_path_is_that_of_the_working_directory_else_of_the_folder_of_data_sets(
    write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here, root = tmp_path / "here", tmp_path / "root"
    here.mkdir()
    monkeypatch.chdir(here)
    monkeypatch.setenv("DETECTRON2_DATASETS", str(root))
    write(folder=root / "set")
    register_custom_datasets([["in_root", "set/train.json", "set/images"]])
    write(folder=here / "set")
    register_custom_datasets([["here", "set/train.json", "set/images"]])
    for name, folder in (("in_root", root), ("here", here)):
        metadata = MetadataCatalog.get(name)
        # Absolute: they are read later, from wherever the process then is.
        assert metadata.json_file == str(folder / "set" / "train.json")
        assert metadata.image_root == str(folder / "set" / "images")
    monkeypatch.chdir(tmp_path)
    assert len(DatasetCatalog.get("here")) == 2


def test_a_tilde_is_the_home_folder(write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    write(folder=tmp_path / "set")
    register_custom_datasets([["mine", "~/set/train.json", "~/set/images"]])
    assert MetadataCatalog.get("mine").json_file == str(tmp_path / "set" / "train.json")
    monkeypatch.setenv("DETECTRON2_DATASETS", "~/set")
    assert dataset_root() == str(tmp_path / "set")
    monkeypatch.delenv("DETECTRON2_DATASETS")
    assert dataset_root() == "datasets"


@pytest.mark.parametrize("what, which", [("json file", 1), ("image folder", 2)])
def test_a_file_that_does_not_exist_is_an_error_that_lists_where_it_was_looked_for(
    what: str, which: int, write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path / "root"))
    entry = ["mine", *write()]
    entry[which] = "nowhere"
    with pytest.raises(FileNotFoundError) as caught:
        register_custom_datasets([entry])
    assert str(caught.value) == (
        f"The {what} of data set 'mine' does not exist.\n  tried: {tmp_path / 'nowhere'}\n"
        f"  tried: {tmp_path / 'root' / 'nowhere'}\nHINT: see DATASETS.CUSTOM in the config."
    )
    entry[which] = str(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError) as caught:
        register_custom_datasets([entry])
    assert str(caught.value).count("tried:") == 1
    assert "mine" not in DatasetCatalog


# Names


def test_the_same_entry_may_be_registered_again_and_another_of_its_name_may_not(write: Write, tmp_path: Path) -> None:
    json_file, images = write()
    other, _ = write(name="other.json")
    for _ in range(2):
        register_custom_datasets([["mine", json_file, images]])
    with pytest.raises(ValueError) as caught:
        register_custom_datasets([["mine", other, images]])
    assert str(caught.value) == (
        f"The data set name 'mine' is taken.\n  registered json_file: {json_file}\n  wanted     json_file: {other}\n"
        "HINT: choose another name in DATASETS.CUSTOM."
    )
    assert MetadataCatalog.get("mine").json_file == json_file
    with pytest.raises(ValueError, match=r"is taken.\n  registered image_root: .*\n  wanted     image_root: "):
        register_custom_datasets([["mine", json_file, str(tmp_path)]])


@pytest.mark.parametrize("name", ["coco_2017_val", "voc_2012_train"])
def test_the_name_of_a_set_that_detectron2_knows_is_taken(name: str, write: Write) -> None:
    before = dict(MetadataCatalog.get(name).as_dict())
    with pytest.raises(ValueError, match=rf"The data set name '{name}' is taken"):
        register_custom_datasets([[name, *write()]])
    assert MetadataCatalog.get(name).as_dict() == before


@pytest.mark.parametrize(
    "entry, got",
    [
        ("mine", "Got 'mine'"),
        (["mine"], r"Got \['mine'\]"),
        (["mine", "a.json", "images", "more"], "Got .*'more'"),
        (["mine", "a.json", 3], "Got .*3"),
        (["", "a.json", "images"], "Got .*''"),
    ],
)
def test_an_entry_that_is_no_triple_of_texts_is_an_error(entry: Any, got: str) -> None:
    with pytest.raises(ValueError, match=rf"DATASETS.CUSTOM expects entries \[name, json file, image folder\]. {got}"):
        register_custom_datasets([entry])


# What is not COCO

NO_NAME = [{"id": 1, "name": "cat"}, {"id": 2}]
TWICE = [{"id": 1, "name": "cat"}, {"id": 1, "name": "dog"}]
IGNORE = [{"id": 1, "image_id": 12, "category_id": 3, "bbox": [0, 0, 1, 1], "ignore": 1}]


@pytest.mark.parametrize(
    "content, message",
    [
        ("{", "Expecting property name"),
        ([], "it expects a list under 'images'"),
        ({"images": [], "annotations": []}, "it expects a list under 'categories'"),
        (coco(annotations={}), "it expects a list under 'annotations'"),
        (coco(images=[]), "its list of images is empty"),
        (coco(categories=[]), "its list of categories is empty"),
        (coco(categories=NO_NAME), "each category expects a whole number 'id' and a 'name'"),
        (coco(categories=[{"id": "cat", "name": "cat"}]), "each category expects a whole number 'id' and a 'name'"),
        (coco(categories=TWICE), r"category ids expect to be distinct. Got \[1, 1\]"),
        (coco(annotations=IGNORE), r"annotations with 'ignore', which Detectron2 does not read.\nHINT: use 'iscrowd'"),
    ],
)
def test_a_json_that_is_not_cocos_is_an_error_that_names_it(content: Any, message: str, write: Write) -> None:
    json_file, images = write(content)
    with pytest.raises(ValueError, match=rf"The file {json_file} is not in COCO format: .*{message}"):
        register_custom_datasets([["mine", json_file, images]])
    assert "mine" not in DatasetCatalog


def test_a_json_without_annotations_is_cocos(write: Write) -> None:
    json_file, _ = write(coco(annotations=[]))
    assert read_categories(json_file).names == ("dog", "cow", "cat")


def test_a_json_that_changed_is_read_again(write: Write) -> None:
    json_file, _ = write()
    first = read_categories(json_file)
    write(coco(categories=[{"id": 5, "name": "pig"}]))
    os.utime(json_file, ns=(0, 0))
    assert first.ids == (3, 17, 90) and read_categories(json_file).ids == (5,)


# Shapes, and sets of others


def test_shapes_is_registered_where_data_sets_are_and_knows_its_classes_once_it_is_made(
    tiny_shapes: list[list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = Path(tiny_shapes[1][1])
    names = tuple(category["name"] for category in json.loads(made.read_text())["categories"])
    assert len(names) == 4
    for root, known in ((tmp_path, None), (made.parents[1], Categories(str(made), names, (1, 2, 3, 4)))):
        monkeypatch.setenv("DETECTRON2_DATASETS", str(root))
        # The names belong to every test.
        kept = [(catalog, catalog.pop("shapes_val")) for catalog in (DatasetCatalog, MetadataCatalog)]
        try:
            register_shapes()
            assert MetadataCatalog.get("shapes_val").json_file == str(root / "shapes" / "val.json")
            assert dataset_categories("shapes_val") == known
            if known is not None:
                assert len(DatasetCatalog.get("shapes_val")) == 6
        finally:
            for catalog, entry in kept:
                catalog.pop("shapes_val")
                catalog["shapes_val"] = entry


def test_categories_of_other_sets_are_those_of_their_metadata(write: Write) -> None:
    found = dataset_categories("coco_2017_val")
    assert found is not None and len(found.names) == 80 and found.ids[0] == 1 and found.ids[-1] == 90
    assert dataset_categories("no_such_set") is None
    DatasetCatalog.register("bare", list)
    assert dataset_categories("bare") is None


@pytest.mark.parametrize("name", ("bdd100k_sparse_train", "shapes_val"))
def test_a_built_in_set_that_was_not_made_is_an_error_that_says_how(name: str) -> None:
    if os.path.isfile(MetadataCatalog.get(name).json_file):
        pytest.skip(f"{name} is on this machine")
    with pytest.raises(
        FileNotFoundError, match=rf"'{name}' expects its annotations in .*json.(.|\n)*HINT: datasets/README"
    ):
        DatasetCatalog.get(name)
