"""datasets/split_coco.py: every image on one side, groups whole, and nothing overwritten."""

import json

import pytest

pytest.importorskip("detectron2", reason="detectron2 is not installed")

from tests.conftest import ROOT, load_program


@pytest.fixture
def program():
    return load_program(ROOT / "datasets" / "split_coco.py")


@pytest.fixture
def files(tmp_path):
    """Twenty images of four films of five frames, two objects in each but the first."""
    images = [{"id": 10 + i, "file_name": f"film{i // 5}_frame{i % 5}.jpg", "width": 8, "height": 8} for i in range(20)]
    annotations = [
        {"id": 2 * i + k, "image_id": 10 + i, "category_id": 3, "bbox": [0, 0, 2, 2]}
        for i in range(1, 20)
        for k in (0, 1)
    ]
    content = {"info": {"a": 1}, "images": images, "annotations": annotations, "categories": [{"id": 3, "name": "x"}]}
    path = tmp_path / "all.json"
    path.write_text(json.dumps(content))
    return [str(path), str(tmp_path / "train.json"), str(tmp_path / "new" / "val.json")]


def read(path):
    with open(path) as file:
        return json.load(file)


def test_every_image_is_on_one_side_with_its_annotations(program, files, capsys):
    assert program.main(files) == 0
    whole, train, val = map(read, files)
    assert len(val["images"]) == 4 and len(train["images"]) == 16
    for key in ("images", "annotations"):
        ids = sorted(each["id"] for part in (train, val) for each in part[key])
        assert ids == sorted(each["id"] for each in whole[key])
    for part in (train, val):
        assert {each["image_id"] for each in part["annotations"]} <= {each["id"] for each in part["images"]}
        # In the order of the file they come from; all else as it was.
        assert part["images"] == [image for image in whole["images"] if image in part["images"]]
        assert part["categories"] == whole["categories"] and part["info"] == whole["info"]
    assert f"val.json: 4 images, {len(val['annotations'])} annotations" in capsys.readouterr().out


def test_a_seed_draws_the_same_and_another_one_others(program, files):
    def drawn(*more):
        assert program.main([*files, *more]) == 0
        return [image["id"] for image in read(files[2])["images"]]

    assert drawn() == drawn("--seed", "0") != drawn("--seed", "1")
    assert len(drawn("--share", "0.5")) == 10 and len(drawn("--share", "0.001")) == 1
    assert len(drawn("--share", "0.999")) == 19


def test_groups_are_kept_whole(program, files):
    for seed in range(5):
        assert program.main([*files, "--group", "(film[0-9]+)_", "--seed", str(seed)]) == 0
        films = [{image["file_name"].split("_")[0] for image in read(path)["images"]} for path in files[1:]]
        assert not films[0] & films[1] and (len(films[0]), len(films[1])) == (3, 1)
    # What the pattern does not fit is on its own.
    assert program.main([*files, "--group", "(film0)_"]) == 0
    sides = [{image["file_name"].startswith("film0") for image in read(path)["images"]} for path in files[1:]]
    assert True not in sides[0] & sides[1]
    # Nor is an alternative without the group one group of all that match it.
    assert program.main([*files, "--group", "(film0)_|film"]) == 0
    assert len(read(files[2])["images"]) in (4, 5)


@pytest.mark.parametrize(
    "more, message",
    [
        (("--share", "1"), "between 0 and 1. Got 1.0"),
        (("--group", "("), "a regular expression"),
        (("--group", "film"), "a group in parentheses. Got 'film'"),
    ],
    ids=["share", "pattern", "group"],
)
def test_options_that_cannot_be_are_refused(program, files, capsys, more, message):
    with pytest.raises(SystemExit):
        program.main([*files, *more])
    assert message in capsys.readouterr().err


def test_nothing_is_overwritten_and_one_group_is_no_split(program, files, capsys):
    before = read(files[0])
    for paths in ([files[0], files[0], files[2]], [files[0], files[1], files[0]], [files[0], files[1], files[1]]):
        assert program.main(paths) == 1
        assert "HINT: choose another name" in capsys.readouterr().err
    assert read(files[0]) == before
    assert program.main([*files, "--group", "(film)"]) == 1
    assert "at least two groups. Got 1" in capsys.readouterr().err
    assert program.main(["none.json", *files[1:]]) == 1
