"""BDD100K's label files of both vintages, with everything odd that is in them, and the program that converts them."""

import copy
import json
from pathlib import Path

import numpy as np
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image

from spt_d2.data.bdd100k import CLASSES, convert, label_vintage, read_frames
from spt_d2.data.coco_check import check_coco
from tests.conftest import load_program

ROOT = Path(__file__).resolve().parents[2]
NAMES = ["0000f77c-6257be58.jpg", "0000f77c-62c2a288.jpg", "0000f77c-cb820c98.jpg", "0001542f-5ce3cf52.jpg"]


def label_2020(number, category, box, **attributes):
    """As in det_20: ids are texts."""
    x1, y1, x2, y2 = box
    return {
        "id": str(number),
        "attributes": {"occluded": False, "truncated": False, "trafficLightColor": "NA", **attributes},
        "category": category,
        "box2d": {"x1": x1, "y1": y1, "x2": x2, "y2": y2},
    }


def frame(name, **more):
    attributes = {"weather": "clear", "timeofday": "daytime", "scene": "city street"}
    return {"name": name, "attributes": attributes, "timestamp": 10000, **more}


def det_20():
    """Frames out of order; labels absent, null and empty; every ignored class, crowds, faulty boxes."""
    return [
        frame(
            NAMES[2],
            labels=[
                label_2020(10, "car", (45.240919, 254.530367, 357.805838, 487.906215)),
                label_2020(
                    11, "traffic light", (1125.902264, 133.184488, 1156.978645, 210.875445), trafficLightColor="G"
                ),
                label_2020(12, "other vehicle", (0, 300, 45.5, 360)),
                label_2020(13, "other person", (100, 300, 110, 330)),
                label_2020(14, "trailer", (200, 300, 290, 380)),
                label_2020(15, "pedestrian", (600, 300, 700, 400), crowd=True),
                label_2020(16, "train", (500, 200, 620.25, 290.75)),
            ],
        ),
        frame(NAMES[0]),
        frame(NAMES[1], labels=None),
        frame(
            NAMES[3],
            labels=[
                label_2020(20, "car", (10, 10, 10, 40)),
                label_2020(21, "car", (30, 10, 10, 40)),
                label_2020(22, "car", (1290, 10, 1300, 40)),
                label_2020(23, "car", (float("nan"), 10, 1300, 40)),
                {**label_2020(24, "car", (0, 0, 5, 5)), "box2d": {"x1": 3}},
                label_2020(25, "unicorn", (10, 10, 50, 40)),
                {"id": "26", "category": "car", "attributes": None, "box2d": None},
                {"id": "27", "category": "bicycle", "box2d": {"x1": 1.5, "y1": 2, "x2": 1279.9, "y2": 700}},
            ],
        ),
    ]


def labels_2018():
    """As in bdd100k_labels_images_*: ids are numbers, lanes and drivable areas among the labels, other names."""
    attributes = {"occluded": False, "truncated": False, "trafficLightColor": "none"}
    flags = {"manualShape": True, "manualAttributes": True}

    def box(number, category, x1, y1, x2, y2):
        coordinates = {"x1": x1, "y1": y1, "x2": x2, "y2": y2}
        return {"category": category, "attributes": attributes, **flags, "box2d": coordinates, "id": number}

    lane = [{"vertices": [[0, 0], [9, 9]], "types": "LL", "closed": False}]
    return [
        frame(
            NAMES[0],
            labels=[
                box(0, "person", 10.5, 20.25, 30, 60),
                box(1, "bike", 10, 20, 30, 60),
                box(2, "motor", 10, 20, 30, 60),
                box(3, "traffic sign", 10, 20, 30, 60),
                {"category": "drivable area", "attributes": {"areaType": "direct"}, **flags, "poly2d": lane, "id": 4},
                {"category": "lane", "attributes": {"laneStyle": "solid"}, **flags, "poly2d": lane, "id": 5},
            ],
        ),
        frame(NAMES[1], labels=[{"category": "lane", "attributes": {}, **flags, "poly2d": lane, "id": 6}]),
    ]


def test_every_label_of_det_20_becomes_an_object_a_crowd_or_a_line_of_the_report():
    frames = det_20()
    content, report = convert(frames, "val")
    assert frames[0] == det_20()[0]  # NaN elsewhere is not equal to itself
    assert report.vintage == content["info"]["version"] == "2020" and content["info"]["year"] == 2020
    names = {category["id"]: category["name"] for category in content["categories"]}
    assert names == dict(enumerate(CLASSES, start=1)) and names[6] == "train" and len(names) == 10
    assert content["licenses"] and {image["license"] for image in content["images"]} == {1}
    assert [(i["id"], i["file_name"], i["height"], i["width"]) for i in content["images"]] == [
        (number, name, 720, 1280) for number, name in enumerate(NAMES, start=1)
    ]
    found = [(a["id"], a["image_id"], names[a["category_id"]], a["iscrowd"]) for a in content["annotations"]]
    assert found == [
        (1, 3, "car", 0),
        (2, 3, "traffic light", 0),
        (3, 3, "car", 1),
        (4, 3, "pedestrian", 1),
        (5, 3, "truck", 1),
        (6, 3, "pedestrian", 1),
        (7, 3, "train", 0),
        (8, 4, "bicycle", 0),
    ]
    assert content["annotations"][0]["bbox"] == pytest.approx([45.240919, 254.530367, 312.564919, 233.375848], abs=1e-6)
    assert content["annotations"][6]["bbox"] == [500, 200, 120.25, 90.75]
    for anno in content["annotations"]:
        assert anno["area"] == pytest.approx(anno["bbox"][2] * anno["bbox"][3], abs=1e-5)
        assert set(anno) - {"ignored"} == {"id", "image_id", "category_id", "bbox", "area", "iscrowd"}
    assert [anno["id"] for anno in content["annotations"] if anno.get("ignored")] == [3, 4, 5]
    assert report.frames == report.images == 4 and report.objects == 4 and report.crowds == 1
    assert report.empty_frames == NAMES[:2]
    assert report.ignored == {"other vehicle": 1, "other person": 1, "trailer": 1}
    assert report.unknown == {"unicorn": 1} and report.without_box == {"car": 1}
    assert len(report.faulty_boxes) == 5
    assert report.unlabelled_images == [] and report.missing_images == []
    checked = check_coco(content)
    assert checked.safe, checked.text()


def test_labels_of_2018_get_the_names_of_2020_and_say_their_vintage():
    content, report = convert(labels_2018(), "train")
    names = {category["id"]: category["name"] for category in content["categories"]}
    assert [names[a["category_id"]] for a in content["annotations"]] == [
        "pedestrian", "bicycle", "motorcycle", "traffic sign",
    ]  # fmt: skip
    assert report.vintage == "2018" and content["info"]["version"] == "2018"
    assert report.without_box == {"drivable area": 1, "lane": 2} and report.empty_frames == [NAMES[1]]
    assert not report.ignored and not report.unknown


@pytest.mark.parametrize(
    "categories, vintage",
    [
        (["person", "car"], "2018"),
        (["car", "lane"], "2018"),
        (["pedestrian"], "2020"),
        (["trailer", "car"], "2020"),
        (["person", "pedestrian"], "mixed"),
        (["car", "traffic sign"], "unknown"),
        ([], "unknown"),
    ],
)
def test_vintage_is_told_by_the_categories(categories, vintage):
    frames = [{"name": "a.jpg", "labels": [{"category": name} for name in categories]}, {"name": "b.jpg"}]
    assert label_vintage(frames) == vintage
    assert convert(frames, "val")[0]["info"]["version"] == vintage


def test_inclusive_boxes_are_a_pixel_larger():
    (plain, _), (larger, _) = convert(det_20(), "val"), convert(det_20(), "val", inclusive=True)
    for one, other in zip(plain["annotations"], [a for a in larger["annotations"] if a["bbox"][2] > 1], strict=True):
        np.testing.assert_allclose(np.subtract(other["bbox"], one["bbox"]), [0, 0, 1, 1], atol=1e-5)


def test_ids_depend_neither_on_the_order_of_the_file_nor_on_the_image_folder():
    base, _ = convert(det_20(), "train")
    assert convert(det_20()[::-1], "train")[0]["images"] == base["images"]
    assert convert(det_20()[::-1], "train")[0]["annotations"] == base["annotations"]
    folder = ["0000-first.jpg", *NAMES[:2], NAMES[3], "zzz.jpg"]
    for include in (False, True):
        content, report = convert(det_20(), "train", folder, include_unlabelled=include)
        assert report.unlabelled_images == ["0000-first.jpg", "zzz.jpg"] and report.missing_images == [NAMES[2]]
        kept = [image for image in base["images"] if image["file_name"] != NAMES[2]]
        assert content["images"][:3] == kept
        assert content["annotations"] == [a for a in base["annotations"] if a["image_id"] != 3]
        more = [(image["id"], image["file_name"]) for image in content["images"][3:]]
        assert more == ([(5, "0000-first.jpg"), (6, "zzz.jpg")] if include else [])
        assert report.images == len(content["images"]) and report.objects == 1


def test_frames_under_a_key_are_read_and_others_refused(tmp_path):
    path = tmp_path / "l.json"
    frames = labels_2018()
    path.write_text(json.dumps({"frames": frames, "config": {}}))
    assert read_frames(path) == frames
    for text, message in (
        ("", "is no BDD100K label file"),
        ('{"images": []}', "expects a list of frames"),
        ("[]", "has no frames"),
        ('[{"frames": [{"objects": []}]}]', "(?s)frame 0 has no name.*HINT"),
        ('[{"name": "a.jpg", "labels": {}}]', "labels of frame 'a.jpg' are no list"),
        ('[{"name": "a.jpg"}, {"name": "a.jpg"}]', "1 frames have the name of another, 'a.jpg'"),
    ):
        path.write_text(text)
        with pytest.raises(ValueError, match=message):
            read_frames(path)


# --- the program


def lay_out(root, names, size=(1280, 720)):
    """The folders of BDD100K with labels of both vintages, and images for val alone."""
    (root / "labels" / "det_20").mkdir(parents=True)
    (root / "images" / "100k" / "val").mkdir(parents=True)
    for split in ("train", "val"):
        (root / "labels" / "det_20" / f"det_{split}.json").write_text(json.dumps(det_20()))
        (root / "labels" / f"bdd100k_labels_images_{split}.json").write_text(json.dumps(labels_2018()))
    for name in names:
        Image.new("RGB", size).save(root / "images" / "100k" / "val" / name)


@pytest.fixture
def program():
    return load_program(ROOT / "datasets" / "prepare_bdd100k.py")


def test_program_writes_both_splits_where_the_registered_sets_look(program, tmp_path, capsys, monkeypatch):
    lay_out(tmp_path / "bdd100k", [*NAMES, "extra.jpg"])
    assert program.main(["--root", str(tmp_path / "bdd100k")]) == 0
    printed = capsys.readouterr().out
    assert "vintage 2020" in printed and "no image folder: not compared" in printed
    assert "images without a frame             1: extra.jpg" in printed
    assert "other person 1, other vehicle 1, trailer 1" in printed and "unicorn 1" in printed
    for split in ("train", "val"):
        content = json.loads((tmp_path / "bdd100k" / "annotations" / f"det_{split}.json").read_text())
        assert [image["file_name"] for image in content["images"]] == NAMES
        assert split in content["info"]["description"]
        registered = MetadataCatalog.get(f"bdd100k_{split}")
        parts = Path(registered.json_file).parts[-3:]
        assert parts == ("bdd100k", "annotations", f"det_{split}.json")
        assert Path(registered.image_root).parts[-4:] == ("bdd100k", "images", "100k", split)
        assert MetadataCatalog.get(f"bdd100k_sparse_{split}").json_file.endswith(f"annotations/det_sparse_{split}.json")


def test_program_includes_unlabelled_images_on_demand(program, tmp_path):
    lay_out(tmp_path, [*NAMES, "extra.jpg"])
    assert program.main(["--root", str(tmp_path), "--split", "val", "--unlabelled", "include", "--check-sizes"]) == 0
    content = json.loads((tmp_path / "annotations" / "det_val.json").read_text())
    assert [image["file_name"] for image in content["images"]] == [*NAMES, "extra.jpg"]


def test_program_reads_2018_and_says_that_it_is_deprecated(program, tmp_path, capsys):
    lay_out(tmp_path, NAMES[:2])
    assert program.main(["--root", str(tmp_path), "--split", "val", "--labels", "2018"]) == 0
    assert "vintage 2018 (deprecated" in capsys.readouterr().out


def test_program_overwrites_another_vintage_only_by_force(program, tmp_path, capsys):
    lay_out(tmp_path, NAMES)
    written = tmp_path / "annotations" / "det_val.json"
    assert program.main(["--root", str(tmp_path), "--split", "val"]) == 0
    before = written.read_text()
    # Nor is the other split written, which is not there yet.
    assert program.main(["--root", str(tmp_path), "--labels", "2018"]) == 1
    assert f"Got {written}.\nHINT: choose another name, or --force" in capsys.readouterr().err
    assert written.read_text() == before and not (tmp_path / "annotations" / "det_train.json").exists()
    assert program.main(["--root", str(tmp_path), "--split", "val", "--labels", "2018", "--force"]) == 0
    assert json.loads(written.read_text())["info"]["version"] == "2018"


def test_program_stops_at_missing_images_unless_told(program, tmp_path, capsys):
    lay_out(tmp_path, NAMES[1:])
    arguments = ["--root", str(tmp_path), "--split", "val"]
    assert program.main(arguments) == 1
    assert "lacks 1 images" in capsys.readouterr().err and not (tmp_path / "annotations").exists()
    assert program.main([*arguments, "--allow-missing"]) == 0
    content = json.loads((tmp_path / "annotations" / "det_val.json").read_text())
    assert [image["id"] for image in content["images"]] == [2, 3, 4]


def test_program_checks_sizes_on_demand(program, tmp_path, capsys):
    lay_out(tmp_path, NAMES, size=(1280, 721))
    (tmp_path / "images" / "100k" / "val" / NAMES[0]).write_bytes(b"no image")
    arguments = ["--root", str(tmp_path), "--split", "val"]
    assert program.main([*arguments, "--check-sizes"]) == 1
    error = capsys.readouterr().err
    assert "expects images of 1280 x 720" in error and f"{NAMES[1]} (1280 x 721)" in error
    assert f"{NAMES[0]} (UnidentifiedImageError" in error and not (tmp_path / "annotations").exists()
    assert program.main(arguments) == 0


def test_program_takes_files_from_elsewhere_one_split_at_a_time(program, tmp_path, capsys):
    path, output = tmp_path / "l.json", tmp_path / "o.json"
    path.write_text(json.dumps(labels_2018()))
    assert program.main(["--split", "val", "--label-file", str(path), "--output", str(output)]) == 0
    assert len(json.loads(output.read_text())["images"]) == 2
    before = path.read_text()
    assert program.main(["--split", "val", "--label-file", str(path), "--output", str(path)]) == 1
    assert path.read_text() == before
    for arguments in (["--split", "val", "--label-file", str(tmp_path / "none.json")],
                      ["--split", "val", "--label-file", str(path), "--images", str(tmp_path / "none")]):  # fmt: skip
        assert program.main(arguments) == 1
        assert "none" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        program.main(["--output", str(output)])


def test_sets_are_registered_with_their_ten_classes_whether_or_not_their_files_are_there():
    for name in ("bdd100k_train", "bdd100k_val", "bdd100k_sparse_train", "bdd100k_sparse_val"):
        assert name in DatasetCatalog.list()
        metadata = MetadataCatalog.get(name)
        assert metadata.thing_classes == list(CLASSES) and metadata.evaluator_type == "coco"
        assert metadata.thing_dataset_id_to_contiguous_id == {number: number - 1 for number in range(1, 11)}


def test_converted_labels_load_in_detectron2_with_crowds_marked(tmp_path):
    from detectron2.data.datasets import load_coco_json

    content, _ = convert(copy.deepcopy(det_20()), "val")
    (tmp_path / "a.json").write_text(json.dumps(content))
    records = load_coco_json(str(tmp_path / "a.json"), "images")
    assert [sum(a["iscrowd"] for a in record["annotations"]) for record in records] == [0, 0, 4, 0]
