"""evaluation.json: what a run's last evaluation found, and everything that a results file needs to know of it."""

import argparse
import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest
from detectron2.data import DatasetCatalog
from detectron2.utils import comm

from spt_d2.engine.evaluation_file import EVALUATION_FILE, keyed_overrides, write_evaluation
from tests.conftest import ROOT

from .conftest import AVERAGED

DEMO = "configs/Shapes-InstanceSegmentation/mask_rcnn_spt_nano_fpn_demo.yaml"
RESULTS = {"bbox": {"AP": 12.5, "APl": math.nan, "classes": "all"}, "selection": {"keep_ratio": 0.25}}


@pytest.fixture
def registered():
    for name, images in (("recorded_val", 3), ("recorded_test", 2)):
        DatasetCatalog.register(name, lambda images=images: [{}] * images)
    yield
    for name in ("recorded_val", "recorded_test"):
        DatasetCatalog.remove(name)


def arguments(*opts: str, config_file: str | Path = ROOT / DEMO, eval_only: bool = False) -> argparse.Namespace:
    return argparse.Namespace(config_file=str(config_file), opts=list(opts), eval_only=eval_only)


def written(folder: Path, args: argparse.Namespace, results: dict, test=("recorded_val",), seed: int = 3) -> dict:
    kinds = {"train": ("some_train",), "test": test, "seed": seed, "device": "cpu"}
    write_evaluation(str(folder), "projects/SPT/train_net.py", args, results, **kinds)
    return json.loads((folder / EVALUATION_FILE).read_text())


def test_it_says_what_was_found_and_where_it_comes_from(registered, tmp_path):
    args = arguments("SEED", "3", "OUTPUT_DIR", str(tmp_path), "MODEL.WEIGHTS", "a b.pth", eval_only=True)
    found = written(tmp_path, args, RESULTS)
    assert found["test"] == [
        {
            "name": "recorded_val",
            "images": 3,
            "results": {"bbox": {"AP": 12.5, "APl": None}, "selection": {"keep_ratio": 0.25}},
        }
    ]
    assert found["command"] == (
        f"python projects/SPT/train_net.py --config-file {DEMO} --eval-only SEED 3 MODEL.WEIGHTS 'a b.pth'"
    )
    assert found["config_file"] == DEMO and found["overrides"] == ["SEED", "3", "MODEL.WEIGHTS", "a b.pth"]
    assert (found["eval_only"], found["seed"], found["train"]) == (True, 3, ["some_train"])
    assert found["machine"]["processes"] == 1 and found["machine"]["device"] == "cpu"
    # Neither the folder of the run nor that of the repository.
    assert str(tmp_path) not in json.dumps(found) and str(ROOT) not in json.dumps(found)


def test_of_a_lazy_config_too(registered, tmp_path):
    file = ROOT / "projects/SPT/configs/Shapes-InstanceSegmentation/mask_rcnn_spt_nano_fpn_demo.py"
    args = arguments("train.output_dir=x", "+train.seed=1", "train.max_iter=2", config_file=file)
    assert written(tmp_path, args, RESULTS)["overrides"] == ["+train.seed=1", "train.max_iter=2"]


def test_several_data_sets_each_have_their_results(registered, tmp_path):
    names = ("recorded_val", "recorded_test")
    found = written(tmp_path, arguments(), {name: {"bbox": {"AP": i}} for i, name in enumerate(names)}, test=names)
    assert [(each["name"], each["images"], each["results"]["bbox"]["AP"]) for each in found["test"]] == [
        ("recorded_val", 3, 0.0),
        ("recorded_test", 2, 1.0),
    ]


def test_nothing_is_written_where_nothing_was_evaluated_or_by_another_process(registered, tmp_path, monkeypatch):
    for results, test in (({}, ("recorded_val",)), (RESULTS, ()), (RESULTS, ("recorded_val", "recorded_test"))):
        with pytest.raises(FileNotFoundError):
            written(tmp_path, arguments(), results, test)
    monkeypatch.setattr(comm, "get_rank", lambda: 1)
    with pytest.raises(FileNotFoundError):
        written(tmp_path, arguments(), RESULTS)


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
    assert evaluated["eval_only"] and evaluated["overrides"] == ["MODEL.WEIGHTS", weights]
    assert evaluated["test"] == trained["test"]
