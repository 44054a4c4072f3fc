"""evaluation.json: what a run's last evaluation found, and everything that a results file needs to know of it."""

import argparse
import hashlib
import json
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from detectron2.data import DatasetCatalog
from detectron2.utils import comm

from spt_d2.engine import evaluation_file
from spt_d2.engine.evaluation_file import EVALUATION_FILE, EvaluationFile, keyed_overrides
from tests.conftest import ROOT

from .conftest import AVERAGED

DEMO = "configs/Shapes-InstanceSegmentation/mask_rcnn_spt_nano_fpn_demo.yaml"
RESULTS = {
    "bbox": {"AP": 12.5, "AP50": np.float32(25), "APl": math.nan, "classes": "all"},
    "selection": {"keep_ratio": 0.25},
}


@pytest.fixture
def registered():
    for name, images in (("recorded_val", 3), ("recorded_test", 2)):
        DatasetCatalog.register(name, lambda images=images: [{}] * images)
    yield
    for name in ("recorded_val", "recorded_test"):
        DatasetCatalog.remove(name)


def arguments(*opts: str, config_file: str | Path = ROOT / DEMO, **more) -> argparse.Namespace:
    return argparse.Namespace(**{"config_file": str(config_file), "opts": list(opts), "eval_only": False, **more})


def write(folder: Path, args: argparse.Namespace, results: dict, test=("recorded_val",), seed: int = 3) -> Path:
    file = EvaluationFile(str(folder), "projects/SPT/train_net.py", args)
    file.write(results, train=("some_train",), test=test, seed=seed, device="cpu")
    return folder / EVALUATION_FILE


def written(*arguments, **more) -> dict:
    return json.loads(write(*arguments, **more).read_text())


def test_it_says_what_was_found_and_where_it_comes_from(registered, tmp_path):
    (tmp_path / "a b.pth").write_bytes(b"weights")
    weights = str(tmp_path / "a b.pth")
    args = arguments("SEED", "3", "OUTPUT_DIR", str(tmp_path), "MODEL.WEIGHTS", weights, eval_only=True, num_gpus=1)
    found = written(tmp_path, args, RESULTS)
    assert found["test"] == [
        {
            "name": "recorded_val",
            "images": 3,
            "results": {"bbox": {"AP": 12.5, "AP50": 25.0, "APl": None}, "selection": {"keep_ratio": 0.25}},
        }
    ]
    assert found["command"] == (
        f"python projects/SPT/train_net.py --config-file {DEMO} --eval-only SEED 3 MODEL.WEIGHTS 'a b.pth'"
    )
    assert found["program"] == "projects/SPT/train_net.py"
    assert found["config_file"] == DEMO and found["overrides"] == ["SEED", "3", "MODEL.WEIGHTS", "a b.pth"]
    assert found["checkpoint"] == hashlib.sha256(b"weights").hexdigest()
    assert (found["eval_only"], found["seed"], found["train"]) == (True, 3, ["some_train"])
    assert found["machine"]["processes"] == 1 and found["machine"]["device"] == "cpu"
    # Neither the folder of the run nor that of the repository.
    assert str(tmp_path) not in json.dumps(found) and str(ROOT) not in json.dumps(found)


def test_of_a_lazy_config_too(registered, tmp_path):
    file = ROOT / "projects/SPT/configs/Shapes-InstanceSegmentation/mask_rcnn_spt_nano_fpn_demo.py"
    words = ["+train.seed=1", "train.init_checkpoint=/a/b=c.pth", "train.max_iter=2"]
    found = written(tmp_path, arguments("train.output_dir=x", *words, config_file=file), RESULTS)
    assert found["overrides"] == ["+train.seed=1", "train.init_checkpoint=b=c.pth", "train.max_iter=2"]
    # Of a training no checkpoint says what was measured.
    assert found["checkpoint"] is None


def test_a_config_of_another_folder_has_its_whole_path_and_none_has_none(registered, tmp_path, monkeypatch):
    """A folder of configs is what many projects have: a path below it alone would be taken for one of ours."""
    monkeypatch.chdir(tmp_path)
    other = tmp_path / DEMO
    assert written(tmp_path, arguments(config_file=DEMO), RESULTS)["config_file"] == str(other.resolve())
    found = written(tmp_path, arguments(config_file=""), RESULTS)
    assert found["config_file"] == "" and found["command"] == "python projects/SPT/train_net.py"


def test_the_command_names_the_processes(registered, tmp_path, monkeypatch):
    monkeypatch.setattr(comm, "get_world_size", lambda: 16)
    found = written(tmp_path, arguments(num_gpus=8, num_machines=2), RESULTS)
    assert found["command"].endswith(f"{DEMO} --num-gpus 8 --num-machines 2")
    # Under torchrun its arguments say how many there are, and ours one.
    found = written(tmp_path, arguments(num_gpus=1, num_machines=1), RESULTS)
    assert found["command"].endswith(f"{DEMO} --num-gpus 16")


def test_several_data_sets_each_have_their_results(registered, tmp_path):
    names = ("recorded_val", "recorded_test")
    results = {name: {"bbox": {"AP": i}} for i, name in enumerate(names)}
    augmented = {f"{name}_TTA": {"bbox": {"AP": 50}} for name in names}
    found = written(tmp_path, arguments(), {**results, **augmented}, test=names)
    assert [(each["name"], each["images"], each["results"]["bbox"]["AP"]) for each in found["test"]] == [
        ("recorded_val", 3, 0.0),
        ("recorded_test", 2, 1.0),
    ]


def test_nothing_is_written_where_nothing_was_evaluated_or_by_another_process(registered, tmp_path, monkeypatch):
    for results, test in (({}, ("recorded_val",)), (RESULTS, ()), (RESULTS, ("recorded_val", "recorded_test"))):
        assert not write(tmp_path, arguments(), results, test).exists()
    monkeypatch.setattr(comm, "get_rank", lambda: 1)
    assert not write(tmp_path, arguments(), RESULTS).exists()


@pytest.mark.parametrize("fault", ["no such data set", "no such folder", "odd value"])
def test_what_goes_wrong_does_not_end_a_run(fault, registered, tmp_path, caplog):
    folder = tmp_path / "gone" if fault == "no such folder" else tmp_path
    test = ("never_registered",) if fault == "no such data set" else ("recorded_val",)
    results = {"bbox": {"AP": 10**400}} if fault == "odd value" else RESULTS
    assert not write(folder, arguments(), results, test).exists()
    assert "could not be written; the run itself is not affected" in caplog.text


def test_flat_results_of_evaluators_of_ones_own_are_left_out(registered, tmp_path):
    found = written(tmp_path, arguments(), {"accuracy": 0.5, "bbox": {"AP": 1.0}})
    assert found["test"][0]["results"] == {"bbox": {"AP": 1.0}}


def test_a_training_begins_without_an_earlier_ones_file_unless_it_goes_on_with_it(registered, tmp_path):
    def begin(**more) -> bool:
        EvaluationFile(str(tmp_path), "p", arguments(**more))
        return (tmp_path / EVALUATION_FILE).exists()

    write(tmp_path, arguments(), RESULTS)
    assert begin(resume=True) and begin(eval_only=True)
    assert not begin(resume=False)


def test_a_training_that_writes_over_the_checkpoints_of_another_says_so(tmp_path, caplog):
    def begin(**more) -> bool:
        caplog.clear()
        EvaluationFile(str(tmp_path), "p", arguments(**more))
        return "which this one writes over.\nHINT: --resume" in caplog.text

    assert not begin(resume=False)
    (tmp_path / "last_checkpoint").write_text("model_final.pth")
    assert begin(resume=False) and not begin(resume=True) and not begin(eval_only=True)


def test_an_evaluation_leaves_the_file_of_a_training(registered, tmp_path):
    """It knows neither the seed of the training nor what its overrides were."""
    trained = written(tmp_path, arguments("SOLVER.BASE_LR", "1.0"), RESULTS)
    assert written(tmp_path, arguments(eval_only=True), {"bbox": {"AP": 1.0}}) == trained
    # One of an evaluation is replaced by the next, and a training replaces both.
    (tmp_path / EVALUATION_FILE).unlink()
    written(tmp_path, arguments(eval_only=True), RESULTS)
    assert written(tmp_path, arguments(eval_only=True), {"bbox": {"AP": 1.0}})["test"][0]["results"]["bbox"] == {
        "AP": 1.0
    }
    assert not written(tmp_path, arguments(resume=True), RESULTS)["eval_only"]


def test_the_commit_is_that_of_the_code_that_ran(registered, tmp_path, monkeypatch):
    monkeypatch.setattr(evaluation_file, "code_commit", lambda: "before")
    file = EvaluationFile(str(tmp_path), "p", arguments())
    monkeypatch.setattr(evaluation_file, "code_commit", lambda: "pulled meanwhile")
    file.write(RESULTS, train=(), test=("recorded_val",), seed=0, device="cpu")
    assert json.loads((tmp_path / EVALUATION_FILE).read_text())["commit"] == "before"


@pytest.mark.parametrize(
    "config_file, overrides, expected",
    [
        ("a.yaml", ["SEED", "1", "X.Y", "(1, 2)"], [("SEED", ("SEED", "1")), ("X.Y", ("X.Y", "(1, 2)"))]),
        ("a.py", ["train.seed=1", "~train.ema", "+a.b=c=d"], [
            ("train.seed", ("train.seed=1",)), ("train.ema", ("~train.ema",)), ("a.b", ("+a.b=c=d",)),
        ]),
        ("a.py", [], []),
    ],
    ids=["yaml", "lazy", "none"],
)  # fmt: skip
def test_overrides_have_keys(config_file, overrides, expected):
    assert keyed_overrides(config_file, overrides) == expected


def test_training_and_evaluating_leave_the_same_results(
    whole_run: tuple[Path, dict], train_here: Callable[..., dict], tmp_path: Path
) -> None:
    folder, results = whole_run
    trained = json.loads((folder / EVALUATION_FILE).read_text())
    assert trained["overrides"] == list(AVERAGED) and not trained["eval_only"] and trained["seed"] == 7
    (of_data_set,) = trained["test"]
    assert of_data_set["name"] == "tiny_val" and of_data_set["images"] == len(DatasetCatalog.get("tiny_val"))
    assert of_data_set["results"]["selection"] == results["selection"]
    weights = str(folder / "model_final.pth")
    train_here("--eval-only", "OUTPUT_DIR", tmp_path, "MODEL.WEIGHTS", weights)
    evaluated = json.loads((tmp_path / EVALUATION_FILE).read_text())
    assert evaluated["eval_only"] and evaluated["overrides"] == ["MODEL.WEIGHTS", "model_final.pth"]
    assert evaluated["test"] == trained["test"]
