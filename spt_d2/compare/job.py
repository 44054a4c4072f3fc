"""A run as the process that performs it gets it: all names resolved, in one small file."""

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from spt_d2.compare.overrides import as_options, expand, find_config, plain
from spt_d2.compare.plan import Budget, DataSet, Plan, Run, Variant
from spt_d2.compare.results import read_result, result_path
from spt_d2.compare.start import KEY, checkpoint, checkpoint_digest
from spt_d2.summary import read_summary, write_summary

JOB_FILE = "run.json"
BUSY = 75  # exit status of a process that finds another one at its run (EX_TEMPFAIL)
# What a run of a comparison does unless the plan says otherwise: evaluate once, at its end; lose little if stopped.
_DEFAULTS = {"TEST.EVAL_PERIOD": 0, "SOLVER.CHECKPOINT_PERIOD": 100}


class ChangedSettings(ValueError):
    """Something is left from a run of the same name whose settings were others."""


@dataclass(frozen=True)
class Job:
    """
    What one process does.

    Attributes:
        settings: what makes the run what it is; they stand in its results file, without any path of this machine.
        order: (data set, variant) places in the plan, for the rows of tables.
        output: folder for checkpoints and logs.
        results: the results file.
        config_file, options: of the model to train; keys and values in turn, variables filled in.
        start_config_file, start_options: of the reference, whose initial weights are taken over.
        budget: how long it trains.
        concurrent: runs that share the machine at a time.
    """

    settings: dict[str, Any]
    order: tuple[int, int]
    output: str
    results: str
    config_file: str
    options: list[Any]
    start_config_file: str
    start_options: list[Any]
    budget: Budget
    concurrent: int = 1

    def write(self) -> Path:
        """
        Write the job into its output folder.

        Raises:
            ChangedSettings: the folder holds a run with other settings.
        """
        path = Path(self.output) / JOB_FILE
        path.parent.mkdir(parents=True, exist_ok=True)
        before = read_summary(path)
        if before is not None:
            check_settings(before["settings"], self.settings, str(path.parent))
        write_summary(path, asdict(self))
        return path

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> "Job":
        with open(path, encoding="utf-8") as file:
            content = json.load(file)
        content["order"] = tuple(content["order"])
        return cls(**{**content, "budget": Budget(**content["budget"])})


def build_job(plan: Plan, run: Run, output: str, results: str, concurrent: int = 1) -> Job:
    """
    Resolve a run of a plan.

    Args:
        plan, run: the run is one of the plan's.
        output: folder of the plan's runs; each gets one of its own in there.
        results: folder of the results files.
        concurrent: runs that share the machine at a time.

    Raises:
        ValueError: a variable of the environment that is not set; a keep ratio that no results file gives yet.
        FileNotFoundError, KeyError: no such checkpoint, config.
    """
    folder = os.path.abspath(os.path.join(output, run.data_set.name, run.variant.name, f"seed{run.seed}"))
    settings, options = run_settings(plan, run), run_options(plan, run.data_set, run.variant)
    if run.variant.keep_ratio_of is not None:
        ratio = measured_keep_ratio(run, results)
        settings["overrides"]["MODEL.SPT.KEEP_RATIO"] = ratio
        options += ["MODEL.SPT.KEEP_RATIO", ratio]
    reference = plan.variant(plan.reference)
    own = ["SEED", run.seed, "OUTPUT_DIR", folder]
    return Job(
        settings=settings,
        order=(plan.data_sets.index(run.data_set), plan.variants.index(run.variant)),
        output=folder,
        results=os.path.abspath(result_path(results, *run.key)),
        config_file=find_config(run.variant.config),
        options=options + own,
        start_config_file=find_config(reference.config),
        start_options=run_options(plan, run.data_set, reference) + own,
        budget=plan.budget_of(run),
        concurrent=concurrent,
    )


def run_settings(plan: Plan, run: Run) -> dict[str, Any]:
    """
    What makes a run what it is, as JSON has it.

    Of the checkpoint its content stands there and not its place: ``weights`` is its digest, "" where the run starts
    from scratch.
    """
    overrides = plan.overrides_of(run.data_set, run.variant)
    start = checkpoint(run.variant.config, overrides, plan.weights_of(run.data_set, run.variant))
    return {
        "plan": plan.name,
        "data_set": run.data_set.name,
        "variant": run.variant.name,
        "seed": run.seed,
        "reference": plan.reference,
        "config": run.variant.config,
        "overrides": plain({key: value for key, value in overrides.items() if key != KEY}),
        "keep_ratio_of": run.variant.keep_ratio_of,
        "weights": checkpoint_digest(start),
        "budget": asdict(plan.budget_of(run)),
    }


def run_options(plan: Plan, data_set: DataSet, variant: Variant) -> list[Any]:
    """Keys and values in turn that a run's config merges, but for its seed and its folder; variables filled in."""
    given: dict[str, Any] = dict(_DEFAULTS)
    if data_set.folder is not None:
        folder = os.path.abspath(os.path.expanduser(expand(data_set.folder)))
        given["DATASETS.CUSTOM"] = [
            [f"{data_set.name}_{split}", os.path.join(folder, f"{split}.json"), os.path.join(folder, "images")]
            for split in ("train", "val")
        ]
        given["DATASETS.TRAIN"] = [f"{data_set.name}_train"]
        given["DATASETS.TEST"] = [f"{data_set.name}_val"]
    overrides = plan.overrides_of(data_set, variant)
    start = checkpoint(variant.config, overrides, plan.weights_of(data_set, variant))
    return as_options({**given, **overrides, KEY: start})


def measured_keep_ratio(run: Run, results: str) -> float:
    """The keep ratio of the run that this one is to match, from its results file, to three digits."""
    assert run.variant.keep_ratio_of is not None
    path = result_path(results, run.data_set.name, run.variant.keep_ratio_of, run.seed)
    found = read_result(path)
    ratio = found["selection"]["keep_ratio"] if found else None
    if not ratio:
        raise ValueError(f"{run.title} expects a keep ratio above 0 in {path}. Got {ratio}.")
    return round(ratio, 3)


def check_settings(before: Mapping[str, Any], wanted: Mapping[str, Any], where: str) -> None:
    """
    Compare settings of a run with those it is to have.

    Raises:
        ChangedSettings: they differ; the message says in what.
    """
    before, wanted = _comparable(before), _comparable(wanted)
    lines = [
        f"  {key}: {before.get(key, 'unset')!r} there, {wanted.get(key, 'unset')!r} wanted"
        for key in sorted(before.keys() | wanted.keys())
        if before.get(key) != wanted.get(key)
    ]
    if lines:
        raise ChangedSettings(
            f"{where} holds a run with other settings:\n" + "\n".join(lines) + "\n"
            "HINT: remove it, or take another folder."
        )


def _comparable(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Key by key, with overrides one by one; without a keep ratio that was measured."""
    overrides, weights = dict(settings["overrides"]), settings["weights"]
    if settings["keep_ratio_of"] is not None:
        overrides.pop("MODEL.SPT.KEEP_RATIO", None)
    # Earlier versions noted the content of a checkpoint that the plan named, not of one that the config did.
    if weights is None or KEY in overrides:
        weights = checkpoint_digest(checkpoint(settings["config"], overrides))
        overrides.pop(KEY, None)
    return {**{key: value for key, value in settings.items() if key != "overrides"}, "weights": weights, **overrides}
