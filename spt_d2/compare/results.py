"""Results files: one small JSON for each run, which tables and figures are made of and nothing else."""

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from spt_d2.summary import read_summary

_NEEDED = (
    "plan", "reference", "data_set", "variant", "seed", "order", "config", "overrides", "keep_ratio_of", "weights",
    "budget", "commit", "machine", "date", "iterations", "box", "segm", "selection", "macs_g", "parameters",
    "seconds_per_iteration", "train_seconds", "forward_ms", "peak_memory_mb", "session_seconds",
)  # fmt: skip
ONE_FOLDER_EACH = (
    "HINT: give every comparison a folder of its own (--results DIR, or --name NAME without a plan), or remove others."
)
Result = Mapping[str, Any]


def result_path(folder: str | os.PathLike[str], data_set: str, variant: str, seed: int) -> Path:
    """Where a run's results are."""
    return Path(folder) / f"{data_set}__{variant}__seed{seed}.json"


def read_result(path: str | os.PathLike[str]) -> dict[str, Any] | None:
    """
    The results of a run; None where there are none.

    Raises:
        ValueError: the file holds something else.
    """
    if not os.path.exists(path):
        return None
    found = read_summary(path)
    missing = [key for key in _NEEDED if key not in (found or {})]
    if found is None or missing:
        raise ValueError(f"{path} expects the results of a run. Missing: {', '.join(missing)}.")
    return found


def results_in(folder: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """
    All results in a folder, of whatever comparison, in its order; an empty list where there are none.

    Raises:
        ValueError: a file that holds something else.
    """
    paths = sorted(Path(folder).glob("*__*__seed*.json"))
    found = [result for path in paths if (result := read_result(path)) is not None]
    return sorted(found, key=lambda result: (*result["order"], result["seed"]))


def read_results(folder: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """
    The results of one comparison, in the order of the plan.

    Raises:
        FileNotFoundError: no results there.
        ValueError: a file that holds something else; results of several comparisons: other plans, another reference, or
            another config under the name of a variant.
    """
    found = results_in(folder)
    if not found:
        raise FileNotFoundError(f"{os.fspath(folder)} expects results files. Found none.")
    comparisons = dict.fromkeys(f"{result['plan']}, with the reference {result['reference']}" for result in found)
    if len(comparisons) > 1:
        raise _several(folder, "the results of one plan and one reference", comparisons)
    configs: dict[str, dict[str, None]] = {}
    for result in found:
        configs.setdefault(result["variant"], {})[result["config"]] = None
    for variant, named in configs.items():
        if len(named) > 1:
            raise _several(folder, f"one config of the variant {variant!r}", named)
    return found


def _several(folder: str | os.PathLike[str], expected: str, got: Iterable[str]) -> ValueError:
    return ValueError(f"{os.fspath(folder)} expects {expected}. Got: {'; '.join(got)}.\n{ONE_FOLDER_EACH}")
