"""Results files: what was measured, and where each number comes from (results/README.md)."""

import datetime
import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from spt_d2.compare.statistics import estimate
from spt_d2.engine.evaluation_file import keyed_overrides

# Key in a file: title of a column, digits after the point.
METRICS = {
    **{f"{task}_ap{kind}": (f"{task} AP{kind}", 1) for task in ("box", "mask") for kind in ("", "50", "75", *"sml")},
    "map": ("mAP", 2),
    "keep_ratio": ("keep ratio", 3),
    **{f"keep_ratio_stage{stage}": (f"keep ratio of stage {stage}", 3) for stage in range(1, 5)},
    "retention": ("retention", 3),
    "density": ("density", 3),
    "executed_macs_g": ("executed MACs, G", 2),
}
# Overrides that make no other experiment, of yaml and LazyConfig: where it starts and goes on from, on what it runs and
# in which precision, how often it saves, and the batch size with all that follows it.
_HARMLESS = {
    "SEED", "MODEL.WEIGHTS", "OUTPUT_DIR", "MODEL.DEVICE", "SOLVER.AMP.ENABLED", "SOLVER.AMP.PRECISION",
    "SOLVER.BATCH_SCALE", "SOLVER.CHECKPOINT_PERIOD", "SOLVER.METRIC_PERIOD", "TEST.EVAL_PERIOD",
    "DATALOADER.NUM_WORKERS", "CUDNN_BENCHMARK",
    "train.seed", "train.init_checkpoint", "train.output_dir", "train.device", "train.amp.enabled",
    "train.amp.precision", "train.batch_scale", "train.checkpointer.period", "train.checkpointer.max_to_keep",
    "train.log_period", "train.eval_period", "dataloader.train.num_workers", "dataloader.test.num_workers",
    "train.cudnn_benchmark",
}  # fmt: skip
# In place of the seed of a run that drew another one each time.
UNSEEDED = -1
_NEEDED = ("config", "overrides", "data", "hardware", "commit", "date", "seeds", "command", "metrics")


@dataclass(frozen=True)
class Record:
    """
    One config on one data set, all seeds of it.

    Attributes:
        path: of the file.
        config: below ``configs/``, or of a LazyConfig below ``projects/SPT/configs/``.
        overrides: of the command line, as typed.
        data: ``{"train", "test", "images"}``: names of data sets, and the number of images evaluated.
        hardware: in words.
        commit: of the code, 40 hexadecimal digits, ``-dirty`` after them where files differed.
        date: of the measurement.
        seeds: of the runs; :data:`UNSEEDED` of one without.
        command: that made it.
        metrics: by the keys of :data:`METRICS`, one value for each seed.
    """

    path: Path
    config: str
    overrides: tuple[str, ...]
    data: Mapping[str, Any]
    hardware: str
    commit: str
    date: datetime.date
    seeds: tuple[int, ...]
    command: str
    metrics: Mapping[str, tuple[float, ...]]

    def value(self, metric: str) -> str:
        """Mean over the seeds and, of several, its standard error; empty where it was not measured."""
        values = self.metrics.get(metric)
        if not values:
            return ""
        found, digits = estimate(values), METRICS[metric][1]
        mean = f"{found.mean:.{digits}f}"
        return mean if found.error is None else f"{mean} ± {found.error:.{digits}f}"

    @property
    def as_configured(self) -> bool:
        """Whether the config was run as it is: with overrides that make no other experiment (results/README.md)."""
        return not other_overrides(self.config, self.overrides)

    def is_of(self, config: str) -> bool:
        """Whether it measures this yaml config, as it is or as the LazyConfig that is its twin."""
        return self.as_configured and PurePosixPath(self.config).with_suffix("") == PurePosixPath(config).with_suffix(
            ""
        )

    @property
    def provenance(self) -> str:
        """Hardware, seeds, commit and date in one line."""
        kind = "run" if UNSEEDED in self.seeds else "seed"
        seeds = f"{len(self.seeds)} {kind}{'' if len(self.seeds) == 1 else 's'}"
        dirty = " (changed)" if self.commit.endswith("-dirty") else ""
        evaluated = ", only evaluated" if "--eval-only" in self.command.split() else ""
        return f"{self.hardware}; {seeds}{evaluated}; {self.commit[:10]}{dirty}; {self.date.isoformat()}"


def other_overrides(config: str, overrides: Sequence[str]) -> list[tuple[str, ...]]:
    """The words of those overrides that make another experiment of a config."""
    pairs = keyed_overrides(config, overrides)
    # Results with test-time augmentation are not what is recorded.
    return [words for key, words in pairs if key not in _HARMLESS and not key.startswith("TEST.AUG.")]


def read_record(path: str | os.PathLike[str]) -> Record:
    """
    Read a results file.

    Raises:
        ValueError: something missing, unknown, or not of the form that results/README.md describes.
    """
    path = Path(path)
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path.name} expects JSON. {error}") from error
    problems = _problems(found)
    if problems:
        listed = "\n".join(f"  {problem}" for problem in problems)
        raise ValueError(f"{path.name} is no results file (results/README.md):\n{listed}")
    return Record(
        path=path,
        config=found["config"],
        overrides=tuple(found["overrides"]),
        data=found["data"],
        hardware=found["hardware"],
        commit=found["commit"],
        date=datetime.date.fromisoformat(found["date"]),
        seeds=tuple(found["seeds"]),
        command=found["command"],
        metrics={name: tuple(values) for name, values in found["metrics"].items()},
    )


def read_records(folder: str | os.PathLike[str]) -> list[Record]:
    """Those of a folder, by file name; an empty list where there are none."""
    return [read_record(path) for path in sorted(Path(folder).glob("*.json"))]


def _problems(found: Any) -> list[str]:
    """What a record lacks; empty where it is whole."""
    if not isinstance(found, dict):
        return [f"expects an object. Got {type(found).__name__}."]
    problems = [f"'{key}' is missing." for key in _NEEDED if key not in found]
    problems += [f"'{key}' is not known." for key in found if key not in _NEEDED]
    if problems:
        return problems
    for key in ("config", "hardware", "commit", "command"):
        if not isinstance(found[key], str) or not found[key]:
            problems.append(f"'{key}' expects a text. Got {found[key]!r}.")
    digits = str(found["commit"]).removesuffix("-dirty")
    if len(digits) != 40 or any(digit not in "0123456789abcdef" for digit in digits):
        problems.append(
            f"'commit' expects 40 hexadecimal digits, '-dirty' after them perhaps. Got {found['commit']!r}."
        )
    try:
        datetime.date.fromisoformat(found["date"])
    except (TypeError, ValueError):
        problems.append(f"'date' expects YYYY-MM-DD. Got {found['date']!r}.")
    seeds, metrics = found["seeds"], found["metrics"]
    if not isinstance(seeds, list) or not seeds or not all(type(seed) is int for seed in seeds):
        problems.append(f"'seeds' expects at least one whole number. Got {seeds!r}.")
        return problems
    seeded = [seed for seed in seeds if seed != UNSEEDED]
    if len(set(seeded)) < len(seeded):
        problems.append(f"'seeds' expects each once. Got {seeds!r}.")
    if not isinstance(found["overrides"], list) or not all(isinstance(part, str) for part in found["overrides"]):
        problems.append(f"'overrides' expects a list of texts. Got {found['overrides']!r}.")
    data = found["data"]
    if not isinstance(data, dict) or set(data) != {"train", "test", "images"} or type(data["images"]) is not int:
        problems.append(f"'data' expects train, test and images, a whole number. Got {data!r}.")
    if not isinstance(metrics, dict) or not metrics:
        return [*problems, f"'metrics' expects at least one of {tuple(METRICS)}. Got {metrics!r}."]
    for name, values in metrics.items():
        if name not in METRICS:
            problems.append(f"'metrics' expects names among {tuple(METRICS)}. Got {name!r}.")
        elif not isinstance(values, list) or len(values) != len(seeds) or not all(map(_is_finite, values)):
            problems.append(f"'{name}' expects a number for each of {len(seeds)} seeds. Got {values!r}.")
    return problems


def _is_finite(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
