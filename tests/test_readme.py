"""What README.md tells a newcomer to type is there, and works."""

import json
import re
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from detectron2.config import LazyConfig

from spt_d2.data import setup_lazy_datasets
from spt_d2.engine.setup import load_config
from spt_d2.model_zoo.records import read_record
from spt_d2.modeling import SelectionGeneralizedRCNN
from tests.conftest import ROOT, load_program

README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```", README, flags=re.MULTILINE | re.DOTALL)
COMMANDS = [line.split("#")[0].strip() for kind, text in BLOCKS if kind == "bash" for line in text.splitlines()]

# What the configs of size T start from.
WEIGHTS = "swin_tiny_patch4_window7_224.pth"


def block(kind: str, containing: str) -> str:
    """The one block of that kind with that text in it."""
    (found,) = [text for other, text in BLOCKS if other == kind and containing in text]
    return found


def test_readme_is_short_enough_to_be_read():
    assert len(README.splitlines()) <= 170


@pytest.mark.parametrize("name, column", [("shapes_demo", 1), ("shapes_demo_dense", 2)])
def test_the_table_of_the_demo_is_that_of_its_results_files(name, column):
    record = read_record(ROOT / "results" / f"{name}.json")
    (box,), (mask,), (macs,) = (record.metrics[key] for key in ("box_ap", "mask_ap", "executed_macs_g"))
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in README.splitlines() if line.startswith("| ")]
    cells = {row[0]: row[column] for row in rows if len(row) == 3}
    (box50,), (mask50,) = (record.metrics[key] for key in ("box_ap50", "mask_ap50"))
    assert cells["box AP / AP50, %"] == f"{box:.1f} / {box50:.1f}"
    assert cells["mask AP / AP50, %"] == f"{mask:.1f} / {mask50:.1f}"
    if "keep_ratio" in record.metrics:
        third, fourth, retention = (
            f"{100 * record.metrics[key][0]:.1f}" for key in ("keep_ratio_stage3", "keep_ratio_stage4", "retention")
        )
        assert cells["tokens kept (keep ratio), stage 3 / 4, %"] == f"{third} / {fourth}"
        assert cells["object tokens kept (retention), %"] == retention
    assert cells["multiply-adds of the backbone per image, 10^9"] == f"{macs:.3f}"
    assert f"commit {record.commit[:7]}" in README


FOLDERS = ("", "datasets", "docs", "projects/SPT", "results")
PAGES = sorted(path.relative_to(ROOT).as_posix() for folder in FOLDERS for path in (ROOT / folder).glob("*.md"))


@pytest.mark.parametrize("page", PAGES)
def test_every_link_leads_somewhere(page):
    targets = re.findall(r"\]\(([^)\s]+)\)", (ROOT / page).read_text())
    for target in targets:
        path, _, anchor = target.partition("#")
        if path.startswith("http"):
            continue
        file = (ROOT / page).parent / path if path else ROOT / page
        assert file.exists(), target
        if anchor:
            headings = re.findall(r"^#+ (.*)$", file.read_text(), flags=re.MULTILINE)
            assert anchor in [re.sub(r"[^\w\- ]", "", h).strip().lower().replace(" ", "-") for h in headings], target


def test_every_command_names_files_that_exist_and_targets_that_make_knows():
    makefile = (ROOT / "Makefile").read_text()
    words = [word for command in COMMANDS for word in re.split(r"[\s=]+", command)]
    named = [w for w in words if re.match(r"(tools|projects|configs|datasets)/", w) and "." in w]
    assert len(named) >= 6
    for name in named:
        assert (ROOT / name).is_file(), name
    targets = [command.split()[1] for command in COMMANDS if command.startswith("make ")]
    assert targets[:2] == ["demo", "test"]
    for target in targets:
        assert re.search(rf"^{target}:", makefile, flags=re.MULTILINE), target
    for number, (_, text) in enumerate(BLOCKS):
        if "make demo" in text:
            assert number == 0


def test_without_make_the_commands_are_those_of_the_makefile():
    makefile = (ROOT / "Makefile").read_text()
    without = [command for command in COMMANDS if command.startswith("python3 tools/install.py")]
    assert len(without) == 2
    for command in without:
        install, run = command.split(" && ")
        assert install.removeprefix("python3 ") in makefile
        assert f"\t{run}\n" in makefile


@pytest.fixture
def own_data(tmp_path: Path, monkeypatch) -> Path:
    """A folder with the README's my_data.yaml, and a data set of two images and two classes where it says."""
    shutil.copytree(ROOT / "configs", tmp_path / "configs", ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "my_data" / "images").mkdir(parents=True)
    images = [{"id": i, "file_name": f"{i}.jpg", "height": 48, "width": 64} for i in (1, 2)]
    box = {"id": 1, "image_id": 1, "category_id": 7, "bbox": [4, 4, 20, 20], "area": 400, "iscrowd": 0}
    categories = [{"id": 3, "name": "cat"}, {"id": 7, "name": "dog"}]
    for image in images:
        cv2.imwrite(str(tmp_path / "my_data" / "images" / image["file_name"]), np.full((48, 64, 3), 90, np.uint8))
    for split in ("train", "val"):
        content = {"info": {}, "images": images, "annotations": [box], "categories": categories}
        (tmp_path / "my_data" / f"{split}.json").write_text(json.dumps(content))
    # Data sets are registered for good, so that each test takes names of its own.
    text = (
        block("yaml", "CUSTOM").replace("my_train", f"{tmp_path.name}_train").replace("my_val", f"{tmp_path.name}_val")
    )
    (tmp_path / "my_data.yaml").write_text(text)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_yaml_for_ones_own_data_loads_and_sets_the_number_of_classes(own_data):
    cfg = load_config("my_data.yaml", ["MODEL.WEIGHTS", ""])
    assert cfg.MODEL.ROI_HEADS.NUM_CLASSES == 2
    assert not cfg.MODEL.MASK_ON
    assert cfg.MODEL.BACKBONE.NAME == "build_spt_fpn_backbone"
    named = re.findall(r"`(?:configs/Custom/)?(faster_rcnn_\w+)\.yaml`", README)
    assert len(named) == 3 and WEIGHTS in README
    for name in named:
        assert (ROOT / "configs" / "Custom" / f"{name}.yaml").is_file()


@pytest.mark.parametrize("name", sorted(path.stem for path in (ROOT / "configs" / "Custom").glob("[!B]*.yaml")))
def test_the_yaml_for_ones_own_data_stands_on_any_custom_config_with_images_of_nothing(own_data, name):
    text = Path("my_data.yaml").read_text().replace("faster_rcnn_spt_nano_fpn", name)
    Path("my_data.yaml").write_text("".join(line for line in text.splitlines(True) if "WEIGHTS" not in line))
    cfg = load_config("my_data.yaml")
    assert f"Custom/{name}.yaml" in text and cfg.MODEL.ROI_HEADS.NUM_CLASSES == 2
    assert not cfg.MODEL.MASK_ON and not cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS
    assert cfg.SOLVER.MAX_ITER <= 5000 and cfg.MODEL.WEIGHTS == ("" if "nano" in name else WEIGHTS)
    names = [f"{own_data.name}_lazy_{split}" for split in ("train", "val")]
    entries = [f"[{n},my_data/{n.rsplit('_')[-1]}.json,my_data/images]" for n in names]
    overrides = [f"datasets.custom=[{','.join(entries)}]"]
    overrides += [f"dataloader.{split}.dataset.names={n}" for split, n in zip(("train", "test"), names)]
    lazy = LazyConfig.load(str(ROOT / "projects" / "SPT" / "configs" / "Custom" / f"{name}.py"))
    lazy = LazyConfig.apply_overrides(lazy, overrides)
    setup_lazy_datasets(lazy, overrides)
    assert lazy.model.roi_heads.num_classes == 2 and lazy.dataloader.evaluator.dataset_name == names[1]


@pytest.mark.slow
def test_the_python_lines_draw_what_a_model_selects(own_data, monkeypatch):
    """Run as they stand, on the demo's files made small: an untrained model and one picture."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        demo = own_data / "output" / "demo"
        demo.mkdir(parents=True)
        trainer = load_program(ROOT / "projects" / "SPT" / "train_net.py").Trainer
        cfg = load_config("my_data.yaml", ["MODEL.WEIGHTS", "", "INPUT.MIN_SIZE_TEST", "64"])
        (demo / "config.yaml").write_text(cfg.dump())
        model = trainer.build_model(cfg)
        assert isinstance(model, SelectionGeneralizedRCNN)
        torch.save({"model": model.state_dict()}, demo / "model_final.pth")
        shapes = own_data / "datasets" / "shapes" / "val"
        shapes.mkdir(parents=True)
        shutil.copy(own_data / "my_data" / "images" / "1.jpg", shapes / "000001.jpg")
        exec(compile(block("python", "build_predictor"), "README.md", "exec"), {})
    finally:
        torch.set_num_threads(threads)
    for name in ("found.png", "selected.png"):
        assert cv2.imread(str(own_data / "output" / name)).shape[1] == 64
