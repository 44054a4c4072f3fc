"""projects/SPT/train_net.py from end to end: train, resume, evaluate, in one process and in two."""

import runpy
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from .conftest import AVERAGED, LAZY_TRAIN_NET, ROOT, TRAIN_NET, assert_same, metrics, predictions, run_apart


def test_a_run_logs_losses_and_selection_figures_once_per_period(whole_run: tuple[Path, dict]) -> None:
    folder, results = whole_run
    found = metrics(folder)
    names = ("total_loss", "loss_cls", "loss_mask", "loss_rpn_cls", *(f"loss_select_stage{i}" for i in (2, 3, 4)))
    for name in names:
        assert [i for i in sorted(found) if name in found[i]] == [1, 3], name
    figures = [(i, name) for i in found for name in found[i] if name.startswith("selection/stage")]
    assert len({i for i, _ in figures}) == 2
    assert {name.split("/", 1)[1] for _, name in figures} >= {"stage3/keep_ratio", "stage3/retention", "stage4/density"}
    assert "eta" in (folder / "log.txt").read_text()
    assert {"bbox", "segm", "selection"} <= results.keys()
    # Evaluation is recorded beside training.
    assert any("bbox/AP50" in record for record in found.values())


@pytest.mark.parametrize("workers", ["0", "1", "2"])
def test_a_resumed_run_ends_bit_for_bit_as_one_that_never_stopped(
    workers: str, whole_run: tuple[Path, dict], train_here: Callable[..., dict], tmp_path: Path
) -> None:
    """Weights, their average, optimizer, learning rate; with logistic noise, drop path, flips and sizes drawn."""
    folder, _ = whole_run
    shutil.copy(folder / "model_0000001.pth", tmp_path)
    (tmp_path / "last_checkpoint").write_text("model_0000001.pth")
    untested = ("DATASETS.TEST", "()", "DATALOADER.NUM_WORKERS", workers)
    train_here("--resume", "OUTPUT_DIR", tmp_path, *AVERAGED, *untested)
    assert sorted(metrics(tmp_path)) == [2, 3]
    whole, resumed = (torch.load(path / "model_final.pth") for path in (folder, tmp_path))
    assert resumed["iteration"] == 3
    assert not torch.equal(whole["model"]["backbone.bottom_up.norm3.weight"], torch.ones(128))
    assert_same(resumed, whole)


def test_the_checkpoint_holds_the_average_that_was_evaluated(
    whole_run: tuple[Path, dict], train_here: Callable[..., dict], tmp_path: Path
) -> None:
    folder, results = whole_run
    saved = torch.load(folder / "model_final.pth")
    trained = saved["trainer"]["hooks"]["EMAHook"]["trained"]
    name = "backbone.bottom_up.norm3.weight"
    assert not torch.equal(saved["model"][name], trained[name])
    again = train_here("--eval-only", "OUTPUT_DIR", tmp_path, "MODEL.WEIGHTS", folder / "model_final.pth")
    assert predictions(tmp_path) == predictions(folder) != []
    assert again["selection"] == results["selection"]


def test_test_time_augmentation_evaluates_boxes_and_masks(
    whole_run: tuple[Path, dict], train_here: Callable[..., dict], tmp_path: Path
) -> None:
    folder, _ = whole_run
    augmented = ("TEST.AUG.ENABLED", "True", "TEST.AUG.MIN_SIZES", "(64, 96)")
    results = train_here("--eval-only", "OUTPUT_DIR", tmp_path, "MODEL.WEIGHTS", folder / "model_final.pth", *augmented)
    assert {"bbox", "segm", "selection", "bbox_TTA", "segm_TTA"} == results.keys()
    assert (tmp_path / "inference_TTA" / "coco_instances_results.json").exists()


@pytest.mark.parametrize(
    "program, own, others",
    [(TRAIN_NET, " MODEL.WEIGHTS ", "train.init_checkpoint="), (LAZY_TRAIN_NET, " train.init_checkpoint=", "MODEL.")],
    ids=["yaml", "lazy"],
)
def test_help_shows_examples_of_the_programs_own_overrides(
    program: Path, own: str, others: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr(sys, "argv", [program.name, "--help"])
    with pytest.raises(SystemExit):
        runpy.run_path(str(program), run_name="__main__")
    printed = capsys.readouterr().out
    assert own in printed and others not in printed and f"python {program.relative_to(ROOT)}" in printed


def test_the_dense_twin_trains_and_is_evaluated(train_here: Callable[..., dict], tmp_path: Path) -> None:
    results = train_here(
        "OUTPUT_DIR", tmp_path, "MODEL.BACKBONE.NAME", "build_swin_fpn_backbone", "SOLVER.MAX_ITER", "2",
        "SOLVER.STEPS", "()", "SOLVER.AMP.ENABLED", "True", "SOLVER.AMP.PRECISION", "bfloat16",
    )  # fmt: skip
    assert {"bbox", "segm"} <= results.keys()
    assert not any(name.startswith("loss_select") for record in metrics(tmp_path).values() for name in record)


@pytest.fixture(scope="module")
def two_processes(tiny_config: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Two iterations in two processes, started by Detectron2's launch and by torchrun."""
    arguments = ("--config-file", tiny_config)
    short = ("SOLVER.MAX_ITER", "2", "SOLVER.STEPS", "()")
    folders = {name: tmp_path_factory.mktemp(name) for name in ("launch", "torchrun")}
    spawn = ("--num-gpus", "2", "--dist-url", "auto")
    run_apart(TRAIN_NET, *arguments, *spawn, "OUTPUT_DIR", folders["launch"], *short)
    torchrun = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
    run_apart(*torchrun, TRAIN_NET, *arguments, "OUTPUT_DIR", folders["torchrun"], *short)
    return folders


def test_torchrun_and_detectron2s_launch_train_the_same_model(two_processes: dict[str, Path]) -> None:
    first, second = (torch.load(two_processes[name] / "model_final.pth") for name in ("launch", "torchrun"))
    assert first["iteration"] == 1
    assert_same(first, second)
    for folder in two_processes.values():
        assert "World size: 2" in (folder / "log.txt").read_text()
        # The other process keeps a log of its own.
        assert (folder / "log.txt.rank1").exists()
        assert "total_loss" in metrics(folder)[1]


def test_two_processes_evaluate_as_one(
    two_processes: dict[str, Path], train_here: Callable[..., dict], tmp_path: Path
) -> None:
    folder = two_processes["launch"]
    alone = train_here("--eval-only", "OUTPUT_DIR", tmp_path, "MODEL.WEIGHTS", folder / "model_final.pth")
    together = metrics(folder)
    recorded = {name: value for record in together.values() for name, value in record.items()}
    for task in ("bbox", "segm", "selection"):
        for name, value in alone[task].items():
            assert recorded[f"{task}/{name}"] == pytest.approx(value, rel=1e-6, nan_ok=True), name
    first, second = predictions(tmp_path), predictions(folder)
    assert len(first) == len(second) > 0
    for a, b in zip(first, second):
        assert (a["image_id"], a["category_id"]) == (b["image_id"], b["category_id"])
        assert a["bbox"] == pytest.approx(b["bbox"], abs=1e-3)
