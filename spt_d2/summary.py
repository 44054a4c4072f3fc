"""The results of a run in one file, and two runs side by side in one table."""

import json
import math
import os
from collections.abc import Mapping
from typing import Any

from spt_d2.analysis.model_report import text_table
from spt_d2.evaluation import selection_summary


def summarize(results: Mapping[str, Mapping[str, float]], train_seconds: float, commit: str | None) -> dict[str, Any]:
    """
    Bring the results of an evaluation into the form of ``summary.json``.

    Args:
        results: of COCOEvaluator and SelectionEvaluator, by task.
        train_seconds: spent in iterations.
        commit: of the code, or None.

    Returns:
        ``{"box", "segm", "selection", "macs_g", "train_seconds", "commit"}``. APs in percent; selection figures as
        fractions weighted by tokens, over all stages and by stage; multiply-adds of the backbone in units of 10^9,
        means over the images. None where nothing is known, such as the selection of a dense backbone.
    """
    figures = results.get("selection", {})
    summary = {
        "box": dict(results.get("bbox", {})),
        "segm": dict(results.get("segm", {})),
        "selection": selection_summary(figures),
        "macs_g": {name: figures.get(f"{name}_macs_g") for name in ("executed", "useful", "dense")},
        "train_seconds": train_seconds,
        "commit": commit,
    }
    return _without_nan(summary)


def _without_nan(value: Any) -> Any:
    """COCO's AP of a size that no object has is NaN, which is no JSON."""
    if isinstance(value, dict):
        return {key: _without_nan(inner) for key, inner in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value


def write_summary(path: str | os.PathLike[str], summary: Mapping[str, Any]) -> None:
    """
    Write ``summary.json``, whole or not at all.

    Raises:
        ValueError: a number that is not finite.
    """
    text = json.dumps(summary, indent=2, allow_nan=False)
    unfinished = f"{os.fspath(path)}.unfinished"
    with open(unfinished, "w", encoding="utf-8") as file:
        file.write(text + "\n")
    os.replace(unfinished, path)


def read_summary(path: str | os.PathLike[str]) -> dict[str, Any] | None:
    """A summary, or None where there is none that can be read."""
    try:
        with open(path, encoding="utf-8") as file:
            found = json.load(file)
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def summary_table(summaries: Mapping[str, Mapping[str, Any]]) -> str:
    """
    Set runs side by side.

    Args:
        summaries: by the title of their column.
    """
    stages = sorted({stage for s in summaries.values() for stage in s["selection"]["by_stage"]})
    rows = [_row(label, summaries, *path, unit=1.0, digits=1) for label, path in _AP_ROWS]
    for stage in stages:
        for figure, label in _SELECTION_ROWS:
            rows.append(
                _row(f"{stage}: {label}", summaries, "selection", "by_stage", stage, figure, unit=100, digits=1)
            )
    rows.append(_row("backbone, 10^9 multiply-adds an image", summaries, "macs_g", "executed", unit=1.0, digits=3))
    rows.append(_row("training, minutes", summaries, "train_seconds", unit=1 / 60, digits=1))
    return text_table(["", *summaries], rows)


_AP_ROWS = (
    ("box AP, %", ("box", "AP")),
    ("box AP50, %", ("box", "AP50")),
    ("box AP75, %", ("box", "AP75")),
    ("mask AP, %", ("segm", "AP")),
    ("mask AP50, %", ("segm", "AP50")),
)
_SELECTION_ROWS = (
    ("keep_ratio", "tokens kept (keep ratio), %"),
    ("retention", "object tokens kept (retention), %"),
    ("density", "kept tokens on objects (density), %"),
)


def _row(label: str, summaries: Mapping[str, Mapping[str, Any]], *path: str, unit: float, digits: int) -> list[str]:
    cells = []
    for summary in summaries.values():
        value: Any = summary
        for key in path:
            value = value.get(key) if isinstance(value, Mapping) else None
        cells.append("-" if value is None else f"{value * unit:.{digits}f}")
    return [label.replace("stage", "stage ", 1) if label.startswith("stage") else label, *cells]
