"""Runs of one config, each with its ``evaluation.json``, made into one results file (results/README.md)."""

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from spt_d2.engine.evaluation_file import EVALUATION_FILE, keyed_overrides
from spt_d2.model_zoo.records import UNSEEDED

# Folders below the repository's whose configs a results file may name.
CONFIG_FOLDERS = ("projects/SPT/configs", "configs")
# What differs between runs that are averaged.
_SEED = {"SEED", "train.seed"}
_WEIGHTS = {"MODEL.WEIGHTS", "train.init_checkpoint"}
# Where a metric of a results file stands in an evaluation: task and key there.
_SOURCES = {
    "box_ap": ("bbox", "AP"),
    "mask_ap": ("segm", "AP"),
    "map": ("multi_label", "mAP"),
    "keep_ratio": ("selection", "keep_ratio"),
    "retention": ("selection", "retention"),
    "density": ("selection", "density"),
    "executed_macs_g": ("selection", "executed_macs_g"),
}
_DIGITS = 4


def read_evaluation(run: str | os.PathLike[str]) -> dict[str, Any]:
    """
    What the last evaluation in a run's folder found.

    Raises:
        ValueError: no such file, or one that cannot be read.
    """
    path = Path(run) / EVALUATION_FILE
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ValueError(
            f"{run} expects {EVALUATION_FILE}, which a finished evaluation leaves. Found none.\n"
            "HINT: --eval-only of the training program, with the run's OUTPUT_DIR and weights, makes it."
        ) from error
    except ValueError as error:
        raise ValueError(f"{path} expects JSON. {error}") from error


def combine(
    evaluations: Mapping[str, Mapping[str, Any]], test: str | None = None, hardware: str | None = None
) -> dict[str, Any]:
    """
    Make the content of a results file.

    Args:
        evaluations: of :func:`read_evaluation`, by the runs' folders; one for each seed.
        test: data set whose results are taken; None where the runs evaluated one.
        hardware: in words; None for what the runs saw.

    Raises:
        ValueError: runs that are not of one experiment, or of none that a results file can name.
    """
    first = next(iter(evaluations.values()))
    runs = list(evaluations.values())
    name = test or _common(evaluations, "data sets evaluated", lambda run: [each["name"] for each in run["test"]])
    if not isinstance(name, str):
        if len(name) != 1:
            raise ValueError(f"A results file is of one data set. The runs evaluated {', '.join(name)}.\nHINT: --test.")
        (name,) = name
    found = [_of_data_set(folder, run, name) for folder, run in evaluations.items()]
    commit = _common(evaluations, "commits", lambda run: run["commit"])
    if commit is None:
        raise ValueError("A results file names the commit of the code. The runs were not made in a git repository.")
    seeds = [UNSEEDED if run["eval_only"] and not _is_seeded(run) else run["seed"] for run in runs]
    seeded = [seed for seed in seeds if seed != UNSEEDED]
    if len(set(seeded)) < len(seeded):
        raise ValueError(f"A results file expects runs of different seeds.\n{_listed(zip(evaluations, seeds))}")
    machine = _common(evaluations, "machines", lambda run: _hardware(run["machine"])) if hardware is None else hardware
    return {
        "config": config_name(_common(evaluations, "configs", lambda run: run["config_file"])),
        "overrides": list(_common(evaluations, "overrides", _shared_overrides)),
        "data": {
            "train": ", ".join(_common(evaluations, "data sets trained on", lambda run: run["train"])),
            "test": name,
            "images": _common(evaluations, "images evaluated", lambda run: _of_data_set("", run, name)["images"]),
        },
        "hardware": machine,
        "commit": commit,
        "date": max(run["date"] for run in runs),
        "seeds": seeds,
        "command": first["command"],
        "metrics": _metrics([each["results"] for each in found]),
    }


def config_name(config_file: str) -> str:
    """
    A config as results files name it: below ``configs/``, or ``projects/SPT/configs/`` for a LazyConfig.

    Raises:
        ValueError: a config of another folder.
    """
    for folder in CONFIG_FOLDERS:
        if PurePosixPath(config_file).is_relative_to(folder):
            return PurePosixPath(config_file).relative_to(folder).as_posix()
    raise ValueError(
        f"A results file expects a config of this repository, below {' or '.join(CONFIG_FOLDERS)}. Got {config_file}."
    )


def file_name(record: Mapping[str, Any]) -> str:
    """Where a record goes unless told otherwise: its config and its data set."""
    stem = record["config"].rsplit(".", 1)[0].replace("/", "__")
    return f"{stem}__{record['data']['test']}.json"


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


def _shared_overrides(run: Mapping[str, Any]) -> list[str]:
    """Without what tells runs of one experiment apart: seeds, and the checkpoints that were only evaluated."""
    apart = _SEED | _WEIGHTS if run["eval_only"] else _SEED
    pairs = keyed_overrides(run["config_file"], run["overrides"])
    return [word for key, words in pairs if key not in apart for word in words]


def _is_seeded(run: Mapping[str, Any]) -> bool:
    """Whether the command line names the seed: that of the config says nothing about a checkpoint evaluated."""
    return any(key in _SEED for key, _ in keyed_overrides(run["config_file"], run["overrides"]))


def _of_data_set(folder: str, run: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    for each in run["test"]:
        if each["name"] == name:
            return each
    raise ValueError(f"{folder} has no evaluation on {name!r}. It has: {', '.join(e['name'] for e in run['test'])}.")


def _hardware(machine: Mapping[str, Any]) -> str:
    if machine["device"] == "cpu":
        return f"{machine['processor']}, {machine['threads']} of {machine['cores']} cores"
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
