"""tools/record_results.py: runs that differ in their seeds become one results file, and nothing else does."""

import copy
import json
from pathlib import Path

import pytest

pytest.importorskip("detectron2")

from spt_d2.engine.evaluation_file import EVALUATION_FILE
from spt_d2.model_zoo.page import zoo_page
from spt_d2.model_zoo.paper import read_paper
from spt_d2.model_zoo.recording import combine, config_name, file_name
from spt_d2.model_zoo.records import read_record
from tests.conftest import ROOT, load_program

CONFIG = "configs/COCO-InstanceSegmentation/mask_rcnn_spt_t_fpn_3x.yaml"
RUN = {
    "program": "projects/SPT/train_net.py",
    "command": f"python projects/SPT/train_net.py --config-file {CONFIG} --num-gpus 8 SEED 0",
    "checkpoint": None,
    "config_file": CONFIG,
    "overrides": ["SEED", "0", "SOLVER.AMP.ENABLED", "True"],
    "eval_only": False,
    "train": ["coco_2017_train"],
    "test": [
        {
            "name": "coco_2017_val",
            "images": 5000,
            "results": {
                "bbox": {"AP": 40.0, "AP50": 60.0, "APs": None},
                "segm": {"AP": None},
                "selection": {"keep_ratio": 0.25, "keep_ratio/stage3": 0.2, "executed_macs_g": 98.0},
            },
        }
    ],
    "seed": 0,
    "machine": {"processor": "P", "cores": 64, "threads": 8, "torch": "2", "device": "NVIDIA A100", "processes": 8},
    "commit": "0123456789abcdef0123456789abcdef01234567",
    "date": "2026-02-01",
}


def run_of(seed: int, ap: float, **changes) -> dict:
    run = {**copy.deepcopy(RUN), "seed": seed, "overrides": ["SEED", str(seed), *RUN["overrides"][2:]], **changes}
    run["test"][0]["results"]["bbox"]["AP"] = ap
    return run


def folders(root: Path, *runs: dict) -> list[str]:
    names = []
    for i, run in enumerate(runs):
        folder = root / f"run{i}"
        folder.mkdir()
        (folder / EVALUATION_FILE).write_text(json.dumps(run))
        names.append(str(folder))
    return names


@pytest.fixture(scope="module")
def program():
    return load_program(ROOT / "tools" / "record_results.py")


def test_seeds_of_a_config_become_a_row_of_the_zoo(program, tmp_path, capsys):
    runs = folders(tmp_path, run_of(0, 40.0), run_of(1, 42.00004, date="2026-02-03"))
    assert program.main([*runs, "--output", str(tmp_path / "new" / "spt.json")]) == 0
    record = read_record(tmp_path / "new" / "spt.json")
    assert record.config == CONFIG.removeprefix("configs/") and record.overrides == ("SOLVER.AMP.ENABLED", "True")
    assert record.data == {"train": "coco_2017_train", "test": "coco_2017_val", "images": 5000}
    assert record.hardware == "8 x NVIDIA A100" and record.seeds == (0, 1) and str(record.date) == "2026-02-03"
    assert record.command == RUN["command"]
    # The masks' AP and that of small objects are of no number, and left out.
    assert record.metrics == {
        "box_ap": (40.0, 42.0),
        "box_ap50": (60.0, 60.0),
        "keep_ratio": (0.25, 0.25),
        "keep_ratio_stage3": (0.2, 0.2),
        "executed_macs_g": (98.0, 98.0),
    }
    row = next(line for line in zoo_page(read_paper(ROOT / "projects/SPT/paper_results.json"), [record]).splitlines()
               if "mask_rcnn_spt_t_fpn_3x]" in line)  # fmt: skip
    assert "| 41.0 ± 1.0 |" in row and "2 seeds" in row
    assert '"box AP": "41.0 ± 1.0"' in capsys.readouterr().out


def test_the_default_file_is_named_after_config_and_data_set_and_never_overwritten_unasked(
    program, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(program, "RESULTS", tmp_path)
    (run,) = folders(tmp_path, run_of(0, 40.0))
    path = tmp_path / "COCO-InstanceSegmentation__mask_rcnn_spt_t_fpn_3x__coco_2017_val.json"
    assert program.main([run]) == 0 and path.exists()
    before = path.read_text()
    (Path(run) / EVALUATION_FILE).write_text(json.dumps(run_of(0, 50.0)))
    assert program.main([run]) == 1 and path.read_text() == before
    assert "is there already" in capsys.readouterr().err
    assert program.main([run, "--overwrite"]) == 0
    assert read_record(path).metrics["box_ap"] == (50.0,)


def test_a_run_with_other_keys_is_recorded_and_said_to_be_no_row(program, tmp_path, capsys):
    (run,) = folders(tmp_path, run_of(0, 40.0, overrides=["MODEL.SPT.THRESHOLD", "0.5"]))
    assert program.main([run, "--output", str(tmp_path / "a.json")]) == 0
    assert "With MODEL.SPT.THRESHOLD 0.5 it is no measurement" in capsys.readouterr().out


def test_a_lazy_config_measures_the_row_of_its_twin():
    overrides = ["train.seed=4", "train.amp.enabled=True"]
    lazy = f"projects/SPT/{CONFIG.removesuffix('yaml')}py"
    record = combine({"a": run_of(4, 40.0, config_file=lazy, overrides=overrides)})
    assert record["config"] == CONFIG.removeprefix("configs/").replace("yaml", "py")
    assert record["overrides"] == ["train.amp.enabled=True"] and record["seeds"] == [4]


def evaluated(name: str, checkpoint: str | None = None) -> dict:
    return run_of(0, 40.0, eval_only=True, checkpoint=checkpoint, overrides=["SEED", "5", "MODEL.WEIGHTS", name])


def test_checkpoints_that_were_only_evaluated_have_no_seed():
    """What the config or the command line says of it is that of a training that may not have been this one's."""
    record = combine({"a": evaluated("first.pth"), "b": evaluated("second.pth")})
    assert record["seeds"] == [-1, -1] and record["overrides"] == []


def test_a_checkpoint_that_was_evaluated_twice_is_one_run():
    for runs in (("first.pth", "first.pth", None, None), ("first.pth", "copy.pth", "f" * 64, "f" * 64)):
        with pytest.raises(ValueError, match="different checkpoints"):
            combine({"a": evaluated(runs[0], runs[2]), "b": evaluated(runs[1], runs[3])})
    record = combine({"a": evaluated("final.pth", "f" * 64), "b": evaluated("final.pth", "e" * 64)})
    assert len(record["seeds"]) == 2


def test_a_folder_that_is_named_twice_is_one_run(program, tmp_path, monkeypatch):
    (run,) = folders(tmp_path, run_of(0, 40.0))
    monkeypatch.chdir(tmp_path)
    assert program.main([run, "run0", "--output", "a.json"]) == 0
    assert read_record(tmp_path / "a.json").seeds == (0,)


def test_the_order_of_overrides_makes_no_other_experiment():
    runs = [run_of(i, 1.0, overrides=["A.B", "1", "C.D", "2"] if i else ["C.D", "2", "A.B", "1"]) for i in range(2)]
    assert combine({"a": runs[0], "b": runs[1]})["overrides"] == ["C.D", "2", "A.B", "1"]


def test_files_of_other_experiments_of_a_config_have_other_names():
    names = {
        file_name({"config": config, "data": {"test": "val"}, "overrides": overrides})
        for config, overrides in (
            ("a/b.yaml", ["SOLVER.AMP.ENABLED", "True"]),
            ("a/b.yaml", ["MODEL.SPT.SPA_STAGES", "[3, 4]"]),
            ("a/b.py", ["train.amp.enabled=True"]),
        )
    }
    assert names == {"a__b__val.json", "a__b__val__MODEL.SPT.SPA_STAGES_3_4_.json", "a__b__val__lazy.json"}


def test_of_several_data_sets_one_is_asked_for():
    run = run_of(0, 40.0)
    run["test"].append({"name": "coco_2017_minival", "images": 5, "results": {"bbox": {"AP": 10.0}}})
    with pytest.raises(ValueError, match="coco_2017_val, coco_2017_minival.\nHINT: --test"):
        combine({"a": run})
    record = combine({"a": run}, test="coco_2017_minival")
    assert record["data"]["images"] == 5 and record["metrics"] == {"box_ap": [10.0]}
    with pytest.raises(ValueError, match="a has no evaluation on 'lvis'. It has: coco_2017_val"):
        combine({"a": run}, test="lvis")


@pytest.mark.parametrize(
    "change, message",
    [
        ({"commit": "f" * 40}, "several commits"),
        ({"config_file": "configs/other.yaml"}, "several configs"),
        ({"overrides": ["SEED", "1"]}, "several overrides"),
        ({"overrides": ["SEED", "1", "SOLVER.AMP.ENABLED", "True", "MODEL.WEIGHTS", "b.pth"]}, "several overrides"),
        ({"train": ["other"]}, "several data sets trained on"),
        ({"machine": {**RUN["machine"], "processes": 4}}, "several machines"),
        ({"seed": 0}, "runs of different seeds"),
        ({"program": "tools/demo.py"}, "several programs"),
        ({"eval_only": True}, "trained and only evaluated"),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_runs_of_different_experiments_are_not_averaged(change, message):
    with pytest.raises(ValueError, match=message) as caught:
        combine({"one": run_of(0, 40.0), "two": {**run_of(1, 41.0), **change}})
    assert "  one: " in str(caught.value) and "  two: " in str(caught.value)


def test_hardware_may_be_told():
    other = {**RUN["machine"], "device": "cpu"}
    assert combine({"a": run_of(0, 1.0, machine=other)})["hardware"] == "P, 8 of 64 cores in each of 8 processes"
    alone = {**other, "processes": 1}
    assert combine({"a": run_of(0, 1.0, machine=alone)})["hardware"] == "P, 8 of 64 cores"
    runs = {"a": run_of(0, 1.0), "b": run_of(1, 1.0, machine=other)}
    assert combine(runs, hardware="what we had")["hardware"] == "what we had"


@pytest.mark.parametrize(
    "run, message",
    [
        (run_of(0, 40.0, config_file="my_data.yaml"), "a config of this repository"),
        (run_of(0, 40.0, config_file=f"/elsewhere/{CONFIG}"), "a config of this repository"),
        (run_of(0, 40.0, config_file="configs/gone.yaml"), "a config of this repository"),
        (run_of(0, 40.0, config_file="", overrides=[]), "Got none"),
        (run_of(0, 40.0, commit=None), "names the commit"),
        ({**RUN, "test": [{**RUN["test"][0], "results": {"segm": {"AP": None}}}]}, "all have one of"),
    ],
    ids=["config", "elsewhere", "gone", "none", "commit", "nothing"],
)
def test_what_no_results_file_can_hold_is_refused(run, message):
    with pytest.raises(ValueError, match=message):
        combine({"a": run})


def test_a_folder_without_an_evaluation_is_an_error_with_a_cure(program, tmp_path, capsys):
    assert program.main([str(tmp_path)]) == 1
    assert "HINT: --eval-only" in capsys.readouterr().err
    for text, message in (
        ("{", "expects JSON"),
        ("[]", "expects an object"),
        ('{"seed": 0}', "It lacks program, command,"),
    ):
        (tmp_path / EVALUATION_FILE).write_text(text)
        assert program.main([str(tmp_path)]) == 1
        assert message in capsys.readouterr().err
    assert program.main([str(tmp_path / EVALUATION_FILE)]) == 1
    assert "in its output folder" in capsys.readouterr().err


def test_configs_are_named_below_their_folder():
    name = CONFIG.removeprefix("configs/").removesuffix(".yaml")
    assert config_name(CONFIG) == f"{name}.yaml"
    assert config_name(f"projects/SPT/configs/{name}.py") == f"{name}.py"
