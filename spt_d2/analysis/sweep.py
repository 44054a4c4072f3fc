"""
One trained model at many operating points: accuracy, keep ratio, multiply-adds and milliseconds (Fig. 6).

A sweep is one JSON file, written anew after every point that is evaluated, so that an interrupted one goes on where it
was. Times are taken last and of all points in one run: only then do they compare.
"""

import datetime
import hashlib
import logging
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from torch import nn

from spt_d2.analysis.latency import time_backbone
from spt_d2.analysis.operating_point import OperatingPoint, operating_point
from spt_d2.engine.model_config import ModelConfig
from spt_d2.evaluation import selection_summary
from spt_d2.layers.block import SelectPackBlock
from spt_d2.provenance import code_commit, file_digest, machine
from spt_d2.summary import read_summary, write_summary

logger = logging.getLogger(__name__)

# What of a task's results is its accuracy, in percent.
ACCURACIES = ("AP", "mAP")


def operating_points(
    thresholds: Sequence[float] = (), keep_ratios: Sequence[float] = (), token_budgets: Sequence[int] = ()
) -> list[OperatingPoint]:
    """The model as trained, then each value of each kind in ascending order, once."""
    return [
        OperatingPoint("configured"),
        *(OperatingPoint("threshold", value) for value in sorted(set(thresholds))),
        *(OperatingPoint("keep_ratio", value) for value in sorted(set(keep_ratios))),
        *(OperatingPoint("token_budget", value) for value in sorted(set(token_budgets))),
    ]


def sweep(
    config: ModelConfig,
    points: Sequence[OperatingPoint],
    output_dir: str,
    *,
    config_name: str,
    dataset: str,
    weights: str | None = None,
    timing_images: int = 8,
    rounds: int = 10,
    warmup: int = 2,
) -> dict[str, Any]:
    """
    Evaluate a model at every operating point and time its backbone at all of them.

    Args:
        config: of the model.
        points: as :func:`operating_points` lists them.
        output_dir: for ``sweep.json``; points found there, of the same config with its overrides, weights and data,
            are not evaluated again.
        config_name: how the file is to name the config.
        dataset: a registered name; evaluated whole.
        weights: checkpoint; the config's by default.
        timing_images: images of the data set that are timed, evenly spread.
        rounds, warmup: see :func:`~spt_d2.analysis.latency.time_backbone`.

    Returns:
        ``{"config", "config_sha256", "weights", "weights_sha256", "dataset", "points", "timing"}``. Each point:
        ``{"kind", "value", "keep_ratio", "by_stage", "accuracy", "results", "macs_g", "latency", "commit", "date"}``:
        keep ratios are fractions weighted by tokens; ``accuracy`` has AP or mAP by task, in percent; ``macs_g`` means
        over images in units of 10^9; ``latency`` the fields of :class:`~spt_d2.analysis.latency.Latency`.

    Raises:
        ValueError: the file in ``output_dir`` is of another model or data set; a point out of range; ``SELECT oracle``;
            no weights.
    """
    weights = config.weights if weights is None else weights
    model = config.load_model(weights)
    # All of them first: a wrong one is to fail now, not after hours.
    for point in points:
        with operating_point(model, point):
            _expect_no_oracle(model, point)
    path = os.path.join(output_dir, "sweep.json")
    digest = hashlib.sha256(config.text().encode()).hexdigest()
    head = {
        "config": config_name,
        "config_sha256": digest,
        "weights": weights,
        "weights_sha256": file_digest(weights),
        "dataset": dataset,
    }
    record = _begin(path, head)
    os.makedirs(output_dir, exist_ok=True)
    done = {(found["kind"], found["value"]): found for found in record["points"]}
    for number, point in enumerate(points, start=1):
        if (point.kind, point.value) in done:
            logger.info("%d of %d, %s: evaluated before", number, len(points), point.name)
            continue
        logger.info("%d of %d, %s: evaluating", number, len(points), point.name)
        done[point.kind, point.value] = _evaluate(config, model, point, dataset, output_dir)
        record["points"] = list(done.values())
        write_summary(path, record)
    wanted = [done[point.kind, point.value] for point in points]
    settings = {"images": timing_images, "rounds": rounds, "warmup": warmup, **machine(config.device)}
    if record["timing"] != settings or any(found["latency"] is None for found in wanted):
        logger.info("Timing %d points side by side", len(points))
        inputs = list(config.inputs(dataset, timing_images))
        for found, latency in zip(wanted, time_backbone(model, points, inputs, rounds=rounds, warmup=warmup)):
            found["latency"] = asdict(latency)
        # Times of points that this run did not ask for were taken beside others.
        for key, found in done.items():
            if key not in {(point.kind, point.value) for point in points}:
                found["latency"] = None
        record["timing"] = settings
        write_summary(path, record)
    return {**record, "points": wanted}


def _expect_no_oracle(model: nn.Module, point: OperatingPoint) -> None:
    if any(isinstance(module, SelectPackBlock) and module.options.select == "oracle" for module in model.modules()):
        raise ValueError(
            f"sweep(points=) expects a model that selects without labels. Got SELECT oracle at {point.name}: a "
            "backbone alone, which is timed, has none.\nHINT: MODEL.SPT.SELECT gate."
        )


def _begin(path: str, head: Mapping[str, Any]) -> dict[str, Any]:
    """What an earlier run left, or an empty record."""
    found = read_summary(path)
    if found is None:
        if os.path.exists(path):
            raise ValueError(f"sweep(output_dir=) expects a JSON file of a sweep, or none. Got {path}.")
        return {**head, "points": [], "timing": None}
    # The file may have been moved; what counts is what is in it.
    differing = [key for key in head if key != "weights" and found.get(key) != head[key]]
    if differing:
        lines = "".join(f"\n  {key}: {found.get(key)} in the file, {head[key]} asked for" for key in differing)
        raise ValueError(f"sweep(output_dir=) expects a sweep of the same model and data, or none. Got {path}.{lines}")
    return found


def _evaluate(
    config: ModelConfig, model: nn.Module, point: OperatingPoint, dataset: str, output_dir: str
) -> dict[str, Any]:
    with operating_point(model, point):
        results = config.evaluate(model, dataset, os.path.join(output_dir, "inference"))
    figures = results.get("selection")
    if not figures:
        raise ValueError(
            "sweep(config=) expects a model whose outputs carry their selections. Got results without: "
            f"{sorted(results)}.\nHINT: a Selection... meta-architecture, not Detectron2's own."
        )
    tasks = {task: values for task, values in results.items() if task != "selection"}
    summary = selection_summary(figures)
    return {
        "kind": point.kind,
        "value": point.value,
        "keep_ratio": summary["keep_ratio"],
        "by_stage": summary["by_stage"],
        "accuracy": task_accuracies(results),
        "results": {task: {name: _finite(value) for name, value in values.items()} for task, values in tasks.items()},
        "macs_g": {name: figures.get(f"{name}_macs_g") for name in ("dense", "executed", "useful")},
        "latency": None,
        "commit": code_commit(),
        "date": datetime.date.today().isoformat(),
    }


def task_accuracies(results: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """
    AP or mAP by task, in percent; a task that has none, or none that is finite, is left out.

    Args:
        results: by task, as evaluators give them, selections perhaps among them.
    """
    found = {task: _accuracy(values) for task, values in results.items() if task != "selection"}
    return {task: value for task, value in found.items() if value is not None}


def _accuracy(values: Mapping[str, float]) -> float | None:
    """Of a task; None where it has none, such as AP of a data set without objects."""
    return next((_finite(values[name]) for name in ACCURACIES if name in values), None)


def _finite(value: float) -> float | None:
    """COCO's AP of a size that no object has is NaN, which is no JSON."""
    return float(value) if math.isfinite(value) else None
