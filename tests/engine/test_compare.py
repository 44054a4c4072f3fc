"""tools/compare.py from end to end on the tiny data set: a run that is killed, going on, and the report."""

import json
import os
import shutil
import signal
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml
from detectron2.modeling import build_model
from detectron2.solver import build_lr_scheduler

from spt_d2.compare.document import markers
from spt_d2.compare.job import Job, build_job
from spt_d2.compare.matrix import Matrix
from spt_d2.compare.plan import Budget, Plan
from spt_d2.compare.plan_file import read_plan
from spt_d2.compare.results import read_results, result_path
from spt_d2.compare.worker import keep_final_weights, perform, run_iterations, sole_owner, with_iterations
from spt_d2.compare.worker import main as worker_main
from spt_d2.engine.initial import dense_twin, initial_weights, load_agreeing
from spt_d2.engine.setup import load_config

from .conftest import ROOT, as_a_program, assert_same, load_program, metrics

KILLED = ("tiny", "spt", 1)
MAX_ITER = 6


@pytest.fixture(scope="session")
def tiny_plan(tiny_config: Path, tmp_path_factory: pytest.TempPathFactory) -> Plan:
    """Dense and SPT, two seeds, six iterations with a checkpoint after each third."""
    dense = {"MODEL.BACKBONE.NAME": "build_swin_fpn_backbone"}
    content = {
        "name": "tiny_plan",
        "seeds": [0, 1],
        "reference": "dense",
        "max_iter": MAX_ITER,
        "overrides": {"DATALOADER.NUM_WORKERS": 0, "SOLVER.CHECKPOINT_PERIOD": 3, "MODEL.RPN.PRE_NMS_TOPK_TRAIN": 100},
        "data_sets": [{"name": "tiny"}],
        "variants": [
            {"name": "dense", "config": str(tiny_config), "overrides": dense},
            {"name": "spt", "config": str(tiny_config)},
        ],
    }
    path = tmp_path_factory.mktemp("plan") / "plan.yaml"
    path.write_text(yaml.safe_dump(content))
    return read_plan(path)


def kill_when_resumable(matrix: Matrix, key: tuple[str, str, int], killed: list[int]) -> None:
    """End the process of a run as soon as it has written a checkpoint."""
    until = time.monotonic() + 300
    while time.monotonic() < until and not killed:
        for item in list(matrix.running):
            if item.run.key == key and (Path(item.job.output) / "last_checkpoint").exists():
                os.kill(item.process.pid, signal.SIGKILL)
                killed.append(item.process.pid)
        time.sleep(0.005)


@pytest.fixture(scope="session")
def interrupted(tiny_plan: Plan, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict, list[str]]:
    """
    Folder of a matrix of which one run was killed, what failed in it, and what was said.

    The runs of seed 0 were finished before, in this process: others take seconds to start.
    """
    folder, said, killed = tmp_path_factory.mktemp("matrix"), [], []
    for run in tiny_plan.runs():
        if run.seed == 0:
            job = build_job(tiny_plan, run, str(folder / "runs"), str(folder / "results"), concurrent=2)
            with as_a_program():
                assert worker_main([str(job.write())]) == 0
    matrix = Matrix(tiny_plan, str(folder / "runs"), str(folder / "results"), 2, 1, said.append, period=0.5)
    killer = threading.Thread(target=kill_when_resumable, args=(matrix, KILLED, killed), daemon=True)
    killer.start()
    failed = matrix.perform()
    assert killed, said
    return folder, failed, said


@pytest.mark.slow
def test_a_run_that_is_killed_does_not_end_the_others(interrupted: tuple[Path, dict, list[str]]) -> None:
    folder, failed, said = interrupted
    assert failed.keys() == {KILLED}
    assert failed[KILLED] == "ended by SIGKILL"
    assert len(read_results(folder / "results")) == 3
    assert said[0].startswith("4 runs, 2 of them finished before; 2 at a time, 1 threads each")
    assert any(f"of {MAX_ITER}" in line for line in said)
    assert any(" left" in line for line in said)


@pytest.mark.slow
def test_a_matrix_goes_on_where_it_was_and_ends_as_if_it_had_never_stopped(
    interrupted: tuple[Path, dict, list[str]], tiny_plan: Plan, tmp_path: Path
) -> None:
    folder = tmp_path / "again"
    shutil.copytree(interrupted[0], folder)
    path = result_path(folder / "results", *KILLED)
    before = {p.name: p.read_bytes() for p in (folder / "results").iterdir()}
    run = next(run for run in tiny_plan.runs() if run.key == KILLED)
    said: list[str] = []
    assert not path.exists()
    matrix = Matrix(tiny_plan, str(folder / "runs"), str(folder / "results"), 2, 1, said.append)
    assert matrix.perform() == {}
    # What was finished was not run again; what was not went on.
    assert {p.name: p.read_bytes() for p in (folder / "results").iterdir() if p != path} == before
    assert len([line for line in said if "log in" in line]) == 1
    assert any("goes on" in line for line in said)
    resumed, job = json.loads(path.read_text()), Job.read(folder / "runs" / "tiny" / "spt" / "seed1" / "run.json")
    # Iterations before the checkpoint were not made again: each stands once in the log, of the first session.
    lines = [json.loads(line) for line in (Path(job.output) / "metrics.json").read_text().splitlines()]
    assert [line["iteration"] for line in lines].count(1) == 1

    # The same run without a stop, in this process.
    whole_job = build_job(tiny_plan, run, str(tmp_path / "whole"), str(tmp_path / "results"))
    whole_job.write()
    with as_a_program():
        whole = perform(whole_job)
    keep_final_weights(Path(whole_job.output))
    for key in ("box", "segm", "selection", "macs_g", "parameters", "iterations", "overrides", "seed"):
        assert resumed[key] == json.loads(json.dumps(whole[key])), key
    weights = [torch.load(Path(j.output) / "model_final.pth", weights_only=True) for j in (job, whole_job)]
    assert_same(*weights)
    assert weights[0].keys() == {"model"}
    assert sorted(p.name for p in Path(job.output).glob("model_*")) == ["model_final.pth"]


@pytest.mark.slow
def test_a_results_file_says_what_was_run_and_what_came_out(interrupted: tuple[Path, dict, list[str]]) -> None:
    results = {(r["variant"], r["seed"]): r for r in read_results(interrupted[0] / "results")}
    spt, dense = results["spt", 0], results["dense", 0]
    assert spt["box"].keys() >= {"AP", "AP50", "AP75", "APs", "APm", "APl"}
    assert spt["segm"].keys() >= {"AP", "AP50"}
    assert 0 < spt["selection"]["keep_ratio"] <= 1
    assert dense["selection"]["keep_ratio"] is None
    assert dense["macs_g"]["executed"] == dense["macs_g"]["dense"] == spt["macs_g"]["dense"] > 0
    # SPT has gates where dense Swin has tables of position bias; the rest of the detector is the same.
    heads = [r["parameters"]["model"] - r["parameters"]["backbone"] for r in (spt, dense)]
    assert heads[0] == heads[1] > 0
    assert 0 < spt["parameters"]["backbone"] != dense["parameters"]["backbone"] > 0
    assert (spt["iterations"], spt["order"], spt["machine"]["threads"]) == (MAX_ITER, [0, 1], 1)
    assert spt["machine"]["concurrent_runs"] == 2
    for key in ("seconds_per_iteration", "train_seconds", "forward_ms", "peak_memory_mb", "session_seconds"):
        assert spt[key] > 0, key
    assert spt["train_seconds"] >= spt["seconds_per_iteration"]
    # Paired: both variants of a seed see the same images; another seed sees others.
    runs = interrupted[0] / "runs" / "tiny"
    first = {name: metrics(runs / name)[1] for name in ("dense/seed0", "spt/seed0", "dense/seed1")}
    assert first["dense/seed0"]["roi_head/num_fg_samples"] > 0
    assert first["dense/seed0"]["total_loss"] != first["dense/seed1"]["total_loss"]


@pytest.mark.slow
def test_the_program_reports_from_results_files_alone(
    interrupted: tuple[Path, dict, list[str]], tmp_path, capsys
) -> None:
    results = tmp_path / "results"
    shutil.copytree(interrupted[0] / "results", results)
    page = tmp_path / "page.md"
    program = load_program(ROOT / "tools" / "compare.py")
    begin, end = markers("tiny_plan")
    page.write_text(f"{begin}\n{end}\n")
    assert program.main(["--report", str(results), "--document", str(page)]) == 0
    lines = page.read_text().splitlines()
    assert lines[2].startswith("| data | variant |")
    assert lines[4].startswith("| tiny | dense | 2 |")
    assert lines[5].startswith("| tiny | spt | 1 |")
    assert "cannot tell" in lines[5]
    assert "\n".join(lines[2:6]) in capsys.readouterr().out
    assert (results / "figure.png").stat().st_size > 1000


@pytest.mark.slow
def test_results_made_with_other_settings_are_refused_before_anything_runs(
    interrupted: tuple[Path, dict, list[str]], tiny_plan: Plan, tmp_path: Path
) -> None:
    folder = interrupted[0]
    changed = tiny_plan.restricted(variants=["dense"])
    changed = replace(changed, overrides={**changed.overrides, "SOLVER.IMS_PER_BATCH": 2})
    matrix = Matrix(changed, str(tmp_path), str(folder / "results"), 1, 1, lambda line: None)
    with pytest.raises(ValueError, match=r"dense__seed0.json holds a run with other settings:\n  SOLVER.IMS_PER_BATCH"):
        matrix.perform()
    assert not list(tmp_path.iterdir())


def test_configs_and_files_that_cannot_be_are_named_before_anything_runs(tiny_plan: Plan, tmp_path: Path) -> None:
    wrong = {"MODEL.SPT.GATING": "sometimes"}
    variants = (tiny_plan.variants[0], replace(tiny_plan.variants[1], name="odd", overrides=wrong))
    plan = replace(tiny_plan, variants=variants, weights=str(tmp_path / "none.pth"))
    matrix = Matrix(plan, str(tmp_path / "runs"), str(tmp_path / "results"), 1, 1, lambda line: None)
    with pytest.raises(ValueError, match="tiny / dense.*none.pth"):
        matrix.perform()
    plan = replace(tiny_plan, variants=variants)
    matrix = Matrix(plan, str(tmp_path / "runs"), str(tmp_path / "results"), 1, 1, lambda line: None)
    with pytest.raises(ValueError, match=r"tiny / odd: The config is not valid(.|\n)*GATING"):
        matrix.perform()
    assert not list(tmp_path.iterdir())


def test_one_process_at_a_time_performs_a_run(tmp_path: Path) -> None:
    with sole_owner(str(tmp_path)) as first, sole_owner(str(tmp_path)) as second:
        assert (first, second) == (True, False)
    with sole_owner(str(tmp_path)) as third:
        assert third


def test_steps_of_the_learning_rate_keep_their_places_under_another_budget(tiny_config: Path) -> None:
    cfg = load_config(str(tiny_config), ["SOLVER.STEPS", (20, 30), "SOLVER.MAX_ITER", 40])
    shorter = with_iterations(cfg, 8)
    assert (shorter.SOLVER.MAX_ITER, shorter.SOLVER.STEPS) == (8, (4, 6))
    assert shorter.is_frozen()


@pytest.mark.parametrize("iterations, steps", [(1, ()), (2, (1,)), (4, (3,)), (6, (4,)), (20, (14, 15, 19))])
def test_steps_of_a_very_short_run_are_distinct_and_inside_it(
    iterations: int, steps: tuple[int, ...], tiny_config: Path
) -> None:
    """0.7, 0.75 and 0.95 of it, which meet each other, or the end; every iteration has a learning rate."""
    cfg = load_config(str(tiny_config), ["SOLVER.STEPS", (1400, 1500, 1900), "SOLVER.MAX_ITER", 2000])
    short = with_iterations(cfg, iterations)
    assert short.SOLVER.STEPS == steps
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], lr=1.0)
    scheduler = build_lr_scheduler(short, optimizer)
    for _ in range(iterations):
        assert 0 < optimizer.param_groups[0]["lr"] <= 1
        optimizer.step()
        scheduler.step()


def test_minutes_become_iterations_once(tiny_plan: Plan, tmp_path: Path) -> None:
    plan = tiny_plan.restricted(budget=Budget(minutes=10.0), overrides={"DATALOADER.NUM_WORKERS": 0})
    job = build_job(plan, next(iter(plan.runs())), str(tmp_path / "runs"), str(tmp_path / "results"))
    cfg = load_config(job.config_file, job.options)
    job.write()
    with as_a_program():
        first = run_iterations(cfg, job)
    found = json.loads((Path(job.output) / "budget.json").read_text())
    assert first == found["iterations"] == int(600 / found["seconds_per_iteration"]) > 1
    # A run that is resumed ends where it was to end, however fast it is by now.
    (Path(job.output) / "budget.json").write_text(json.dumps({**found, "iterations": 17}))
    assert run_iterations(cfg, job) == 17
    assert sorted(path.name for path in Path(job.output).iterdir()) == ["budget.json", "run.json"]


def test_variants_start_alike_wherever_names_and_shapes_agree(tiny_config: Path) -> None:
    """The dense twin is one of the starts; the gates keep their own."""
    cfg = load_config(str(tiny_config))
    twin = dense_twin(cfg)
    assert twin.MODEL.BACKBONE.NAME == "build_swin_fpn_backbone"
    start = initial_weights(twin)
    assert_same(start, initial_weights(twin))
    model = build_model(cfg)
    own = load_agreeing(model, start)
    state = model.state_dict()
    assert own
    assert all("gate" in name for name in own)
    for name in state.keys() - set(own):
        assert torch.equal(state[name], start[name]), name
    assert dense_twin(twin).dump() == twin.dump()
