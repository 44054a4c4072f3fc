"""``evaluation.json``: what the last evaluation of a run found, and where it comes from."""

import argparse
import math
import shlex
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from detectron2.data import DatasetCatalog
from detectron2.utils import comm

from spt_d2.provenance import code_commit, machine
from spt_d2.summary import write_summary

EVALUATION_FILE = "evaluation.json"
_FOLDERS = ("OUTPUT_DIR", "train.output_dir")
_ROOT = Path(__file__).resolve().parents[2]


def write_evaluation(
    folder: str,
    program: str,
    args: argparse.Namespace,
    results: Mapping[str, Any],
    *,
    train: Sequence[str],
    test: Sequence[str],
    seed: int,
    device: str,
) -> None:
    """
    Write ``evaluation.json`` into a run's folder, from which ``tools/record_results.py`` makes a results file.

    In the first process only, and not where nothing was evaluated, or several data sets were as one.

    Args:
        folder: of the run.
        program: that evaluates, below the repository's folder, such as ``projects/SPT/train_net.py``.
        args: its command line: ``config_file``, ``opts`` and ``eval_only``.
        results: by task; of several data sets, by their names.
        train: names of the data sets trained on.
        test: names of those evaluated.
        seed: of the run; negative for none.
        device: that the model runs on.
    """
    if not results or not test or not comm.is_main_process():
        return
    by_name = results if len(test) > 1 else {test[0]: results}
    if set(by_name) != set(test):
        return
    config = repository_path(args.config_file)
    only = ["--eval-only"] if args.eval_only else []
    # The folder is not what a result depends on, and one of this machine's paths.
    kept = [word for key, words in keyed_overrides(config, args.opts) if key not in _FOLDERS for word in words]
    write_summary(
        Path(folder) / EVALUATION_FILE,
        {
            "command": shlex.join(["python", program, "--config-file", config, *only, *kept]),
            "config_file": config,
            "overrides": kept,
            "eval_only": args.eval_only,
            "train": list(train),
            "test": [
                {"name": name, "images": len(DatasetCatalog.get(name)), "results": _figures(by_name[name])}
                for name in test
            ],
            "seed": max(seed, -1),
            "machine": {**machine(device), "processes": comm.get_world_size()},
            "commit": code_commit(),
            "date": time.strftime("%Y-%m-%d", time.gmtime()),
        },
    )


def keyed_overrides(config_file: str, overrides: Sequence[str]) -> list[tuple[str, tuple[str, ...]]]:
    """
    Overrides of a command line with the keys that they change.

    Args:
        config_file: yaml, whose overrides are keys and values in turn, or a LazyConfig, whose are ``key=value``.
        overrides: as typed.

    Returns:
        pairs of a key and its words.
    """
    if config_file.endswith(".py"):
        # Hydra's forms, as Detectron2 reads them: +key=value adds one, ~key takes one away.
        return [(word.partition("=")[0].lstrip("+~"), (word,)) for word in overrides]
    return [(overrides[i], tuple(overrides[i : i + 2])) for i in range(0, len(overrides), 2)]


def repository_path(path: str) -> str:
    """Below the repository's folder where it is in it, else as it was given."""
    full = Path(path).resolve()
    return full.relative_to(_ROOT).as_posix() if full.is_relative_to(_ROOT) else path


def _figures(results: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, float | None]]:
    """Numbers by task; None for what COCO has no number for."""
    return {
        task: {
            name: float(value) if math.isfinite(value) else None
            for name, value in figures.items()
            if isinstance(value, (int, float))
        }
        for task, figures in results.items()
    }
