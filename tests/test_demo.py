"""tools/demo.py from end to end, a few iterations on a few small pictures: whole, stopped and resumed, and dense."""

import io
import itertools
import json
import re
import runpy
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from tests.conftest import ROOT, as_a_program, load_program

pytest.importorskip("detectron2", reason="detectron2 is not installed")
from detectron2.data import DatasetCatalog, Metadata, MetadataCatalog

from spt_d2 import get_config
from spt_d2.curves import read_metrics
from spt_d2.data import register_shapes
from spt_d2.engine.evaluation_file import EVALUATION_FILE
from spt_d2.engine.reproducible import IterationSeed
from spt_d2.engine.setup import load_config
from tests.engine.conftest import assert_same

DEMO = ROOT / "tools" / "demo.py"
ITERATIONS = 4
# The demo's recipe and model, but for sizes and counts. Of an untrained detector, too, something is to be evaluated.
SMALL = (
    "INPUT.MIN_SIZE_TRAIN", "(64,)", "INPUT.MIN_SIZE_TEST", "64", "SOLVER.IMS_PER_BATCH", "4",
    "SOLVER.MAX_ITER", str(ITERATIONS), "SOLVER.STEPS", "(3,)", "SOLVER.WARMUP_ITERS", "2",
    "SOLVER.CHECKPOINT_PERIOD", "2", "SOLVER.METRIC_PERIOD", "1", "MODEL.SPT.LOG_PERIOD", "1",
    "MODEL.ROI_HEADS.SCORE_THRESH_TEST", "0.0", "TEST.DETECTIONS_PER_IMAGE", "10", "DATALOADER.NUM_WORKERS", "0",
)  # fmt: skip


class Run(NamedTuple):
    """What a run left: its folder, what it returned, what a terminal showed, and the weights it set out from."""

    folder: Path
    summary: dict
    terminal: str
    start: dict[str, Tensor]


@pytest.fixture(scope="module")
def shapes(tiny_shapes: list[list[str]]) -> Iterator[Path]:
    """The folder of a small set of Shapes, which the demo's configs name; the terminal is a string meanwhile."""

    def register() -> None:
        for split in ("train", "val"):
            DatasetCatalog.remove(f"shapes_{split}")
            MetadataCatalog.remove(f"shapes_{split}")
        register_shapes()

    folder = Path(tiny_shapes[0][1]).parent
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DETECTRON2_DATASETS", str(folder.parent))
        register()
        yield folder
    register()


@pytest.fixture(scope="module")
def demo(shapes: Path) -> ModuleType:
    return load_program(DEMO)


def run_demo(demo: ModuleType, folder: Path, *arguments: str) -> Run:
    """``main`` in this process."""
    start: dict[str, Tensor] = {}
    before_train = demo.DemoTrainer.before_train

    def remember(trainer) -> None:
        start.update({name: value.clone() for name, value in trainer.model.state_dict().items()})
        before_train(trainer)

    with as_a_program(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(demo.DemoTrainer, "before_train", remember)
        patch.setattr(sys, "__stdout__", terminal := io.StringIO())
        summary = demo.main(["--output", str(folder), *arguments, *SMALL])
    return Run(folder, summary, terminal.getvalue(), start)


@pytest.fixture(scope="module")
def selecting(demo: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Run:
    return run_demo(demo, tmp_path_factory.mktemp("runs") / "demo")


@pytest.fixture(scope="module")
def dense(demo: ModuleType, selecting: Run) -> Run:
    """The twin, in the folder beside it where the table looks for it."""
    return run_demo(demo, selecting.folder.with_name("demo-dense"), "--dense")


def assert_fraction(value: object) -> None:
    assert isinstance(value, float) and 0 <= value <= 1, value


# summary.json, evaluation.json


def test_the_evaluation_is_left_as_results_files_are_made_of_it(selecting: Run) -> None:
    found = json.loads((selecting.folder / EVALUATION_FILE).read_text())
    (of_data_set,) = found["test"]
    assert of_data_set["results"]["bbox"]["AP"] == selecting.summary["box"]["AP"]
    assert found["command"].startswith("python tools/demo.py --config-file configs/Shapes-InstanceSegmentation/")
    assert str(selecting.folder) not in json.dumps(found)


def test_the_summary_has_the_keys_and_types_that_are_promised(selecting: Run) -> None:
    summary = json.loads((selecting.folder / "summary.json").read_text(), parse_constant=pytest.fail)
    assert summary == selecting.summary
    assert list(summary) == ["box", "segm", "selection", "macs_g", "train_seconds", "commit"]
    for task in ("box", "segm"):
        assert {"AP", "AP50", "AP75", "APs", "APm", "APl"} <= summary[task].keys()
        for name, value in summary[task].items():
            # None where no object has that size.
            assert value is None or (isinstance(value, float) and 0 <= value <= 100), (task, name)
        assert summary[task]["AP"] is not None and summary[task]["AP50"] is not None
    selection = summary["selection"]
    figures = ["keep_ratio", "retention", "density"]
    assert list(selection) == [*figures, "by_stage"]
    assert list(selection["by_stage"]) == ["stage3", "stage4"]
    for part in (selection, *selection["by_stage"].values()):
        assert [name for name in part if name != "by_stage"] == figures
        for name in figures:
            assert_fraction(part[name])
    assert summary["macs_g"].keys() == {"executed", "useful", "dense"}
    assert all(isinstance(value, float) and value > 0 for value in summary["macs_g"].values())
    assert summary["macs_g"]["useful"] <= summary["macs_g"]["executed"]
    assert isinstance(summary["train_seconds"], float) and summary["train_seconds"] > 0


def test_the_overall_figures_are_those_of_the_stages_weighted_by_tokens(selecting: Run) -> None:
    """64 px: 4 x 4 tokens in each of six blocks of stage 3, 2 x 2 in each of two blocks of stage 4."""
    selection = selecting.summary["selection"]
    third, fourth = (selection["by_stage"][stage]["keep_ratio"] for stage in ("stage3", "stage4"))
    assert selection["keep_ratio"] == pytest.approx((6 * 16 * third + 2 * 4 * fourth) / (6 * 16 + 2 * 4))


def test_the_commit_is_the_repositorys(selecting: Run) -> None:
    git = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True)
    if git.returncode:
        assert selecting.summary["commit"] is None
    else:
        assert selecting.summary["commit"].removesuffix("-dirty") == git.stdout.strip()


def test_a_dense_run_has_no_selection_and_executes_what_it_costs_dense(selecting: Run, dense: Run) -> None:
    summary = dense.summary
    assert summary["selection"] == {"keep_ratio": None, "retention": None, "density": None, "by_stage": {}}
    assert summary["macs_g"]["executed"] == summary["macs_g"]["dense"]
    # A backbone of equal depth and width: what the other counts as dense is this one.
    assert summary["macs_g"]["dense"] == pytest.approx(selecting.summary["macs_g"]["dense"], rel=1e-12)
    assert summary["macs_g"]["executed"] != selecting.summary["macs_g"]["executed"]
    assert summary["box"]["AP"] is not None and summary["segm"]["AP"] is not None


# Pictures


def pixels(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path).convert("RGB"))


def assert_drawn(picture: np.ndarray) -> None:
    """No part of it is empty: of 3 x 4 tiles every one shows many colours."""
    rows, columns = (np.linspace(0, length, parts + 1).astype(int) for length, parts in zip(picture.shape, (3, 4)))
    for top, bottom in itertools.pairwise(rows):
        for left, right in itertools.pairwise(columns):
            tile = picture[top:bottom, left:right].reshape(-1, 3)
            assert len(np.unique(tile @ [1, 256, 65536])) > 50, (top, left)
            assert tile.std(axis=0).min() > 3, (top, left)


def test_pictures_of_every_kind_are_drawn(selecting: Run, dense: Run, demo: ModuleType) -> None:
    for run in (selecting, dense):
        for name in ("selection.png", "curves.png"):
            assert_drawn(pixels(run.folder / name))
    # Six images in two groups of columns: three columns with the heat map, two without.
    wide, narrow = (pixels(run.folder / "selection.png").shape for run in (selecting, dense))
    assert wide[1] >= 6 * demo.PANEL > narrow[1] >= 4 * demo.PANEL
    assert wide[0] > narrow[0] >= 3 * demo.PANEL, "a legend stands below heat maps only"


def test_the_curves_are_those_of_every_iteration(selecting: Run) -> None:
    curves = read_metrics(selecting.folder / "metrics.json")
    stages = [f"selection/stage{stage}/{name}" for stage in (3, 4) for name in ("keep_ratio", "retention", "density")]
    losses = ["total_loss", "loss_cls", "loss_box_reg", "loss_mask", "loss_rpn_cls", "loss_rpn_loc"]
    for name in (*losses, *(f"loss_select_stage{stage}" for stage in (2, 3, 4)), *stages):
        assert curves[name][0] == list(range(ITERATIONS)), name


# What a terminal shows


def test_a_terminal_shows_progress_with_the_time_left_and_ends_with_a_table_and_the_files(selecting: Run) -> None:
    lines = selecting.terminal.splitlines()
    progress = [line for line in lines if line.startswith("iteration ")]
    assert [line.split()[1] for line in progress] == [str(i + 1) for i in range(ITERATIONS)]
    for line in progress:
        assert re.search(r"loss \d+\.\d+ +tokens kept: stage 3 +\d+%, stage 4 +\d+%", line), line
    # Detectron2 gives no times of the first two iterations.
    assert re.search(r"\d s each .*\d s left$", progress[2]), progress[2]
    assert any("holds a set of another size or seed, which is used as it is" in line for line in lines)
    table = selecting.terminal[selecting.terminal.index("select and pack") :]
    for label in (
        "box AP50, %",
        "mask AP50, %",
        "stage 3: tokens kept",
        "stage 4: object tokens kept",
        "multiply-adds",
    ):
        assert label in table
    for name in ("summary.json", "selection.png", "curves.png", "log.txt"):
        assert any(line.endswith(name) for line in lines[-6:]), name
        assert (selecting.folder / name).stat().st_size > 0


def test_the_second_of_two_twins_shows_both_side_by_side(selecting: Run, dense: Run) -> None:
    header = next(line for line in dense.terminal.splitlines() if "select and pack" in line)
    assert header.split() == ["select", "and", "pack", "dense"]
    row = next(line for line in dense.terminal.splitlines() if line.startswith("box AP50"))
    expected = [f"{run.summary['box']['AP50']:.1f}" for run in (selecting, dense)]
    assert row.split()[-2:] == expected
    assert "The twin's column is from" in dense.terminal and "The twin's column is from" not in selecting.terminal


# Where a run starts


def test_twins_start_from_the_same_weights_wherever_names_and_shapes_agree(selecting: Run, dense: Run) -> None:
    shapes = [{name: value.shape for name, value in run.start.items()} for run in (selecting, dense)]
    shared = [name for name, shape in shapes[0].items() if shapes[1].get(name) == shape]
    for name in shared:
        assert torch.equal(selecting.start[name], dense.start[name]), name
    only_selecting, only_dense = selecting.start.keys() - set(shared), dense.start.keys() - set(shared)
    assert only_selecting and all("gate" in name for name in only_selecting)
    # Without position, the blocks that select have no tables.
    assert all(name.endswith("relative_position_bias_table") and "layers.0" not in name for name in only_dense)
    for part in ("layers.2.blocks.5.attn.qkv.weight", "layers.3.blocks.1.mlp.fc1.weight", "mask_head.predictor.weight"):
        (name,) = (name for name in shared if name.endswith(part))
        assert selecting.start[name].std() > 0


def test_gates_start_where_they_keep_everything(selecting: Run) -> None:
    weights = [value for name, value in selecting.start.items() if name.endswith("gate.proj.weight")]
    # Six and two blocks, and the extra gate before stage 3.
    assert len(weights) == 9 and not any(weight.any() for weight in weights)
    assert read_metrics(selecting.folder / "metrics.json")["selection/stage3/keep_ratio"][1][0] == 1.0


def test_another_seed_starts_elsewhere(demo: ModuleType, selecting: Run) -> None:
    cfg = load_config(demo.get_config_file(demo.CONFIGS[False]), ["SEED", "1"])
    weights = demo.initial_weights(demo.dense_twin(cfg))
    name = "backbone.bottom_up.layers.2.blocks.0.attn.qkv.weight"
    assert weights[name].shape == selecting.start[name].shape and not torch.equal(weights[name], selecting.start[name])


def test_weights_to_start_from_have_the_sizes_of_the_backbone_that_selects(demo: ModuleType) -> None:
    """Whatever ``MODEL.SWIN`` says, which the run does not read."""
    sizes = ["MODEL.SPT.EMBED_DIM", "16", "MODEL.SPT.DEPTHS", "[1, 1, 1, 1]", "MODEL.SPT.NUM_HEADS", "[1, 2, 2, 4]"]
    weights = demo.initial_weights(demo.dense_twin(load_config(demo.get_config_file(demo.CONFIGS[False]), sizes)))
    assert not any("gate" in name for name in weights)
    assert weights["backbone.bottom_up.norm3.weight"].shape == (128,)
    assert not any("layers.2.blocks.1." in name for name in weights)


# Stopped, and gone on with


@pytest.fixture(scope="module")
def stopped(selecting: Run, demo: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run that Ctrl-C stops in its third iteration, then ``--resume``."""
    folder, before_step = tmp_path_factory.mktemp("stopped") / "demo", IterationSeed.before_step

    def press(hook) -> None:
        if hook.trainer.iter == 2:
            raise KeyboardInterrupt
        before_step(hook)

    with as_a_program(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(IterationSeed, "before_step", press)
        patch.setattr(sys, "__stdout__", terminal := io.StringIO())
        patch.setattr(sys, "argv", [str(DEMO), "--output", str(folder), *SMALL])
        with pytest.raises(SystemExit) as exit:
            # As a program, whose last lines answer to Ctrl-C.
            runpy.run_path(str(DEMO), run_name="__main__")
    assert exit.value.code == 130
    assert terminal.getvalue().splitlines()[-1] == (
        "Stopped. The same command with --resume goes on from the last checkpoint."
    )
    assert not (folder / "summary.json").exists() and not (folder / "model_final.pth").exists()
    return run_demo(demo, folder, "--resume")


def test_a_resumed_run_ends_as_one_that_never_stopped(stopped: Run, selecting: Run) -> None:
    assert "from iteration 3" in stopped.terminal
    first, second = (torch.load(run.folder / "model_final.pth") for run in (stopped, selecting))
    for key in ("model", "optimizer", "scheduler", "iteration"):
        found = [checkpoint.get(key, checkpoint.get("trainer", {}).get(key)) for checkpoint in (first, second)]
        assert_same(*found)
    assert first["iteration"] == ITERATIONS - 1
    assert not torch.equal(
        second["model"]["backbone.bottom_up.norm3.weight"], selecting.start["backbone.bottom_up.norm3.weight"]
    )


def test_a_resumed_run_reports_all_of_its_iterations_and_the_same_results(stopped: Run, selecting: Run) -> None:
    for key in ("box", "segm", "selection", "macs_g"):
        assert stopped.summary[key] == selecting.summary[key], key
    curves = [read_metrics(run.folder / "metrics.json") for run in (stopped, selecting)]
    for name in ("selection/stage3/keep_ratio", "selection/stage4/retention", "lr"):
        assert curves[0][name] == curves[1][name], name
    # Losses are written as medians of what a session has seen.
    assert curves[0]["total_loss"][0] == list(range(ITERATIONS))
    # Its clock counts the iterations before the stop, too; the hook's state is in the checkpoint.
    clock = torch.load(stopped.folder / "model_0000001.pth")["trainer"]["hooks"]["TrainingClock"]["seconds"]
    assert stopped.summary["train_seconds"] > clock > 0


def test_a_run_that_was_complete_is_only_evaluated_again(stopped: Run, demo: ModuleType) -> None:
    again = run_demo(demo, stopped.folder, "--resume")
    assert "Training was complete; evaluating again" in again.terminal
    assert not any(line.startswith("iteration ") for line in again.terminal.splitlines())
    assert again.summary == stopped.summary


def test_without_resume_what_an_earlier_run_left_is_removed_and_nothing_else(demo: ModuleType, tmp_path: Path) -> None:
    for name in ("config.yaml", "summary.json", "model_0000001.pth", "last_checkpoint", "metrics.json"):
        (tmp_path / name).touch()
    (tmp_path / "inference").mkdir()
    (tmp_path / "inference" / "predictions.json").touch()
    mine = ("notes.txt", "weights.pth", "summary.json.old")
    for name in mine:
        (tmp_path / name).touch()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "__stdout__", terminal := io.StringIO())
        demo.clear_output(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(mine)
    assert "starts afresh" in terminal.getvalue()


# Somebody's own data


def test_another_config_trains_on_its_own_data_set(
    demo: ModuleType, tiny_shapes: list[list[str]], tmp_path: Path
) -> None:
    """README, "Your own data": boxes only, names of classes and their number from the json."""
    config = {
        "_BASE_": str(ROOT / "configs" / "Custom" / "faster_rcnn_spt_nano_fpn.yaml"),
        "DATASETS": {"CUSTOM": tiny_shapes, "TRAIN": ["tiny_train"], "TEST": ["tiny_val"]},
        "SOLVER": {"MAX_ITER": 1, "STEPS": []},
    }
    (tmp_path / "mine.yaml").write_text(json.dumps(config))
    folder, small = tmp_path / "out", [*SMALL]
    for key in ("SOLVER.MAX_ITER", "SOLVER.STEPS"):
        del small[small.index(key) : small.index(key) + 2]
    with as_a_program(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "__stdout__", io.StringIO())
        summary = demo.main(["--config-file", str(tmp_path / "mine.yaml"), "--output", str(folder), *small])
    assert summary["segm"] == {} and summary["box"]["AP"] is not None
    assert {name for name in summary["box"] if name.startswith("AP-")} == {
        f"AP-{name}" for name in MetadataCatalog.get("tiny_val").thing_classes
    }
    assert_drawn(pixels(folder / "selection.png"))


@pytest.mark.parametrize("path", sorted((ROOT / "configs" / "Shapes-InstanceSegmentation").glob("*.yaml")))
def test_shapes_is_made_for_every_config_that_names_it_itself_or_by_its_bases(path: Path, demo: ModuleType) -> None:
    assert demo.needs_shapes(demo.read_config(str(path)))
    elsewhere = ["DATASETS.TRAIN", "('coco_2017_train',)", "DATASETS.TEST", "('coco_2017_val',)"]
    assert not demo.needs_shapes(demo.read_config(str(path), elsewhere))


def test_shapes_is_not_made_for_a_config_that_only_speaks_of_it(demo: ModuleType, tmp_path: Path) -> None:
    mine = tmp_path / "mine.yaml"
    mine.write_text("# Unlike shapes_train.\nDATASETS: {TRAIN: [my_shapes], TEST: [shapes_of_mine]}\n")
    assert not demo.needs_shapes(demo.read_config(str(mine)))
    assert demo.needs_shapes(demo.read_config(str(mine), ["DATASETS.TEST", "('shapes_val',)"]))


# Other models


def test_a_model_of_detectron2s_own_is_trained_and_drawn_without_selections(
    demo: ModuleType, shapes: Path, tmp_path: Path
) -> None:
    run = run_demo(demo, tmp_path / "stock", "MODEL.META_ARCHITECTURE", "GeneralizedRCNN")
    assert run.summary["selection"]["keep_ratio"] is None and run.summary["box"]["AP"] is not None
    assert 6 * demo.PANEL > pixels(run.folder / "selection.png").shape[1] >= 4 * demo.PANEL
    assert_drawn(pixels(run.folder / "selection.png"))


def test_an_oracle_is_drawn_with_the_labels_that_it_selects_by(demo: ModuleType, shapes: Path, tmp_path: Path) -> None:
    """Over a plain ViT, whose blocks select too: the table is to call it by its kind."""
    config = ROOT / "configs" / "Shapes-InstanceSegmentation" / "mask_rcnn_spa_vit_nano_fpn_oracle.yaml"
    run = run_demo(demo, tmp_path / "oracle", "--config-file", str(config))
    assert run.summary["selection"]["retention"] == 1.0 and run.summary["selection"]["keep_ratio"] < 1
    assert pixels(run.folder / "selection.png").shape[1] >= 6 * demo.PANEL
    header = next(line for line in run.terminal.splitlines() if line.strip() in ("select and pack", "dense"))
    assert header.split() == ["select", "and", "pack"]


@pytest.mark.parametrize(
    "config, title",
    [
        ("mask_rcnn_spt_nano_fpn_demo", "select and pack"),
        ("mask_rcnn_spa_vit_nano_fpn", "select and pack"),
        ("mask_rcnn_swin_nano_fpn_demo", "dense"),
        ("mask_rcnn_vit_nano_fpn", "dense"),
        ("mask_rcnn_dynamic_swin_nano_fpn", "dynamic_swin"),
        ("mask_rcnn_sparse_vit_nano_fpn", "sparse_vit"),
        ("mask_rcnn_svit_gated_swin_nano_fpn", "svit_gated_swin"),
        ("mask_rcnn_dat_nano_fpn", "dat"),
    ],
)
def test_only_dense_backbones_are_called_dense(demo: ModuleType, config: str, title: str) -> None:
    cfg = get_config(f"Shapes-InstanceSegmentation/{config}.yaml")
    assert demo.column_title(cfg) == title


def test_a_peer_has_no_twin_beside_it(demo: ModuleType, dense: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Though a folder lies where its twin's would."""
    peer = dense.folder.with_name(dense.folder.name.removesuffix("-dense"))
    for title, columns in (("dat", ["dat"]), ("select and pack", ["select", "and", "pack", "dense"])):
        monkeypatch.setattr(sys, "__stdout__", terminal := io.StringIO())
        demo.compare(peer, dense.summary, title)
        assert terminal.getvalue().strip().splitlines()[0].split() == columns


def test_a_classifier_is_refused_before_anything_is_removed_or_made(demo: ModuleType, tmp_path: Path) -> None:
    for name in ("config.yaml", "summary.json"):
        (tmp_path / name).touch()
    config = ROOT / "configs" / "VOC-Classification" / "multilabel_spt_nano_shapes.yaml"
    with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit, match="HINT: projects/SPT/train_net.py"):
        patch.setattr(demo, "prepare_shapes", pytest.fail)
        demo.main(["--config-file", str(config), "--output", str(tmp_path)])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.yaml", "summary.json"]


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["DATASETS.CUSTOM", "[['my_train', 'train.jsno', '.']]"], "json file of data set 'my_train' does not exist"),
        (["DATASETS.TEST", "()"], r"DATASETS.TEST expects a data set to evaluate on and to draw. Got none"),
        (["DATASETS.TRAIN", "()"], r"DATASETS.TRAIN expects a data set to train on. Got none"),
        (["DATASETS.TRAIN", "('mine.yaml',)"], "expects names of data sets. Got the file mine.yaml"),
        (["DATASETS.TRAIN", "('tiny_trian',)"], r"(?s)Got 'tiny_trian'.*HINT: close to it: tiny_train"),
        (
            ["DATASETS.TRAIN", "('absent_val',)", "DATASETS.TEST", "('absent_val',)"],
            "'absent_val' is registered, and its json is not there",
        ),
        (["MODEL.WEIGHTS", "nowhere.pth"], "There is no file nowhere.pth"),
        (
            ["MODEL.WEIGHTS", "out/model_final.pth"],
            r"(?s)Got .*model_final.pth, which .* removed.\nHINT: choose another",
        ),
        (["MODEL.WEIGHTS", "out/inference/best.pth"], r"(?s)Got .*best.pth, which .* removed"),
        (["MODEL.SPT.THRESHOLD", "2.0"], "MODEL.SPT.THRESHOLD"),
    ],
    ids=["json", "no_test", "no_train", "file", "name", "absent", "weights", "its_weights", "its_inference", "value"],
)
def test_what_cannot_run_is_refused_while_an_earlier_run_is_still_there(
    arguments: list[str],
    message: str,
    demo: ModuleType,
    tiny_shapes: list[list[str]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config = {
        "_BASE_": str(ROOT / "configs" / "Custom" / "faster_rcnn_spt_nano_fpn.yaml"),
        "DATASETS": {"CUSTOM": tiny_shapes, "TRAIN": ["tiny_train"], "TEST": ["tiny_val"]},
    }
    (tmp_path / "mine.yaml").write_text(json.dumps(config))
    # Their own `get` takes no default.
    monkeypatch.setitem(DatasetCatalog.data, "absent_val", list)
    monkeypatch.setitem(MetadataCatalog.data, "absent_val", Metadata(name="absent_val", json_file="absent.json"))
    (tmp_path / "out" / "inference").mkdir(parents=True)
    earlier = ("config.yaml", "inference/best.pth", "model_final.pth", "summary.json")
    for name in earlier:
        (tmp_path / "out" / name).touch()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(demo, "quiet_setup", lambda args: pytest.fail("the run began"))
    command = ["--config-file", "mine.yaml", "--output", "out"]
    with pytest.raises(SystemExit, match=message):
        demo.main([*command, *arguments])
    left = {path.relative_to(tmp_path / "out").as_posix() for path in (tmp_path / "out").rglob("*.*")}
    assert left == set(earlier)
    # The same run without the mistake goes on, and only then is the folder cleared.
    monkeypatch.setattr(sys, "__stdout__", io.StringIO())
    with pytest.raises(pytest.fail.Exception, match="the run began"):
        demo.main(command)
    assert not list((tmp_path / "out").iterdir())


def test_a_config_in_the_folder_to_be_cleared_is_not_removed_before_it_is_read(
    demo: ModuleType, tmp_path: Path
) -> None:
    """A resumed run removes nothing, and may read it."""
    saved = tmp_path / "config.yaml"
    saved.write_text(f"_BASE_: {demo.get_config_file(demo.CONFIGS[False])}\n")
    command = ["--config-file", str(saved), "--output", str(tmp_path)]
    with pytest.raises(SystemExit, match="config.yaml, which belongs to an earlier run"):
        demo.main(command)
    assert saved.exists()
    with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit, match="the data is asked for"):

        def stop(_: object) -> None:
            raise SystemExit("the data is asked for")

        patch.setattr(demo, "prepare_shapes", lambda: None)
        patch.setattr(demo, "load_config", lambda *_: None)
        patch.setattr(demo, "expect_data", stop)
        demo.main([*command, "--resume"])


def test_the_summary_of_a_training_is_written_whatever_becomes_of_its_pictures(
    demo: ModuleType, shapes: Path, tmp_path: Path
) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("no picture")

    with as_a_program(), pytest.MonkeyPatch.context() as patch, pytest.raises(RuntimeError, match="no picture"):
        patch.setattr(sys, "__stdout__", io.StringIO())
        patch.setattr(demo, "train", lambda cfg, resume: ({"bbox": {"AP": 12.5}}, 90.0))
        patch.setattr(demo, "build_predictor", fail)
        demo.main(["--output", str(tmp_path), *SMALL])
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert (summary["box"], summary["train_seconds"]) == ({"AP": 12.5}, 90.0)


# The command line


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["SOLVER.MAX_ITER"], "overrides expect keys and values in turn. Got SOLVER.MAX_ITER"),
        (["--dense", "--config-file", "x.yaml"], "not allowed with argument --dense"),
        (["--config-file", "x.yaml", "SEED", "1"], "--config-file expects --output"),
        (["--config-file", "x.yaml", "--resume"], "--config-file expects --output"),
    ],
)
def test_a_command_line_that_cannot_be_is_refused(
    arguments: list[str], message: str, demo: ModuleType, capsys: pytest.CaptureFixture
) -> None:
    with pytest.raises(SystemExit):
        demo.parse_arguments(arguments)
    assert message in capsys.readouterr().err


def test_the_twins_have_a_folder_each_that_does_not_depend_on_where_one_stands(
    demo: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for arguments, name in (([], "demo"), (["--dense"], "demo-dense")):
        args = demo.parse_arguments(arguments)
        assert args.output == ROOT / "output" / name
        assert args.opts[-2:] == ["OUTPUT_DIR", str(ROOT / "output" / name)]
    assert demo.parse_arguments(["--output", "here"]).output == tmp_path / "here"


def test_pictures_show_images_evenly_and_one_without_objects(demo: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    records = [{"file_name": str(i), "annotations": [] if i in (2, 7) else [{}]} for i in range(12)]
    monkeypatch.setattr(demo.DatasetCatalog, "get", lambda name: records)
    chosen = demo.pick_records("some", 6)
    assert [record["file_name"] for record in chosen] == ["0", "3", "5", "8", "10", "2"]
    monkeypatch.setattr(demo.DatasetCatalog, "get", lambda name: records[:2])
    assert len(demo.pick_records("some", 6)) == 2
