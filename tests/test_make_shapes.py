"""The generator of Shapes: reproducible, valid COCO, polygons that match the pixels, nobody's files lost."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import cv2
import numpy as np
import pytest
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

from spt_d2.data.coco_check import check_coco
from spt_d2.data.coco_json import read_coco
from spt_d2.data.coco_stats import measure_dataset

FOLDER = Path(__file__).resolve().parents[1] / "datasets"
SEED, TRAIN, VAL, SIZE = 3, 30, 20, 256

# pycocotools does not know the copy keyword of numpy 2 yet
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning")


def load(name: str) -> ModuleType:
    """Load a script of the folder from its path, as tools/demo.py may do: the folder is not a package."""
    spec = importlib.util.spec_from_file_location(name, FOLDER / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


shapes_scene = load("shapes_scene")
make_shapes = load("make_shapes")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    output = tmp_path_factory.mktemp("shapes") / "new" / "shapes"
    report = make_shapes.make_shapes(output, seed=SEED, num_train=TRAIN, num_val=VAL, size=SIZE, workers=2)
    return output, report


@pytest.fixture(scope="module")
def scenes():
    return [shapes_scene.render_scene(SEED, "train", index, SIZE) for index in range(TRAIN)]


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def small(output: Path, **changed):
    return make_shapes.make_shapes(output, **{"seed": 1, "num_train": 3, "num_val": 2, "size": 64, **changed})


# --- reproducibility


def test_same_parameters_give_the_same_bytes_whatever_the_workers(made, tmp_path):
    output, _ = made
    again = tmp_path / "again"
    make_shapes.make_shapes(again, seed=SEED, num_train=TRAIN, num_val=VAL, size=SIZE, workers=1)
    assert contents(again) == contents(output)


def test_a_larger_set_begins_with_the_smaller_one(made, tmp_path):
    output, _ = made
    make_shapes.make_shapes(tmp_path / "few", seed=SEED, num_train=4, num_val=VAL, size=SIZE, workers=1)
    few, many = contents(tmp_path / "few"), contents(output)
    for name in few.keys() - {"train.json", "val.json"}:
        assert few[name] == many[name], name
    coco, full = (json.loads(files["train.json"]) for files in (few, many))
    assert coco["images"] == full["images"][:4]
    assert coco["annotations"] == [a for a in full["annotations"] if a["image_id"] <= 4]


def test_seed_split_and_index_each_change_the_picture():
    base = shapes_scene.render_scene(0, "train", 0, 64).image
    for other in ((1, "train", 0), (0, "val", 0), (0, "train", 1)):
        assert not np.array_equal(base, shapes_scene.render_scene(*other, 64).image), other


# --- the json


@pytest.mark.parametrize("split, count", [("train", TRAIN), ("val", VAL)])
def test_json_is_complete_coco(made, split, count):
    output, report = made
    coco = COCO(str(output / f"{split}.json"))
    data = coco.dataset
    assert set(data) == {"info", "licenses", "categories", "images", "annotations"}
    assert data["info"]["parameters"] == {
        "generator": "make_shapes",
        "version": shapes_scene.VERSION,
        "seed": SEED,
        "num_train": TRAIN,
        "num_val": VAL,
        "size": SIZE,
    }
    assert [(c["id"], c["name"]) for c in data["categories"]] == list(enumerate(shapes_scene.CLASSES, start=1))
    assert len(shapes_scene.CLASSES) >= 3
    assert [image["id"] for image in data["images"]] == list(range(1, count + 1))
    for image in data["images"]:
        assert cv2.imread(str(output / split / image["file_name"])).shape == (image["height"], image["width"], 3)
    assert len(list((output / split).iterdir())) == count
    assert [a["id"] for a in data["annotations"]] == list(range(1, len(data["annotations"]) + 1))
    for annotation in data["annotations"]:
        assert 1 <= annotation["image_id"] <= count
        assert 1 <= annotation["category_id"] <= len(shapes_scene.CLASSES)
        assert annotation["iscrowd"] == 0
        assert all(isinstance(v, float) for v in [*annotation["bbox"], *annotation["segmentation"][0]])
    assert report[split]["images"] == count and report[split]["objects"] == len(data["annotations"])


def test_box_and_area_are_those_of_the_polygon(made):
    for annotation in json.loads((made[0] / "train.json").read_text())["annotations"]:
        (ring,) = annotation["segmentation"]
        xs, ys = ring[0::2], ring[1::2]
        x, y, width, height = annotation["bbox"]
        np.testing.assert_allclose(
            [x, y, x + width, y + height], [min(xs), min(ys), max(xs), max(ys)], rtol=0, atol=1e-9
        )
        # the surveyor's formula, by a loop
        area = sum(xs[i - 1] * ys[i] - xs[i] * ys[i - 1] for i in range(len(xs))) / 2
        assert annotation["area"] == pytest.approx(abs(area), abs=1e-6)


def test_sizes_borders_and_counts_keep_their_limits(made):
    low, high = shapes_scene.SIZE_RANGE
    per_image: dict[int, int] = {}
    for annotation in json.loads((made[0] / "train.json").read_text())["annotations"]:
        x, y, width, height = annotation["bbox"]
        assert low - 0.02 <= max(width, height) <= high + 0.02
        assert min(x, y) >= shapes_scene.BORDER - 0.01
        assert max(x + width, y + height) <= SIZE - shapes_scene.BORDER + 0.01
        per_image[annotation["image_id"]] = per_image.get(annotation["image_id"], 0) + 1
    assert set(range(1, TRAIN + 1)) - set(per_image) == {10, 20, 30}, "one image in ten is empty"
    assert max(per_image.values()) <= shapes_scene.MAX_OBJECTS
    assert set(per_image.values()) >= {1, shapes_scene.MAX_OBJECTS}


def test_report_agrees_with_a_measurement_on_the_masks(made):
    output, report = made
    for split in ("train", "val"):
        measured = measure_dataset(read_coco(output / f"{split}.json"), "mask").summary()
        for key in ("images", "objects", "classes"):
            assert report[split][key] == measured[key]
        assert report[split]["empty_share"] == pytest.approx(measured["empty_share"])
        assert report[split]["object_to_pixel_ratio"] == pytest.approx(measured["ratio_union"]["mean"], rel=0.02)
        assert 0.01 < measured["ratio_union"]["mean"] < 0.08
        assert min(measured["classes"].values()) > 0


# --- the pictures


def test_set_passes_the_check_without_a_remark(made):
    for split in ("train", "val"):
        report = check_coco(read_coco(made[0] / f"{split}.json"), str(made[0] / split), decode=True)
        assert report.problems == (), report.text()


def test_polygons_match_the_drawn_pixels(scenes):
    checked = 0
    for scene in scenes:
        for obj in scene.objects:
            rles = coco_mask.frPyObjects([obj.polygon.reshape(-1).tolist()], SIZE, SIZE)
            polygon, drawn = coco_mask.decode(coco_mask.merge(rles)) > 0, obj.alpha > 0.5
            assert (polygon & drawn).sum() >= 0.9 * (polygon | drawn).sum(), (obj.category, obj.polygon)
            checked += 1
    assert checked > 50


def test_objects_change_their_own_pixels_and_no_others(scenes):
    for scene in scenes:
        covered = np.zeros((SIZE, SIZE), np.float32)
        for obj in scene.objects:
            assert not ((covered > 0) & (obj.alpha > 0)).any(), "two objects share a pixel"
            covered += obj.alpha
        same = (scene.image == scene.background).all(axis=2)
        assert same[covered == 0].all()
        assert same[covered > 0.5].mean() < 0.05 if scene.objects else same.all()


def test_objects_stand_out_from_their_surroundings(scenes):
    for scene in scenes:
        for obj in scene.objects:
            inside = obj.alpha > 0.99
            near = cv2.dilate((obj.alpha > 0).astype(np.uint8), np.ones((9, 9), np.uint8)) > 0
            distance = np.linalg.norm(scene.image[inside].mean(axis=0) - scene.background[near].mean(axis=0))
            # the limit is kept before shading and clipping, on a box rather than on this outline
            assert distance > 0.8 * shapes_scene.MIN_CONTRAST


@pytest.mark.parametrize("kind", shapes_scene.TEXTURES)
def test_every_texture_varies_within_its_range(kind):
    for seed in range(10):
        field = shapes_scene._texture(np.random.default_rng(seed), SIZE, kind)
        assert field.shape == (SIZE, SIZE) and field.min() >= -1e-6 and field.max() <= 1 + 1e-6
        assert field.std() > 0.05


def test_every_picture_has_soft_blobs_and_hard_strokes():
    for seed in range(10):
        blobs = np.full((SIZE, SIZE, 3), 128, np.float32)
        shapes_scene._draw_blobs(np.random.default_rng(seed), blobs)
        assert blobs.std() > 1
        assert np.abs(np.diff(blobs, axis=0)).max() < 25, "a blob has no hard edge"
        strokes = np.full((SIZE, SIZE, 3), 128, np.uint8)
        shapes_scene._draw_strokes(np.random.default_rng(seed), strokes)
        drawn = (strokes != 128).any(axis=2).mean()
        assert 0 < drawn < 0.1, "strokes are thin"


def test_files_hold_the_pictures(made, scenes):
    for index in (0, 9):
        read = cv2.imread(str(made[0] / "train" / f"{index + 1:06d}.jpg"))[..., ::-1]
        assert np.abs(read.astype(int) - scenes[index].image).mean() < 5


# --- what is already there


def test_an_identical_set_is_left_untouched(tmp_path):
    assert small(tmp_path)["made"] is True
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    report = small(tmp_path)
    assert report["made"] is False and report["train"]["images"] == 3
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before


def test_a_missing_picture_is_made_again(tmp_path):
    small(tmp_path)
    before = contents(tmp_path)
    (tmp_path / "train" / "000002.jpg").unlink()
    assert small(tmp_path)["made"] is True
    assert contents(tmp_path) == before


def test_an_interrupted_run_is_done_again(tmp_path, monkeypatch):
    def fail(*args):
        if args[1:3] == ("train", 3):
            raise KeyboardInterrupt
        return shapes_scene.render_scene(*args)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(make_shapes, "render_scene", fail)
        small(tmp_path, num_train=4, workers=1)
    assert not (tmp_path / "train.json").exists()
    small(tmp_path)
    small(tmp_path.parent / f"{tmp_path.name}-fresh")
    assert contents(tmp_path) == contents(tmp_path.parent / f"{tmp_path.name}-fresh")


@pytest.mark.parametrize("changed", [{"seed": 2}, {"num_train": 4}, {"num_val": 3}, {"size": 72}])
def test_another_shapes_set_is_not_overwritten(tmp_path, changed):
    small(tmp_path)
    before = contents(tmp_path)
    with pytest.raises(FileExistsError, match=r"(?s)make_shapes\(output=\).*HINT: choose another folder"):
        small(tmp_path, **changed)
    assert contents(tmp_path) == before


@pytest.mark.parametrize("name, text", [("notes.txt", "mine"), ("train.json", '{"info": {}}'), ("train.json", "[1]")])
def test_files_of_others_are_not_overwritten(tmp_path, name, text):
    (tmp_path / name).write_text(text)
    (tmp_path / "val.json").write_text(text)
    with pytest.raises(FileExistsError, match="something that make_shapes did not make"):
        small(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {name, "val.json"}


@pytest.mark.parametrize("name, value", [("seed", -1), ("num_train", 0), ("num_val", 0), ("size", 63), ("workers", 0)])
def test_arguments_out_of_range_are_named(tmp_path, name, value):
    with pytest.raises(ValueError, match=rf"make_shapes\({name}=\) expects an integer of at least .*Got {value}"):
        small(tmp_path / "out", **{name: value})
    assert not (tmp_path / "out").exists()


def test_command_line_fills_the_folder_of_data_sets_reports_and_refuses(tmp_path, monkeypatch):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path / "root"))
    command = [sys.executable, str(FOLDER / "make_shapes.py"), "--num-train", "2", "--num-val", "1", "--size", "64"]
    states = []
    named = ["--output", str(tmp_path / "root" / "shapes")]
    for more in ([], named, [*named, "--seed", "1"]):
        done = subprocess.run([*command, *more], check=False, capture_output=True, text=True, cwd=tmp_path)
        states.append((done.returncode, done.stdout, done.stderr))
    assert states[0][0] == 0 and "made in" in states[0][1] and "train 2 images" in states[0][1]
    assert "object-to-pixel ratio" in states[0][1] and "empty images" in states[0][1]
    assert states[1][0] == 0 and "already complete" in states[1][1]
    assert states[2][0] == 1 and "HINT" in states[2][2] and "Traceback" not in states[2][2]
