"""A tiny model, and the command-line programs that train it, run in this process or in others."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml
from detectron2.engine import default_argument_parser

from tests.conftest import ROOT, as_a_program, load_program

TRAIN_NET = ROOT / "projects" / "SPT" / "train_net.py"
LAZY_TRAIN_NET = ROOT / "tools" / "lazyconfig_train_net.py"
AVERAGED = ("MODEL.EMA.ENABLED", "True", "MODEL.EMA.DECAY", "0.5")


def run_here(program: Path, *arguments: str | Path) -> dict:
    """The results of a program's ``main``, run in this process on one thread."""
    with as_a_program():
        return load_program(program).main(default_argument_parser().parse_args([str(a) for a in arguments]))


def run_apart(*command: str | Path) -> str:
    """What a command printed, which must succeed, run in a process of its own with one thread for each process."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        [sys.executable, *map(str, command)], env=environment, cwd=ROOT, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    return done.stdout + done.stderr


def assert_same(first: object, second: object, path: str = "") -> None:
    """Nested containers equal, tensors bit for bit."""
    assert type(first) is type(second), path
    if isinstance(first, dict):
        assert first.keys() == second.keys(), path
        for key in first:
            assert_same(first[key], second[key], f"{path}/{key}")
    elif isinstance(first, (list, tuple)):
        assert len(first) == len(second), path
        for i, (a, b) in enumerate(zip(first, second)):
            assert_same(a, b, f"{path}/{i}")
    elif isinstance(first, torch.Tensor):
        assert torch.equal(first, second), path
    else:
        assert first == second, path


def metrics(folder: Path) -> dict[int, dict[str, float]]:
    """What metrics.json holds, by iteration."""
    found: dict[int, dict[str, float]] = {}
    for line in (folder / "metrics.json").read_text().splitlines():
        record = json.loads(line)
        found.setdefault(record.pop("iteration"), {}).update(record)
    return found


def predictions(folder: Path) -> list[dict]:
    """Detections in an order that does not depend on who made them."""
    found = json.loads((folder / "inference" / "coco_instances_results.json").read_text())
    return sorted(found, key=lambda d: (d["image_id"], d["score"], d["category_id"], d["bbox"]))


@pytest.fixture(scope="session")
def tiny_config(tiny_shapes: list[list[str]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A yaml config that trains a tiny model on the tiny data set for four iterations."""
    backbone = {"EMBED_DIM": 16, "DEPTHS": [1, 1, 2, 1], "NUM_HEADS": [1, 2, 4, 8], "DROP_PATH_RATE": 0.1}
    config = {
        "_BASE_": str(ROOT / "configs" / "Base-nano-RCNN-FPN.yaml"),
        "MODEL": {
            "SPT": {**backbone, "NOISE": "logistic", "LOG_PERIOD": 2},
            "SWIN": backbone,
            "FPN": {"OUT_CHANNELS": 16},
            "ANCHOR_GENERATOR": {"ASPECT_RATIOS": [[1.0]]},
            "RPN": {"POST_NMS_TOPK_TRAIN": 40, "POST_NMS_TOPK_TEST": 20},
            "ROI_BOX_HEAD": {"FC_DIM": 32},
            "ROI_MASK_HEAD": {"NUM_CONV": 1, "CONV_DIM": 16},
            # Of an untrained detector, too, something is to be evaluated.
            "ROI_HEADS": {"SCORE_THRESH_TEST": 0.0},
        },
        "DATASETS": {"CUSTOM": tiny_shapes, "TRAIN": ["tiny_train"], "TEST": ["tiny_val"]},
        "INPUT": {"MIN_SIZE_TRAIN": [64, 96], "MIN_SIZE_TEST": 64},
        "SOLVER": {
            "IMS_PER_BATCH": 4,
            "MAX_ITER": 4,
            "STEPS": [3],
            "WARMUP_ITERS": 2,
            "CHECKPOINT_PERIOD": 2,
            "METRIC_PERIOD": 2,
        },
        "TEST": {"DETECTIONS_PER_IMAGE": 10},
        "SEED": 7,
    }
    path = tmp_path_factory.mktemp("config") / "tiny.yaml"
    path.write_text(yaml.safe_dump(config))
    return path


@pytest.fixture(scope="session")
def train_here(tiny_config: Path) -> Callable[..., dict]:
    """``train_net.py`` on the tiny config, in this process, with more arguments."""
    return lambda *arguments: run_here(TRAIN_NET, "--config-file", tiny_config, *arguments)


@pytest.fixture(scope="session")
def whole_run(train_here: Callable[..., dict], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict]:
    """Folder and results of a run of four iterations that keeps an average of the weights."""
    folder = tmp_path_factory.mktemp("whole")
    return folder, train_here("OUTPUT_DIR", folder, *AVERAGED)
