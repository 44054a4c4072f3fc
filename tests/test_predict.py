"""tools/predict.py: a trained run on other images, without the data that it was trained on."""

import json
import shutil
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools import mask as masks

from tests.conftest import ROOT, as_a_program, load_program

pytest.importorskip("detectron2", reason="detectron2 is not installed")
from detectron2.config import CfgNode, LazyConfig, instantiate
from detectron2.modeling import build_model

from spt_d2 import get_config
from spt_d2.trained_run import load_trained_config
from tests.modeling.nano import NUM_CLASSES, nano_cfg

NAMES = ["plain", "US$ x^_$", "third"]
HEIGHT, WIDTH = 40, 64


@pytest.fixture(scope="module")
def program() -> ModuleType:
    return load_program(ROOT / "tools" / "predict.py")


def save_run(folder: Path, cfg: CfgNode, names: list[str] | None = None) -> Path:
    """What a training leaves: the config, the weights, and an evaluation that names the classes."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.yaml").write_text(cfg.dump())
    torch.manual_seed(5)
    model = build_model(cfg)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    torch.save({"model": model.state_dict()}, folder / "model_final.pth")
    if names:
        figures = {"AP": 1.0, **{f"AP-{name}": None for name in names}}
        keys = ("program", "command", "config_file", "overrides", "eval_only", "checkpoint", "train", "seed", "machine")
        record = {**dict.fromkeys((*keys, "commit", "date")), "test": [{"name": "v", "results": {"bbox": figures}}]}
        (folder / "evaluation.json").write_text(json.dumps(record))
    return folder


def run_cfg(*overrides: object) -> CfgNode:
    """Of a run whose data is gone, and was named from another folder."""
    cfg = nano_cfg("build_spt_fpn_backbone")
    entries = [[f"gone_{split}", f"my_data/{split}.json", "my_data/images"] for split in ("train", "val")]
    cfg.DATASETS.CUSTOM, cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = entries, ("gone_train",), ("gone_val",)
    cfg.INPUT.MIN_SIZE_TEST, cfg.TEST.DETECTIONS_PER_IMAGE = 64, 5
    cfg.merge_from_list(list(overrides))
    return cfg


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_run(tmp_path_factory.mktemp("run"), run_cfg(), NAMES)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory, with photos in it and no data set."""
    for name in ("photos/a.png", "photos/sub/b.jpg"):
        save_image(tmp_path / name)
    (tmp_path / "photos" / "notes.txt").touch()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path / "datasets"))
    return tmp_path


def save_image(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.randint(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)).save(path)


def predict(program: ModuleType, run: Path, *arguments: str) -> int:
    files = ["--config-file", str(run / "config.yaml"), "--weights", str(run / "model_final.pth")]
    with as_a_program():
        return program.main([*files, "--output", "found", "--device", "cpu", "--threshold", "0", *arguments])


def results() -> list[dict]:
    return json.loads(Path("found/results.json").read_text())


def size(path: str) -> tuple[int, int]:
    with Image.open(path) as picture:
        return picture.size


def test_every_image_is_drawn_and_its_objects_are_listed_as_coco_lists_them(
    program: ModuleType, run: Path, here: Path, capsys: pytest.CaptureFixture
) -> None:
    """Names of classes are those that the run's evaluation left, for the json of its data set is not there."""
    assert predict(program, run, "photos") == 0
    found = results()
    assert {one["file_name"] for one in found} == {"a.png", "sub/b.jpg"}
    for one in found:
        assert list(one) == ["file_name", "category_id", "category_name", "bbox", "score", "segmentation"]
        assert NAMES[one["category_id"]] == one["category_name"] and 0 <= one["score"] <= 1
        x, y, width, height = one["bbox"]
        assert 0 <= x <= x + width <= WIDTH and 0 <= y <= y + height <= HEIGHT
        assert masks.decode(one["segmentation"]).shape == (HEIGHT, WIDTH)
    written = {path.relative_to("found").as_posix() for path in Path("found").rglob("*.*")}
    assert written == {"a.png.png", "sub/b.jpg.png", "results.json"}
    assert size("found/a.png.png") == (program.SMALLEST, program.SMALLEST * HEIGHT // WIDTH)
    said = capsys.readouterr().out
    assert f"named by the evaluation in {run}" in said and "category_id is the number of the class" in said


def test_files_are_taken_beside_folders_and_once_only(program: ModuleType, run: Path, here: Path) -> None:
    save_image(here / "single.webp")
    assert predict(program, run, "photos/sub", "single.webp", "photos/sub/b.jpg") == 0
    assert {one["file_name"] for one in results()} == {"b.jpg", "single.webp"}


def test_what_scores_below_the_threshold_is_left_out(program: ModuleType, run: Path, here: Path) -> None:
    predict(program, run, "photos/a.png")
    scores = [one["score"] for one in results()]
    between = sorted(scores)[len(scores) // 2]
    assert min(scores) < between
    predict(program, run, "photos/a.png", "--threshold", str(between))
    assert [one["score"] for one in results()] == [score for score in scores if score >= between]


def test_the_selection_stands_beside_the_predictions_where_the_backbone_selects(
    program: ModuleType, run: Path, here: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    assert predict(program, run, "photos/a.png", "--selection") == 0
    wide = size("found/a.png.png")
    assert wide[0] > 2 * program.SMALLEST and "selects nothing" not in capsys.readouterr().out
    dense = save_run(tmp_path / "dense", run_cfg("MODEL.BACKBONE.NAME", "build_swin_fpn_backbone"))
    assert predict(program, dense, "photos/a.png", "--selection") == 0
    assert size("found/a.png.png")[0] == program.SMALLEST
    assert "the backbone of this model selects nothing" in capsys.readouterr().out


def test_images_that_cannot_be_read_are_named_and_the_others_predicted(
    program: ModuleType, run: Path, here: Path, capsys: pytest.CaptureFixture
) -> None:
    (here / "photos" / "0.jpg").write_text("no image")
    assert predict(program, run, "nowhere.jpg", "photos") == 1
    assert {one["file_name"] for one in results()} == {"a.png", "sub/b.jpg"}
    captured = capsys.readouterr()
    lines = [line for line in captured.err.splitlines() if line.startswith("not read: ")]
    assert [line.split(": ")[1:3] for line in lines] == [
        ["nowhere.jpg", "FileNotFoundError"],
        ["photos/0.jpg", "UnidentifiedImageError"],
    ]
    assert "in 2 images" in captured.out and not Path("found/0.jpg.png").exists()


def test_what_an_earlier_call_wrote_is_no_image_of_the_next(program: ModuleType, run: Path, here: Path) -> None:
    for _ in range(2):
        assert predict(program, run, ".") == 0
        assert {one["file_name"] for one in results()} == {"photos/a.png", "photos/sub/b.jpg"}
    # An output folder above that of the images holds them, and did not write them.
    assert set(program.find_images(["photos"], ".")) == {"a.png", "sub/b.jpg"}


# Names and ids of classes


def write_json(path: Path, names: list[str]) -> None:
    path.parent.mkdir(exist_ok=True)
    categories = [{"id": 10 * i + 7, "name": name} for i, name in enumerate(names)]
    image = {"id": 1, "file_name": "1.jpg", "height": 8, "width": 8}
    path.write_text(json.dumps({"images": [image], "annotations": [], "categories": categories}))


@pytest.mark.parametrize("folder, split", [(".", "val"), (".", "train"), ("datasets", "val")])
def test_names_and_ids_are_the_data_sets_where_its_json_can_be_read(
    folder: str, split: str, program: ModuleType, run: Path, here: Path
) -> None:
    """From the working directory or the folder of data sets, and of the set trained on where the other is gone."""
    (here / folder).mkdir(exist_ok=True)
    write_json(here / folder / "my_data" / f"{split}.json", ["x", "y", "z"])
    assert predict(program, run, "photos/a.png") == 0
    assert results() and {(one["category_id"], one["category_name"]) for one in results()} <= {
        (7, "x"),
        (17, "y"),
        (27, "z"),
    }


@pytest.mark.parametrize("names", [["one", "two"], []], ids=["of_other_classes", "damaged"])
def test_a_json_that_says_nothing_of_this_models_classes_is_passed_over(
    names: list[str], program: ModuleType, run: Path, here: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_json(here / "my_data" / "val.json", names)
    assert predict(program, run, "photos/a.png") == 0
    assert results() and {one["category_name"] for one in results()} <= set(NAMES)
    assert "'gone_val'" in caplog.text


@pytest.mark.parametrize("meta_architecture", ["SelectionGeneralizedRCNN", "SelectionRetinaNet"])
def test_classes_of_which_nothing_is_known_go_by_their_numbers(
    meta_architecture: str, program: ModuleType, here: Path, tmp_path: Path
) -> None:
    changes: list[object] = ["MODEL.META_ARCHITECTURE", meta_architecture, "MODEL.MASK_ON", False]
    if "Retina" in meta_architecture:
        changes = [*changes, "MODEL.BACKBONE.NAME", "build_retinanet_spt_fpn_backbone"]
        maps = ["res3", "res4", "res5"]
        changes += ["MODEL.FPN.IN_FEATURES", maps, "MODEL.SPT.OUT_FEATURES", maps]
        changes += ["MODEL.RPN.IN_FEATURES", ["p3"], "MODEL.RETINANET.SCORE_THRESH_TEST", 0.0]
        changes += ["MODEL.RETINANET.NUM_CLASSES", NUM_CLASSES]
    nameless = save_run(tmp_path / "nameless", run_cfg(*changes))
    assert predict(program, nameless, "photos/a.png") == 0
    found = results()
    assert found and all(one["category_name"] == f"class {one['category_id']}" for one in found)
    assert not any("segmentation" in one for one in found)


# Configs


def test_the_config_that_one_trained_by_is_as_good_as_the_one_that_the_run_left(
    program: ModuleType, run: Path, here: Path
) -> None:
    """It does not state the number of classes, which the training json does."""
    stated = run_cfg().dump().replace(f"NUM_CLASSES: {NUM_CLASSES}\n", "NUM_CLASSES: 80\n")
    (here / "base.yaml").write_text(stated)
    custom = [["there_train", "my_data/train.json", "my_data"]]
    mine = {"_BASE_": "base.yaml", "DATASETS": {"CUSTOM": custom, "TRAIN": ["there_train"], "TEST": []}}
    (here / "mine.yaml").write_text(json.dumps(mine))
    command = ["photos/a.png", "--config-file", "mine.yaml"]
    assert predict(program, run, *command) == 2
    write_json(here / "my_data" / "train.json", ["x", "y", "z"])
    assert load_trained_config("mine.yaml").MODEL.ROI_HEADS.NUM_CLASSES == NUM_CLASSES
    assert predict(program, run, *command) == 0
    assert results() and {one["category_name"] for one in results()} <= {"x", "y", "z"}


def test_a_run_of_a_lazy_config_is_predicted_from_what_it_left(program: ModuleType, here: Path) -> None:
    cfg = LazyConfig.load(str(ROOT / "projects/SPT/configs/Shapes-InstanceSegmentation/mask_rcnn_spt_nano_fpn_demo.py"))
    cfg.model.backbone.bottom_up.update(embed_dim=8, depths=[1, 1, 2, 1], num_heads=[1, 2, 2, 4])
    cfg.model.roi_heads.num_classes = 2
    cfg.model.roi_heads.box_predictor.test_score_thresh = 0.0
    cfg.datasets = {"custom": [["gone_lazy", "my_data/val.json", "my_data"]]}
    cfg.dataloader.test.dataset.names = cfg.dataloader.train.dataset.names = "gone_lazy"
    cfg.dataloader.test.mapper.augmentations[0].update(short_edge_length=64, max_size=128)
    (here / "lazy").mkdir()
    LazyConfig.save(cfg, "lazy/config.yaml")
    torch.save({"model": instantiate(cfg.model).state_dict()}, "lazy/model_final.pth")
    assert predict(program, here / "lazy", "photos/a.png", "--selection") == 0
    found = results()
    assert found and {one["category_name"] for one in found} <= {"class 0", "class 1"}
    assert size("found/a.png.png")[0] > 2 * program.SMALLEST


# What is refused


def test_weights_of_another_model_are_refused_before_anything_is_predicted(
    program: ModuleType, run: Path, here: Path, capsys: pytest.CaptureFixture
) -> None:
    shutil.copy(run / "model_final.pth", here / "model_final.pth")
    other = run_cfg("MODEL.ROI_HEADS.NUM_CLASSES", NUM_CLASSES + 1)
    (here / "config.yaml").write_text(other.dump())
    assert predict(program, here, "photos") == 2
    assert "HINT: take the config.yaml that the run left" in capsys.readouterr().err
    assert not Path("found").exists()


def test_a_classifier_is_refused(program: ModuleType, here: Path, capsys: pytest.CaptureFixture) -> None:
    cfg = get_config("VOC-Classification/multilabel_spt_nano_shapes.yaml")
    cfg.MODEL.DEVICE = "cpu"
    save_run(here / "classifier", cfg)
    assert predict(program, here / "classifier", "photos") == 2
    assert "expects a detector. Got a SelectionMultiLabelClassifier" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["photos", "--threshold", "50"], "--threshold expects a score from 0 to 1. Got 50.0"),
        (["photos", "--device", "gpu"], "--device expects cpu, cuda or cuda:N. Got gpu"),
        (["photos", "--weights", "nowhere.pth"], "--weights expects a file. Got nowhere.pth"),
        (["photos", "--config-file", "nowhere.yaml"], "--config-file expects a file. Got nowhere.yaml"),
        (["photos", "--output", "photos"], "--output expects another folder than that of the images"),
        (["empty"], "A folder expects images in it, or below. empty has none"),
        (["photos", "a.png"], "Images expect distinct names, by which their results go. Got photos/a.png and a.png"),
    ],
)
def test_a_command_line_that_cannot_be_is_refused(
    arguments: list[str], message: str, program: ModuleType, run: Path, here: Path, capsys: pytest.CaptureFixture
) -> None:
    (here / "empty").mkdir()
    save_image(here / "a.png")
    with pytest.raises(SystemExit):
        predict(program, run, *arguments)
    assert message in " ".join(capsys.readouterr().err.split())


def test_what_cannot_be_run_is_said_and_ends_with_2(
    program: ModuleType, run: Path, here: Path, capsys: pytest.CaptureFixture
) -> None:
    """1 is of images that could not be read."""
    (here / "config.yaml").write_text("MODEL: {NO_SUCH_KEY: 1}\n")
    shutil.copy(run / "model_final.pth", here / "model_final.pth")
    assert predict(program, here, "photos") == 2
    assert "NO_SUCH_KEY" in capsys.readouterr().err
    shutil.copy(run / "config.yaml", here / "config.yaml")
    (here / "model_final.pth").write_bytes((run / "model_final.pth").read_bytes()[:1000])
    assert predict(program, here, "photos") == 2
    (here / "found").write_text("a file")
    assert predict(program, run, "photos") == 2
    assert "--output expects a folder that can be written to" in capsys.readouterr().err
