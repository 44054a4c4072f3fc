"""Runs of one config, each with its ``evaluation.json``, made into one results file (results/README.md)."""

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any

from spt_d2.engine.evaluation_file import ROOT, WEIGHTS, keyed_overrides
from spt_d2.model_zoo.records import UNSEEDED, other_overrides

# Folders below the repository's whose configs a results file may name.
CONFIG_FOLDERS = ("projects/SPT/configs", "configs")
# What differs between runs that are averaged.
_SEED = {"SEED", "train.seed"}
# Where a metric of a results file stands in an evaluation: task and key there.
_SOURCES = {
    **{f"box_ap{kind}": ("bbox", f"AP{kind}") for kind in ("", "50", "75", *"sml")},
    **{f"mask_ap{kind}": ("segm", f"AP{kind}") for kind in ("", "50", "75", *"sml")},
    "map": ("multi_label", "mAP"),
    **{f"keep_ratio_stage{stage}": ("selection", f"keep_ratio/stage{stage}") for stage in range(1, 5)},
    "keep_ratio": ("selection", "keep_ratio"),
    "retention": ("selection", "retention"),
    "density": ("selection", "density"),
    "executed_macs_g": ("selection", "executed_macs_g"),
}
_DIGITS = 4


def combine(
    evaluations: Mapping[str, Mapping[str, Any]], test: str | None = None, hardware: str | None = None
) -> dict[str, Any]:
    """
    Make the content of a results file.

    Args:
        evaluations: of :func:`spt_d2.engine.evaluation_file.read_evaluation`, by the runs' folders.
        test: data set whose results are taken; None where the runs evaluated one.
        hardware: in words; None for what the runs saw.

    Raises:
        ValueError: runs that are not of one experiment, or of none that a results file can name.
    """
    first = next(iter(evaluations.values()))
    _common(evaluations, "programs", lambda run: run["program"])
    _common(evaluations, "runs, trained and only evaluated", lambda run: run["eval_only"])
    name = test or _common(evaluations, "data sets evaluated", lambda run: [each["name"] for each in run["test"]])
    if not isinstance(name, str):
        if len(name) != 1:
            raise ValueError(f"A results file is of one data set. The runs evaluated {', '.join(name)}.\nHINT: --test.")
        (name,) = name
    found = [_of_data_set(folder, run, name) for folder, run in evaluations.items()]
    commit = _common(evaluations, "commits", lambda run: run["commit"])
    if commit is None:
        raise ValueError(
            "A results file names the commit of the code. git did not tell it where the runs were made.\n"
            "HINT: `git status` in the repository's folder says why."
        )
    _common(evaluations, "overrides", lambda run: sorted(_shared_overrides(run)))
    machine = _common(evaluations, "machines", lambda run: _hardware(run["machine"])) if hardware is None else hardware
    return {
        "config": config_name(_common(evaluations, "configs", lambda run: run["config_file"])),
        "overrides": [word for words in _shared_overrides(first) for word in words],
        "data": {
            "train": ", ".join(_common(evaluations, "data sets trained on", lambda run: run["train"])),
            "test": name,
            "images": _common(evaluations, "images evaluated", lambda run: _of_data_set("", run, name)["images"]),
        },
        "hardware": machine,
        "commit": commit,
        "date": max(run["date"] for run in evaluations.values()),
        "seeds": _seeds(evaluations),
        "command": first["command"],
        "metrics": _metrics([each["results"] for each in found]),
    }


def config_name(config_file: str) -> str:
    """
    A config as results files name it: below ``configs/``, or ``projects/SPT/configs/`` for a LazyConfig.

    Raises:
        ValueError: a config of another folder, or one that is not there.
    """
    path = PurePosixPath(config_file)
    for folder in CONFIG_FOLDERS:
        if path.is_relative_to(folder) and (ROOT / path).is_file():
            return path.relative_to(folder).as_posix()
    raise ValueError(
        f"A results file expects a config of this repository, below {' or '.join(CONFIG_FOLDERS)}. "
        f"Got {config_file or 'none'}."
    )


def file_name(record: Mapping[str, Any]) -> str:
    """Where a record goes unless told otherwise: its config, its data set, and overrides of another experiment."""
    stem, _, suffix = record["config"].rpartition(".")
    parts = [stem.replace("/", "__"), record["data"]["test"], *(["lazy"] if suffix == "py" else [])]
    parts += [
        re.sub(r"[^\w.-]+", "_", " ".join(words)) for words in other_overrides(record["config"], record["overrides"])
    ]
    return f"{'__'.join(parts)}.json"


def _seeds(evaluations: Mapping[str, Mapping[str, Any]]) -> list[int]:
    """Of trainings; of checkpoints that were only evaluated none is known, but that they are not one and the same."""
    if next(iter(evaluations.values()))["eval_only"]:
        checkpoints = {folder: run["checkpoint"] or run["overrides"] for folder, run in evaluations.items()}
        values = list(checkpoints.values())
        if any(value in values[:i] for i, value in enumerate(values)):
            raise ValueError(f"A results file expects different checkpoints.\n{_listed(checkpoints.items())}")
        return [UNSEEDED] * len(values)
    seeds = {folder: run["seed"] for folder, run in evaluations.items()}
    seeded = [seed for seed in seeds.values() if seed != UNSEEDED]
    if len(set(seeded)) < len(seeded):
        raise ValueError(f"A results file expects runs of different seeds.\n{_listed(seeds.items())}")
    return list(seeds.values())


def _metrics(results: Sequence[Mapping[str, Mapping[str, float | None]]]) -> dict[str, list[float]]:
    metrics = {}
    for metric, (task, key) in _SOURCES.items():
        values = [run.get(task, {}).get(key) for run in results]
        known = [round(value, _DIGITS) for value in values if value is not None]
        # One that only some of the runs have has no mean over all of them.
        if len(known) == len(results):
            metrics[metric] = known
    if not metrics:
        raise ValueError(f"A results file expects runs that all have one of {', '.join(_SOURCES)}. Found none.")
    return metrics


def _shared_overrides(run: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """Without what tells runs of one experiment apart: seeds, and the checkpoints that were only evaluated."""
    apart = _SEED.union(WEIGHTS) if run["eval_only"] else _SEED
    return [words for key, words in keyed_overrides(run["config_file"], run["overrides"]) if key not in apart]


def _of_data_set(folder: str, run: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    for each in run["test"]:
        if each["name"] == name:
            return each
    raise ValueError(f"{folder} has no evaluation on {name!r}. It has: {', '.join(e['name'] for e in run['test'])}.")


def _hardware(machine: Mapping[str, Any]) -> str:
    if machine["device"] == "cpu":
        each = "" if machine["processes"] == 1 else f" in each of {machine['processes']} processes"
        return f"{machine['processor']}, {machine['threads']} of {machine['cores']} cores{each}"
    return f"{machine['processes']} x {machine['device']}"


def _common(evaluations: Mapping[str, Mapping[str, Any]], what: str, get: Any) -> Any:
    found = {folder: get(run) for folder, run in evaluations.items()}
    values = list(found.values())
    if any(value != values[0] for value in values):
        raise ValueError(
            f"A results file expects runs of one experiment. Got several {what}:\n{_listed(found.items())}"
        )
    return values[0]


def _listed(pairs: Iterable[tuple[str, Any]]) -> str:
    return "\n".join(f"  {folder}: {value}" for folder, value in pairs)
