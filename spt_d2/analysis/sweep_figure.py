"""A sweep as a picture: accuracy and milliseconds over the keep ratio, for choosing an operating point."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

_LABELS = {"threshold": "threshold of the gate", "keep_ratio": "top-k, fixed share", "token_budget": "token budget"}
_MARKERS = {"threshold": "o", "keep_ratio": "s", "token_budget": "^"}
_TASKS = {"bbox": "box AP", "segm": "mask AP", "keypoints": "keypoint AP", "multi_label": "mAP"}


def draw_sweep(record: Mapping[str, Any], title: str = "") -> np.ndarray:
    """
    Draw a panel for each task's accuracy and one for milliseconds.

    Args:
        record: of :func:`spt_d2.analysis.sweep.sweep`.
        title: above the picture.

    Returns:
        (H, W, 3) uint8 RGB.
    """
    points = record["points"]
    tasks = list(dict.fromkeys(task for point in points for task in point["accuracy"]))
    figure = Figure(figsize=(5.2 * (len(tasks) + 1), 4.0), dpi=110, layout="constrained")
    axes = figure.subplots(1, len(tasks) + 1, squeeze=False)[0]
    for axis, task in zip(axes, tasks):
        _draw(axis, points, lambda point, task=task: (point["accuracy"].get(task), None))
        axis.set_ylabel(f"{_TASKS.get(task, task)}, %", fontsize=9)
    _draw(axes[-1], points, _milliseconds)
    axes[-1].set_ylabel("backbone, ms per image (bars: quartiles)", fontsize=9)
    # From zero, or small differences look large; with room for the star at the top.
    axes[-1].set_ylim(0, 1.06 * axes[-1].get_ylim()[1])
    for axis in axes:
        axis.set_xlabel("tokens kept in the stages that select, %", fontsize=9)
        axis.tick_params(labelsize=8)
        axis.grid(alpha=0.3)
        axis.legend(fontsize=8)
    if title:
        figure.suptitle(title, fontsize=10)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def _milliseconds(point: Mapping[str, Any]) -> tuple[float | None, tuple[float, float] | None]:
    latency = point["latency"]
    if latency is None:
        return None, None
    median = latency["median_ms"]
    return median, (median - latency["p25_ms"], latency["p75_ms"] - median)


def _draw(axis: Axes, points: list[Mapping[str, Any]], value_of) -> None:
    """One line per kind of point, each point with its value beside it; the model as trained is a star."""
    for kind, label in _LABELS.items():
        drawn = [
            (100 * point["keep_ratio"], *value_of(point), point["value"])
            for point in points
            if point["kind"] == kind and value_of(point)[0] is not None
        ]
        if not drawn:
            continue
        drawn.sort(key=lambda row: row[0])
        ratios, values = [row[0] for row in drawn], [row[1] for row in drawn]
        bars = [row[2] for row in drawn]
        spread = None if None in bars else np.asarray(bars).T
        axis.errorbar(ratios, values, yerr=spread, marker=_MARKERS[kind], markersize=4, linewidth=1.2, label=label)
        for ratio, value, _, setting in drawn:
            axis.annotate(f"{setting:g}", (ratio, value), textcoords="offset points", xytext=(4, 4), fontsize=6)
    for point in points:
        value, _ = value_of(point)
        if point["kind"] == "configured" and value is not None:
            place = [100 * point["keep_ratio"]], [value]
            axis.plot(*place, marker="*", markersize=13, linestyle="none", color="black", label="as configured")
