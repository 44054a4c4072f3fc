"""Results files: one small JSON for each run, which tables and figures are made of and nothing else."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from spt_d2.summary import read_summary

_NEEDED = (
    "plan", "reference", "data_set", "variant", "seed", "order", "config", "overrides", "commit", "machine", "date",
    "iterations", "box", "segm", "selection", "macs_g", "parameters", "seconds_per_iteration", "train_seconds",
    "forward_ms", "peak_memory_mb",
)  # fmt: skip
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


def read_results(folder: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """
    All results in a folder, in the order of the plan.

    Raises:
        FileNotFoundError: no results there.
        ValueError: a file that holds something else, or results of several plans.
    """
    paths = sorted(Path(folder).glob("*__*__seed*.json"))
    found = [result for path in paths if (result := read_result(path)) is not None]
    if not found:
        raise FileNotFoundError(f"{os.fspath(folder)} expects results files. Found none.")
    plans = sorted({result["plan"] for result in found})
    if len(plans) > 1:
        raise ValueError(f"{os.fspath(folder)} expects the results of one plan. Got those of {plans}.")
    return sorted(found, key=lambda result: (*result["order"], result["seed"]))
