"""Without the ids that hold a COCO json together, programs name the file, the entry and the cure."""

import json
import re

import pytest

pytest.importorskip("detectron2", reason="detectron2 is not installed")

from spt_d2.data.coco_json import annotations_by_image, category_names
from tests.conftest import ROOT, load_program

PROGRAMS = {
    "tools/dataset_stats.py": [],
    "datasets/split_coco.py": ["train.json", "val.json"],
    "datasets/make_sparse_subset.py": ["sparse.json"],
}


def make_content():
    return {
        "images": [{"id": i, "file_name": f"{i}.jpg", "width": 8, "height": 8} for i in range(4)],
        "annotations": [
            {"id": i, "image_id": i, "category_id": 3, "bbox": [0, 0, 2, 2], "area": 4, "iscrowd": 0} for i in range(4)
        ],
        "categories": [{"id": 3, "name": "x"}],
    }


# name: list, place, key, value in its place; None takes it out
FAULTS = {
    "annotation without its image": ("annotations", 2, "image_id", None),
    "annotation of an image in a list": ("annotations", 2, "image_id", [2]),
    "annotation of null": ("annotations", 3, None, None),
    "image without id": ("images", 1, "id", None),
    "image that is a text": ("images", 1, None, "1.jpg"),
    "category without id": ("categories", 0, "id", None),
    "category without name": ("categories", 0, "name", None),
}


def spoil(content, entries, place, key, value):
    if key is None:
        content[entries][place] = value
    elif value is None:
        del content[entries][place][key]
    else:
        content[entries][place][key] = value


@pytest.mark.parametrize("name", PROGRAMS)
@pytest.mark.parametrize("fault", FAULTS)
def test_programs_name_file_entry_and_cure(tmp_path, monkeypatch, capsys, name, fault):
    monkeypatch.chdir(tmp_path)
    content = make_content()
    spoil(content, *FAULTS[fault])
    (tmp_path / "mine.json").write_text(json.dumps(content))
    assert load_program(ROOT / name).main(["mine.json", *PROGRAMS[name]]) == 1
    message = capsys.readouterr().err
    entries, place, key, _ = FAULTS[fault]
    wanted = rf"mine\.json: {entries}\[{place}\] expects a number or a text under '{key or '.*'}'\. Got .*\.\nHINT: "
    assert re.search(wanted + r"tools/check_dataset\.py", message), message
    assert [path.name for path in tmp_path.iterdir()] == ["mine.json"]


@pytest.mark.parametrize("name", PROGRAMS)
def test_programs_take_ids_that_are_texts_or_zero(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    content = make_content()
    for entry in content["images"]:
        entry["id"] = f"image {entry['id']}"
    for entry in content["annotations"]:
        entry.update(image_id=f"image {entry['image_id']}", category_id=0)
    content["categories"][0]["id"] = 0
    (tmp_path / "mine.json").write_text(json.dumps(content))
    assert load_program(ROOT / name).main(["mine.json", *PROGRAMS[name]]) == 0
    assert [len(found) for found in annotations_by_image(content)] == [1] * 4 and category_names(content) == {0: "x"}


def test_what_is_shown_of_a_long_entry_is_short():
    content = make_content()
    del content["annotations"][0]["image_id"]
    content["annotations"][0]["segmentation"] = [list(range(5000))]
    with pytest.raises(ValueError, match=r"^annotations\[0\] expects") as found:
        annotations_by_image(content)
    assert len(str(found.value)) < 300


def test_a_bound_out_of_range_is_an_error_of_its_option(tmp_path, capsys):
    program = load_program(ROOT / "datasets" / "make_sparse_subset.py")
    for bound in ("0", "1.5", "nan"):
        with pytest.raises(SystemExit):
            program.main([str(tmp_path / "a.json"), str(tmp_path / "b.json"), "--max-ratio", bound])
        assert f"--max-ratio expects a share in (0, 1]. Got {float(bound)}" in capsys.readouterr().err
