"""Plans: what they hold, what they refuse, and what a run of one is told to do."""

import contextlib
import dataclasses
import hashlib
import re
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

from spt_d2.compare.checks import check_results
from spt_d2.compare.job import ChangedSettings, Job, build_job, check_settings, run_settings
from spt_d2.compare.matrix import Matrix
from spt_d2.compare.overrides import expand, find_config, flatten
from spt_d2.compare.plan import Budget, DataSet, Plan, Run, Variant
from spt_d2.compare.plan_file import plan_of_configs, read_plan
from spt_d2.compare.results import result_path, results_in
from spt_d2.compare.start import checkpoint, checkpoint_digest
from spt_d2.config import validate_spt_config
from spt_d2.engine.setup import load_config

from .synthetic import result, write

ROOT = Path(__file__).resolve().parents[2]
PLANS = sorted((ROOT / "projects" / "SPT" / "plans").glob("*.yaml"))
SWIN = "Shapes-InstanceSegmentation/mask_rcnn_swin_nano_fpn_demo.yaml"
SPT = "Shapes-InstanceSegmentation/mask_rcnn_spt_nano_fpn_demo.yaml"

TEXT = f"""
name: made_up
seeds: [0, 1]
reference: dense
max_iter: 90
overrides:
  SOLVER: {{BASE_LR: 0.5, IMS_PER_BATCH: 2}}
data_sets:
  - name: shapes
  - name: plates
    folder: ${{MADE_UP_PLATES}}
    minutes: 2.5
    overrides: {{SOLVER.BASE_LR: 0.25, MODEL: {{MASK_ON: False}}}}
variants:
  - {{name: dense, config: {SWIN}}}
  - {{name: spt, config: {SPT}, overrides: {{SOLVER.BASE_LR: 0.125}}}}
  - {{name: topk, config: {SPT}, keep_ratio_of: spt, overrides: {{MODEL.SPT.SELECT: topk}}, weights: ""}}
"""


@pytest.fixture
def plan(tmp_path: Path) -> Plan:
    path = tmp_path / "plan.yaml"
    path.write_text(TEXT)
    return read_plan(path)


def run_of(plan: Plan, data_set: str, variant: str, seed: int = 0) -> Run:
    (found,) = [run for run in plan.runs() if run.key == (data_set, variant, seed)]
    return found


def options_of(job: Job) -> dict:
    return dict(zip(job.options[0::2], job.options[1::2]))


def test_runs_come_variant_by_variant_in_the_order_of_the_plan(plan):
    keys = [run.key for run in plan.runs()]
    assert keys == [(d, v, s) for v in ("dense", "spt", "topk") for d in ("shapes", "plates") for s in (0, 1)]


def test_overrides_of_variants_win_over_those_of_data_sets_and_of_the_plan(plan):
    def rate(data_set, variant):
        run = run_of(plan, data_set, variant)
        return plan.overrides_of(run.data_set, run.variant)["SOLVER.BASE_LR"]

    assert [rate(d, v) for d in ("shapes", "plates") for v in ("dense", "spt")] == [0.5, 0.125, 0.25, 0.125]
    assert plan.budget_of(run_of(plan, "shapes", "spt")) == Budget(max_iter=90)
    assert plan.budget_of(run_of(plan, "plates", "spt")) == Budget(minutes=2.5)


def test_a_run_is_told_its_data_seed_weights_and_where_the_reference_starts(plan, monkeypatch, tmp_path):
    monkeypatch.setenv("MADE_UP_PLATES", "/somewhere/plates")
    (tmp_path / "w.pth").write_bytes(b"weights")
    plan = dataclasses.replace(plan, weights=str(tmp_path / "w.pth"))
    job = build_job(plan, run_of(plan, "plates", "spt", 1), "out", "res")
    options = options_of(job)
    assert options["DATASETS.CUSTOM"][1] == [
        "plates_val",
        "/somewhere/plates/val.json",
        "/somewhere/plates/images",
    ]
    assert (options["DATASETS.TRAIN"], options["DATASETS.TEST"]) == (["plates_train"], ["plates_val"])
    assert (options["SEED"], options["MODEL.MASK_ON"], options["TEST.EVAL_PERIOD"]) == (1, False, 0)
    assert options["MODEL.WEIGHTS"] == str(tmp_path / "w.pth")
    assert options["OUTPUT_DIR"] == job.output == str(Path("out/plates/spt/seed1").absolute())
    assert (job.config_file, job.start_config_file) == (find_config(SPT), find_config(SWIN))
    assert dict(zip(job.start_options[0::2], job.start_options[1::2]))["SOLVER.BASE_LR"] == 0.25
    assert job.order == (1, 1)


def test_settings_name_no_path_of_this_machine_but_what_the_checkpoint_holds(plan, monkeypatch, tmp_path):
    monkeypatch.setenv("MADE_UP_PLATES", "/somewhere/plates")
    (tmp_path / "w.pth").write_bytes(b"weights")
    plan = dataclasses.replace(plan, weights=str(tmp_path / "w.pth"))
    settings = run_settings(plan, run_of(plan, "plates", "spt"))
    assert "/" not in str(settings).replace(SPT, "").replace(SWIN, "")
    assert re.fullmatch("[0-9a-f]{64}", settings["weights"])
    # A variant may start from scratch all the same.
    assert run_settings(plan, run_of(plan, "shapes", "topk"))["weights"] == ""


def test_a_checkpoint_that_an_override_or_the_config_names_is_part_of_the_settings(plan, monkeypatch, tmp_path):
    """Whoever names it: it is what the run loads, and what its settings have the content of."""
    digests = {}
    for name in ("planned", "override", "config"):
        (tmp_path / name).write_text(name)
        digests[name] = hashlib.sha256(name.encode()).hexdigest()
    config = tmp_path / "mine.yaml"
    config.write_text(f"_BASE_: {find_config(SPT)}\nMODEL: {{WEIGHTS: {tmp_path / 'config'}}}\n")
    variants = (plan.variants[0], dataclasses.replace(plan.variants[1], config=str(config)))
    own = dataclasses.replace(plan, variants=variants)
    monkeypatch.setenv("HOME", str(tmp_path))
    for weights, override, expected in (
        (None, {}, "config"),
        ("", {}, ""),
        ("~/planned", {}, "planned"),
        (None, {"MODEL.WEIGHTS": str(tmp_path / "override")}, "override"),
        ("~/planned", {"MODEL.WEIGHTS": "~/override"}, "override"),
        # Null in yaml is no wish.
        ("~/planned", {"MODEL.WEIGHTS": None}, "planned"),
    ):
        given = dataclasses.replace(own, weights=weights).restricted(overrides=override)
        job = build_job(given, run_of(given, "shapes", "spt"), "out", "res")
        assert job.settings["weights"] == digests.get(expected, ""), (weights, override)
        assert options_of(job)["MODEL.WEIGHTS"] == (str(tmp_path / expected) if expected else "")
        assert load_config(job.config_file, job.options).MODEL.WEIGHTS == options_of(job)["MODEL.WEIGHTS"]
        assert str(tmp_path) not in str(job.settings).replace(str(config), "")
    assert run_settings(own, run_of(own, "shapes", "dense"))["weights"] == ""


def test_a_checkpoint_among_the_overrides_that_is_no_text_is_refused():
    with pytest.raises(ValueError, match='expects a path, an address, or "" to start from scratch. Got 3.'):
        checkpoint(SPT, {"MODEL.WEIGHTS": 3}, "")


def test_a_checkpoint_at_an_address_is_downloaded_for_its_digest(monkeypatch, tmp_path):
    (tmp_path / "w.pth").write_text("weights")
    asked = []
    monkeypatch.setattr(
        "spt_d2.compare.start.PathManager",
        SimpleNamespace(get_local_path=lambda place: asked.append(place) or str(tmp_path / "w.pth")),
    )
    place = checkpoint(SPT, {}, "https://example.com/w.pkl?matching_heuristics=True")
    assert place == "https://example.com/w.pkl?matching_heuristics=True"
    assert checkpoint_digest(place) == hashlib.sha256(b"weights").hexdigest()
    assert asked == ["https://example.com/w.pkl"]


def test_settings_of_earlier_versions_which_did_not_say_what_an_own_checkpoint_holds_are_understood(plan, tmp_path):
    (tmp_path / "w.pth").write_text("weights")
    given = plan.restricted(overrides={"MODEL.WEIGHTS": str(tmp_path / "w.pth")})
    for now, overrides in ((plan, {}), (given, {"MODEL.WEIGHTS": str(tmp_path / "w.pth")})):
        wanted = run_settings(now, run_of(now, "shapes", "spt"))
        before = {**wanted, "weights": None, "overrides": {**wanted["overrides"], **overrides}}
        check_settings(before, wanted, "here")
        with pytest.raises(ChangedSettings, match="weights: "):
            check_settings(before, {**wanted, "weights": "ab" * 32}, "here")


@pytest.mark.parametrize("name", [path.stem for path in PLANS])
def test_the_results_in_the_repository_are_finished_runs_of_their_plan(name, monkeypatch, tmp_path):
    """Their checkpoints are not here, one for each seed and data set: a file with another content stands for them."""
    (tmp_path / "dense.safetensors").write_text("weights")
    for variable in ("DENSE_LICENSE_PLATES", "DENSE_AERIAL_MARITIME"):
        monkeypatch.setenv(variable, str(tmp_path / "dense.safetensors"))
    folder = ROOT / "projects" / "SPT" / "results" / name
    found = results_in(folder)
    if not found:
        pytest.skip("no run of this plan is in the repository")
    starts = {(result["data_set"], result["seed"], result["weights"]) for result in found}
    places = {(data_set, seed) for data_set, seed, _ in starts}
    assert len(places) == len(starts), "runs of a seed on a data set started from several checkpoints"
    plan = read_plan(ROOT / f"projects/SPT/plans/{name}.yaml")
    folders = {data_set.name: str(tmp_path) for data_set in plan.data_sets if data_set.folder}
    plan = plan.with_places(folders, str(tmp_path / "dense.safetensors"))
    finished = set()
    for data_set, seed, weights in starts:
        monkeypatch.setattr("spt_d2.compare.start.file_digest", lambda path, weights=weights: weights)
        part = plan.restricted(seeds=[seed], data_sets=[data_set])
        matrix = Matrix(part, str(tmp_path), str(folder), 2, 1, lambda line: None)
        finished |= {result_path(folder, *run.key) for run in matrix.finished()}
    assert finished == set(folder.glob("*.json"))


def test_seeds_may_start_from_checkpoints_of_their_own_but_not_the_runs_of_one(plan, monkeypatch, tmp_path):
    """An interrupted comparison can so go on seed by seed where its checkpoint is lost."""
    (tmp_path / "w.pth").write_text("weights")
    plan = plan.with_places({"plates": str(tmp_path)}, str(tmp_path / "w.pth"))
    monkeypatch.setattr("spt_d2.compare.start.file_digest", lambda path: "ab" * 32)
    run = run_of(plan, "shapes", "dense")
    write(tmp_path, [{**result(variant="dense"), **run_settings(plan, run)}])
    monkeypatch.setattr("spt_d2.compare.start.file_digest", lambda path: "cd" * 32)
    for seeds, refused in (([1], False), ([0, 1], True)):
        part = plan.restricted(seeds=seeds)
        check_results(part, tmp_path)
        matrix = Matrix(part, str(tmp_path), str(tmp_path), 1, 1, lambda line: None)
        with pytest.raises(ChangedSettings, match="weights: ") if refused else contextlib.nullcontext():
            assert matrix.finished() == []


def test_a_keep_ratio_is_taken_from_the_results_of_the_run_it_is_to_match(plan, tmp_path):
    run = run_of(plan, "shapes", "topk")
    with pytest.raises(ValueError, match=r"keep ratio above 0 in .*shapes__spt__seed0.json. Got None"):
        build_job(plan, run, "out", str(tmp_path))
    measured = result(variant="spt", selection={"keep_ratio": 0.23456})
    write(tmp_path, [measured, result(variant="spt", seed=1, selection={"keep_ratio": 0.5})])
    job = build_job(plan, run, "out", str(tmp_path))
    assert options_of(job)["MODEL.SPT.KEEP_RATIO"] == 0.235
    assert job.settings["overrides"]["MODEL.SPT.KEEP_RATIO"] == 0.235
    # It is known after the plan, so that it makes no other run of this one.
    check_settings(job.settings, run_settings(plan, run), "here")


def test_a_job_comes_back_from_its_file_and_refuses_a_folder_of_another(plan, tmp_path):
    run = run_of(plan, "shapes", "spt")
    job = build_job(plan, run, str(tmp_path), str(tmp_path / "results"))
    assert Job.read(job.write()) == job
    job.write()
    changed = dataclasses.replace(plan, budget=Budget(max_iter=91))
    with pytest.raises(ChangedSettings, match=r"budget: \{'max_iter': 90.*there, \{'max_iter': 91.*wanted"):
        build_job(changed, run, str(tmp_path), str(tmp_path / "results")).write()
    changed = dataclasses.replace(plan, overrides={**plan.overrides, "SOLVER.IMS_PER_BATCH": 3})
    with pytest.raises(ChangedSettings, match="SOLVER.IMS_PER_BATCH: 2 there, 3 wanted"):
        build_job(changed, run, str(tmp_path), str(tmp_path / "results")).write()


def test_nested_and_dotted_overrides_are_the_same():
    assert flatten({"A": {"B.C": 1, "D": {"E": [2]}}, "F.G": None}) == {"A.B.C": 1, "A.D.E": [2], "F.G": None}
    assert flatten(None) == {}


def test_variables_are_filled_in_and_a_missing_one_is_named(monkeypatch):
    monkeypatch.setenv("MADE_UP", "x")
    monkeypatch.delenv("MADE_UP_TOO", raising=False)
    assert expand([["${MADE_UP}/a", 1], None]) == [["x/a", 1], None]
    with pytest.raises(ValueError, match="environment variable MADE_UP_TOO"):
        expand("${MADE_UP}/${MADE_UP_TOO}")


def test_folders_weights_parts_and_budgets_come_from_the_command_line_too(plan):
    placed = plan.with_places({"plates": "elsewhere"}, "given.pth")
    assert [data_set.folder for data_set in placed.data_sets] == [None, "elsewhere"]
    assert placed.weights_of(placed.data_sets[0], placed.variants[0]) == "given.pth"
    with pytest.raises(ValueError, match=r"its data sets \(shapes, plates\). Got \['cars'\]"):
        plan.with_places({"cars": "x"}, None)
    part = plan.restricted(variants=["topk"], seeds=[5], budget=Budget(max_iter=3))
    # The reference, and the variant whose keep ratio is needed, belong to it.
    assert {run.key for run in part.runs()} == {
        (d, v, 5) for d in ("shapes", "plates") for v in ("dense", "spt", "topk")
    }
    assert all(part.budget_of(run) == Budget(max_iter=3) for run in part.runs())
    assert {run.variant.name for run in plan.restricted(variants=["spt"]).runs()} == {"dense", "spt"}
    # The places of rows do not depend on which part was run.
    assert build_job(plan.restricted(variants=["spt"]), run_of(plan, "shapes", "spt"), "o", "r").order == (0, 1)
    with pytest.raises(ValueError, match="some of its variants"):
        plan.restricted(variants=["dat"])
    one = plan.with_places({"plates": "elsewhere"}, "").restricted(data_sets=["plates"], seeds=[5])
    assert {run.key for run in one.runs()} == {("plates", variant.name, 5) for variant in plan.variants}
    assert build_job(one, run_of(one, "plates", "spt", 5), "o", "r").order == (1, 1)
    # A part of a part.
    assert {run.key for run in one.restricted(variants=["spt"]).runs()} == {("plates", v, 5) for v in ("dense", "spt")}
    with pytest.raises(ValueError, match=r"some of its data sets \['shapes', 'plates'\]. Got \['cars'\]"):
        plan.restricted(data_sets=["cars"])


def test_a_plan_without_a_file_takes_names_from_configs_and_data_sets():
    plan = plan_of_configs([f"configs/{SWIN}", f"configs/{SPT}"], ["shapes", "plates=here"], seeds=(3,))
    assert [variant.name for variant in plan.variants] == [Path(SWIN).stem, Path(SPT).stem]
    assert plan.reference == Path(SWIN).stem
    assert plan.data_sets[0].overrides == {"DATASETS.TRAIN": ["shapes_train"], "DATASETS.TEST": ["shapes_val"]}
    assert plan.data_sets[1] == DataSet("plates", "here")


@pytest.mark.parametrize(
    "change, message",
    [
        ({"seeds": [0, 0]}, "distinct whole numbers"),
        ({"seeds": [-1]}, "distinct whole numbers"),
        ({"reference": "dat"}, "one of the variants"),
        ({"data_sets": []}, "distinct names"),
        ({"name": "a/b"}, "distinct names"),
        ({"minutes": 1}, "not both"),
        ({"iterations": 1}, "expects the keys"),
        ({"variants": [{"name": "dense"}]}, "a variant expects the keys"),
        ({"variants": [{"name": "dense", "config": "a", "keep_ratio_of": "dense"}]}, "variants before it"),
        ({"data_sets": [{"name": "shapes", "path": "x"}]}, "a data set expects the keys"),
        ({"seeds": 3}, "expects in 'seeds' a list of whole numbers. Got 3"),
        ({"seeds": ["1"]}, r"expects in 'seeds' a list of whole numbers. Got \['1'\]"),
        ({"seeds": None}, "expects in 'seeds' a list of whole numbers. Got None"),
        ({"max_iter": "90"}, "expects in 'max_iter' a whole number above 0. Got '90'"),
        ({"max_iter": 0}, "expects in 'max_iter' a whole number above 0. Got 0"),
        ({"max_iter": None, "minutes": -1.5}, "expects in 'minutes' a number above 0. Got -1.5"),
        ({"overrides": [1]}, r"expects in 'overrides' keys of the config with values. Got \[1\]"),
        ({"weights": 1}, "expects in 'weights' a text. Got 1"),
        ({"reference": 1}, "expects in 'reference' a text. Got 1"),
        ({"variants": "dense"}, "expects in 'variants' a list. Got 'dense'"),
        ({"data_sets": [{"name": "shapes", "overrides": "x"}]}, "a data set expects in 'overrides' keys"),
        ({"variants": [{"name": "dense", "config": ["a"]}]}, r"a variant expects in 'config' a text. Got \['a'\]"),
        ({1: 2}, "expects the keys"),
    ],
)
def test_a_plan_that_cannot_be_is_refused(change, message, tmp_path):
    path = tmp_path / "plan.yaml"
    path.write_text(yaml.safe_dump({**yaml.safe_load(TEXT), **change}))
    with pytest.raises(ValueError, match=message):
        read_plan(path)


@pytest.mark.parametrize("text", ["name: [", "name: a: b", "[1, 2]", ""])
def test_a_file_that_is_no_plan_is_refused_by_its_name(text, tmp_path):
    path = tmp_path / "plan.yaml"
    path.write_text(text)
    with pytest.raises(ValueError, match=f"The plan {path} expects "):
        read_plan(path)


def test_a_part_of_a_plan_has_all_runs_that_keep_ratios_come_from():
    """The third takes its ratio from the second, which takes its own from the first."""
    chain = [Variant("dense", "d.yaml"), Variant("a", "a.yaml"), Variant("b", "b.yaml", keep_ratio_of="a")]
    chain += [Variant("c", "c.yaml", keep_ratio_of="b"), Variant("other", "o.yaml", keep_ratio_of="a")]
    plan = Plan("chain", (DataSet("shapes"),), tuple(chain), (0,), "dense")
    assert plan.restricted(variants=["c"]).only == ("dense", "a", "b", "c")
    assert plan.restricted(variants=["b"]).only == ("dense", "a", "b")


@pytest.mark.parametrize("path", PLANS, ids=lambda path: path.stem)
def test_every_config_of_the_plans_that_come_with_the_project_is_valid(path):
    """On registered data, for the folders of one's own are not here."""
    plan = read_plan(path)
    assert plan.name == path.stem
    for variant in plan.variants:
        for data_set in plan.data_sets:
            overrides = plan.overrides_of(data_set, variant)
            cfg = load_config(find_config(variant.config), [x for item in overrides.items() for x in item])
            validate_spt_config(cfg)
            budget = plan.budget_of(Run(data_set, variant, 0))
            assert budget.max_iter
    # No two variants are the same by mistake.
    kinds = [(v.config, str(v.overrides), v.keep_ratio_of) for v in plan.variants]
    assert len(set(kinds)) == len(kinds)


def test_the_plans_name_no_folder_of_a_machine():
    assert {path.stem for path in PLANS} == {"screen", "from_shapes", "start", "main", "peers_start", "peers"}
    for path in PLANS:
        plan = read_plan(path)
        places = [plan.weights, *(place for d in plan.data_sets for place in (d.folder, d.weights))]
        assert all(re.fullmatch(r"\$\{\w+\}", place) for place in places if place is not None)
        assert not any(isinstance(v, Variant) and v.weights for v in plan.variants)
