"""datasets/split_coco.py: every image on one side, groups whole, classes counted, and nothing overwritten."""

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
        assert program.main([*files, "--force", *more]) == 0
        return [image["id"] for image in read(files[2])["images"]]

    assert drawn() == drawn("--seed", "0") != drawn("--seed", "1")
    assert len(drawn("--share", "0.5")) == 10 and len(drawn("--share", "0.001")) == 1
    assert len(drawn("--share", "0.999")) == 19


def test_groups_are_kept_whole(program, files):
    for seed in range(5):
        assert program.main([*files, "--group", "(film[0-9]+)_", "--seed", str(seed), "--force"]) == 0
        films = [{image["file_name"].split("_")[0] for image in read(path)["images"]} for path in files[1:]]
        assert not films[0] & films[1] and (len(films[0]), len(films[1])) == (3, 1)
    # What the pattern does not fit is on its own.
    assert program.main([*files, "--force", "--group", "(film0)_"]) == 0
    sides = [{image["file_name"].startswith("film0") for image in read(path)["images"]} for path in files[1:]]
    assert True not in sides[0] & sides[1]
    # Nor is an alternative without the group one group of all that match it.
    assert program.main([*files, "--force", "--group", "(film0)_|film"]) == 0
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
        for force in ([], ["--force"]):
            assert program.main([*paths, *force]) == 1
            assert "HINT: choose another name" in capsys.readouterr().err
    assert read(files[0]) == before
    assert program.main([*files, "--group", "(film)"]) == 1
    assert "at least two groups. Got 1" in capsys.readouterr().err
    assert program.main(["none.json", *files[1:]]) == 1


@pytest.mark.parametrize("taken", [1, 2], ids=["train", "val"])
def test_files_that_are_there_are_overwritten_on_demand_only(program, files, capsys, tmp_path, taken):
    (tmp_path / "new").mkdir()
    with open(files[taken], "w") as file:
        file.write("precious")
    assert program.main(files) == 1
    message = capsys.readouterr().err
    assert files[taken] in message and files[3 - taken] not in message and "--force overwrites" in message
    with open(files[taken]) as file:
        assert file.read() == "precious"
    # Nor is the other one written.
    assert sorted(path.name for path in tmp_path.rglob("*.json")) == sorted(
        ["all.json", ["train", "val"][taken - 1] + ".json"]
    )
    assert program.main([*files, "--force"]) == 0
    assert len(read(files[1])["images"]) == 16 and len(read(files[2])["images"]) == 4


def spoil(files, change):
    content = read(files[0])
    change(content)
    with open(files[0], "w") as file:
        json.dump(content, file)


def test_objects_of_each_class_are_counted_and_a_class_on_one_side_is_warned_of(program, files, capsys):
    def rare(content):
        content["categories"] += [{"id": 5, "name": "rare"}, {"id": 6, "name": "never"}]
        content["annotations"].append({"id": 90, "image_id": 10, "category_id": 5, "bbox": [0, 0, 2, 2]})
        # A crowd is no object: it does not make up for one.
        content["annotations"] += [
            {"id": 91 + i, "image_id": 10 + i, "category_id": 5, "bbox": [0, 0, 2, 2], "iscrowd": 1} for i in range(20)
        ]

    spoil(files, rare)
    lonely = set()
    for seed in range(12):
        assert program.main([*files, "--force", "--seed", str(seed)]) == 0
        printed = capsys.readouterr()
        counts = {"x": [0, 0], "rare": [0, 0], "never": [0, 0]}
        names = {category["id"]: category["name"] for category in read(files[0])["categories"]}
        for side, path in enumerate(files[1:]):
            for annotation in read(path)["annotations"]:
                counts[names[annotation["category_id"]]][side] += not annotation.get("iscrowd", 0)
        rows = [line.split() for line in printed.out.splitlines()]
        assert all([name, *map(str, numbers)] in rows for name, numbers in counts.items())
        side = counts["rare"].index(0)
        lonely.add(side)
        why = ("nothing can be learnt of them", "their AP cannot be measured")[side]
        assert f"{files[1:][side]} has no object of these classes, {why}: rare\nHINT: another --seed" in printed.err
        assert printed.err.count("warning") == 1 and "never" not in printed.err
    assert lonely == {0, 1}


def test_no_warning_where_both_sides_have_all_classes(program, files, capsys):
    assert program.main(files) == 0
    assert capsys.readouterr().err == ""


def test_an_object_of_no_known_category_is_an_error_and_nothing_is_written(program, files, capsys):
    spoil(files, lambda content: content["annotations"][5].update(category_id=77))
    assert program.main(files) == 1
    message = capsys.readouterr().err
    assert files[0] in message and "Image 13: the category 77 is not known" in message
    assert "HINT: tools/check_dataset.py" in message
    with pytest.raises(FileNotFoundError):
        read(files[1])
