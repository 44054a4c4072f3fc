"""The check of a data set whose images are not where it looks says where they are."""

import json

import pytest

pytest.importorskip("detectron2", reason="detectron2 is not installed")

from PIL import Image

from spt_d2.data.coco_check import check_coco
from tests.conftest import ROOT, load_program

NUMBER = 40


def make_content(pattern):
    return {
        "info": {},
        "images": [{"id": i, "file_name": pattern.format(i), "width": 16, "height": 12} for i in range(NUMBER)],
        "annotations": [
            {"id": i + 1, "image_id": i, "category_id": 3, "bbox": [0, 0, 2, 2], "area": 4, "iscrowd": 0,
             "segmentation": [[0, 0, 2, 0, 2, 2, 0, 2]]} for i in range(NUMBER)
        ],
        "categories": [{"id": 3, "name": "x"}],
    }  # fmt: skip


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """my_data/images, seen from the folder above; its files are 0.png, 1.png and so on."""
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "my_data" / "images"
    path.mkdir(parents=True)
    for number in range(NUMBER):
        Image.new("RGB", (16, 12)).save(path / f"{number}.png")
    return path


def missing(report):
    (problem,) = [problem for problem in report.problems if problem.kind == "image_missing"]
    return problem


ABOVE = f"--images my_data would find {NUMBER} of {NUMBER}"
BARE = f"file_name without its folders would find {NUMBER} of {NUMBER} in my_data/images"


@pytest.mark.parametrize(
    "pattern, hint",
    [
        ("images/{}.png", f"{ABOVE}; {BARE}"),
        ("train/{}.png", BARE),
        ("data\\train\\{}.png", BARE),
        ("{}.jpg", "neither --images my_data nor file_name without its folders would find more"),
    ],
    ids=["folder twice", "other folder", "separators of Windows", "gone"],
)
def test_a_wrong_folder_is_told_and_what_would_find_the_files(folder, pattern, hint):
    report = check_coco(make_content(pattern), "my_data/images")
    found = missing(report)
    assert found.count == NUMBER and found.hint == hint
    assert found.examples[0].endswith(f": not my_data/images/{pattern.format(0)}")
    # To leave out everything is no cure.
    assert found.cure == "" and report.clean is None
    text = report.text()
    assert f" HINT: {hint}\n" in text and "leaves them out" not in text
    assert report.as_dict()["problems"][0]["hint"] == hint


def test_a_folder_above_the_images_is_told_too(folder):
    # The files lie one folder further down: neither of the two finds them.
    assert missing(check_coco(make_content("{}.png"), "my_data")).hint.startswith("neither --images . nor")
    # An absolute path is answered by one.
    hint = missing(check_coco(make_content("images/{}.png"), str(folder))).hint
    assert hint.startswith(f"--images {folder.parent} would find {NUMBER} of {NUMBER};")


def test_of_some_files_that_are_gone_the_path_is_told_and_no_other_folder(folder):
    for number in range(NUMBER - 2):
        (folder / f"{number}.png").unlink()
        report = check_coco(make_content("{}.png"), "my_data/images")
        found = missing(report)
        assert found.count == number + 1 and found.hint == ""
        assert found.cure == "leaves them out, with their annotations"
        assert found.examples[0].endswith(": not my_data/images/0.png")
    assert len(report.clean["images"]) == 2
    # Of almost all files it is told, and a clean copy can be made still.
    (folder / f"{NUMBER - 2}.png").unlink()
    report = check_coco(make_content("{}.png"), "my_data/images")
    assert missing(report).hint.startswith("neither --images my_data nor") and len(report.clean["images"]) == 1
    assert missing(report).cure == f"leaves out {NUMBER - 1} of {NUMBER} images, with their annotations"


def test_the_program_prints_the_path_and_the_hint(folder, capsys):
    (folder.parent / "a.json").write_text(json.dumps(make_content("images/{}.png")))
    program = load_program(ROOT / "tools" / "check_dataset.py")
    assert program.main(["my_data/a.json", "--images", "my_data/images", "--fix", "clean.json"]) == 1
    printed = capsys.readouterr()
    assert f"HINT: {ABOVE}" in printed.out and "not my_data/images/images/0.png" in printed.out
    assert "no clean copy can be made" in printed.err
    assert program.main(["my_data/a.json", "--images", "my_data"]) == 0
