"""``evaluation.json``: what the last evaluation of a run found, and where it comes from."""

import argparse
import json
import logging
import math
import numbers
import os
import shlex
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from detectron2.data import DatasetCatalog
from detectron2.utils import comm

from spt_d2.provenance import code_commit, file_digest, machine
from spt_d2.summary import read_summary, write_summary

logger = logging.getLogger(__name__)

EVALUATION_FILE = "evaluation.json"
_KEYS = (
    "program", "command", "config_file", "overrides", "eval_only", "checkpoint", "train", "test", "seed", "machine",
    "commit", "date",
)  # fmt: skip
FOLDERS = ("OUTPUT_DIR", "train.output_dir")
WEIGHTS = ("MODEL.WEIGHTS", "train.init_checkpoint")
ROOT = Path(__file__).resolve().parents[2]


class EvaluationFile:
    """
    Made before a run, so that it names the code that the run has read and not what was checked out meanwhile.

    Where a training begins afresh, what an earlier one left in the folder is removed. The first process alone writes.

    Args:
        folder: of the run.
        program: that evaluates, below the repository's folder, such as ``projects/SPT/train_net.py``.
        args: its command line: ``config_file``, ``opts``, ``eval_only``, and where it has them ``resume``,
            ``num_gpus`` and ``num_machines``.
    """

    def __init__(self, folder: str, program: str, args: argparse.Namespace):
        self.path, self.program, self.args = Path(folder) / EVALUATION_FILE, program, args
        self.commit = code_commit() if comm.is_main_process() else None
        if comm.is_main_process() and not args.eval_only and not getattr(args, "resume", False):
            self.path.unlink(missing_ok=True)
            if (self.path.parent / "last_checkpoint").exists():
                logger.warning(
                    "%s holds checkpoints of an earlier run, which this one writes over.\n"
                    "HINT: --resume goes on with that run; OUTPUT_DIR (train.output_dir) names another folder.",
                    folder,
                )

    def write(
        self, results: Mapping[str, Any], *, train: Sequence[str], test: Sequence[str], seed: int, device: str
    ) -> None:
        """
        Write the file, from which ``tools/record_results.py`` makes a results file.

        Nothing that goes wrong here ends a run: it is in the log. A training's file is not replaced by an evaluation in
        the same folder, which does not know what the training was.

        Args:
            results: by task; of several data sets, by their names.
            train: names of the data sets trained on.
            test: names of those evaluated.
            seed: of the run; negative for none.
            device: that the model runs on.
        """
        if not results or not test or not comm.is_main_process():
            return
        try:
            self._write(results, train, test, seed, device)
        except Exception:
            # Of any kind: evaluators and data sets of one's own, a full disk.
            logger.exception("%s could not be written; the run itself is not affected.", self.path)

    def _write(
        self, results: Mapping[str, Any], train: Sequence[str], test: Sequence[str], seed: int, device: str
    ) -> None:
        by_name = results if len(test) > 1 else {test[0]: results}
        if not set(test) <= set(by_name):
            logger.info("%s is not written: several data sets were evaluated as one.", self.path)
            return
        kept = read_summary(self.path) if self.args.eval_only else None
        if kept is not None and not kept.get("eval_only", True):
            logger.info("%s holds what the training found, and is kept.", self.path)
            return
        config = repository_path(self.args.config_file)
        pairs = keyed_overrides(config, self.args.opts)
        record = {
            "program": self.program,
            "command": self._command(config, pairs),
            "config_file": config,
            # The folder is not what a result depends on.
            "overrides": [_shortened(key, word) for key, words in pairs if key not in FOLDERS for word in words],
            "eval_only": self.args.eval_only,
            "checkpoint": self._checkpoint(pairs),
            "train": list(train),
            "test": [
                {"name": name, "images": len(DatasetCatalog.get(name)), "results": _figures(by_name[name])}
                for name in test
            ],
            "seed": max(seed, -1),
            "machine": {**machine(device), "processes": comm.get_world_size()},
            "commit": self.commit,
            "date": time.strftime("%Y-%m-%d", time.gmtime()),
        }
        write_summary(self.path, record)

    def _command(self, config: str, pairs: Sequence[tuple[str, tuple[str, ...]]]) -> str:
        words = ["python", self.program, *(["--config-file", config] if config else [])]
        words += ["--eval-only"] if self.args.eval_only else []
        # Under torchrun the arguments say one process, and its own say how many.
        processes = {"num_gpus": comm.get_world_size(), "num_machines": getattr(self.args, "num_machines", 1)}
        processes["num_gpus"] //= processes["num_machines"]
        words += [word for key, n in processes.items() if n > 1 for word in (f"--{key.replace('_', '-')}", str(n))]
        words += [_shortened(key, word) for key, each in pairs if key not in FOLDERS for word in each]
        return shlex.join(words)

    def _checkpoint(self, pairs: Sequence[tuple[str, tuple[str, ...]]]) -> str | None:
        """SHA-256 of the weights that were evaluated and not trained, where they are a file that was named."""
        named = [_value(key, words[-1])[1] for key, words in pairs if key in WEIGHTS]
        if not self.args.eval_only or not named or not os.path.isfile(named[-1]):
            return None
        return file_digest(named[-1])


def read_evaluation(run: str | os.PathLike[str]) -> dict[str, Any]:
    """
    What the last evaluation in a run's folder found.

    Raises:
        ValueError: no such file, or one that cannot be read.
    """
    path = Path(run) / EVALUATION_FILE
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(
            f"{run} expects {EVALUATION_FILE}, which a finished evaluation leaves in its output folder. Found none.\n"
            "HINT: --eval-only of the training program, with the run's weights, makes it; its log says what kept it."
        ) from error
    except ValueError as error:
        raise ValueError(f"{path} expects JSON. {error}") from error
    if not isinstance(found, dict):
        raise ValueError(f"{path} expects an object. Got {type(found).__name__}.")
    missing = [key for key in _KEYS if key not in found]
    if missing:
        raise ValueError(f"{path} expects {', '.join(_KEYS)}. It lacks {', '.join(missing)}.")
    return found


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
    """Of a config: below the repository's folder where it is in it, else absolute; empty for none."""
    if not path:
        return ""
    full = Path(path).resolve()
    return full.relative_to(ROOT).as_posix() if full.is_relative_to(ROOT) else full.as_posix()


def _value(key: str, word: str) -> tuple[str, str]:
    """What stands before a value in a word of an override, and the value: of a LazyConfig's words both are in one."""
    name, equals, value = word.partition("=")
    return (f"{name}=", value) if equals and name.lstrip("+~") == key else ("", word)


def _shortened(key: str, word: str) -> str:
    """An override without the folder of a checkpoint, where that is one of this machine's."""
    before, value = _value(key, word)
    return before + os.path.basename(value) if key in WEIGHTS and os.path.isabs(value) else word


def _figures(results: Mapping[str, Any]) -> dict[str, dict[str, float | None]]:
    """Numbers by task; None for what COCO has no number for."""
    return {
        task: {
            name: float(value) if math.isfinite(value) else None
            for name, value in figures.items()
            if isinstance(value, numbers.Real)
        }
        for task, figures in results.items()
        if isinstance(figures, Mapping)
    }
