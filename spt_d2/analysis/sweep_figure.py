"""A sweep as a picture: accuracy and milliseconds over keep ratio and token budget, for choosing an operating point."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

_LABELS = {"threshold": "threshold of the gate", "keep_ratio": "top-k, fixed share", "token_budget": "token budget"}
_MARKERS = {"threshold": "o", "keep_ratio": "s", "token_budget": "^"}
_TASKS = {"bbox": "box AP", "segm": "mask AP", "keypoints": "keypoint AP", "multi_label": "mAP"}


_Point = Mapping[str, Any]
_Quartiles = tuple[float, float]
_Value = Callable[[_Point], tuple[float | None, _Quartiles | None]]


def draw_sweep(record: Mapping[str, Any], title: str = "") -> np.ndarray:
    """
    Draw a panel for each task's accuracy and one for milliseconds, over the keep ratio; below them, over the token
    budget, where budgets were swept.

    Args:
        record: of :func:`spt_d2.analysis.sweep.sweep`.
        title: above the picture.

    Returns:
        (H, W, 3) uint8 RGB.
    """
    points = record["points"]
    tasks = list(dict.fromkeys(task for point in points for task in point["accuracy"]))
    budgets = any(point["kind"] == "token_budget" for point in points)
    rows, columns = 1 + budgets, len(tasks) + 1
    figure = Figure(figsize=(5.2 * columns, 4.0 * rows), dpi=110, layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False)
    for axes, draw in zip(panels, (_over_keep_ratio, _over_token_budget)):
        for axis, task in zip(axes, tasks):
            draw(axis, points, partial(_accuracy, task))
            axis.set_ylabel(f"{_TASKS.get(task, task)}, %", fontsize=9)
        draw(axes[-1], points, _milliseconds)
        axes[-1].set_ylabel("backbone, ms per image (bars: quartiles)", fontsize=9)
        # From zero, or small differences look large; with room for the star at the top.
        axes[-1].set_ylim(0, 1.06 * axes[-1].get_ylim()[1])
        for axis in axes:
            axis.tick_params(labelsize=8)
            axis.grid(alpha=0.3)
            axis.legend(fontsize=8)
    if title:
        figure.suptitle(title, fontsize=10)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def _accuracy(task: str, point: _Point) -> tuple[float | None, None]:
    return point["accuracy"].get(task), None


def _milliseconds(point: _Point) -> tuple[float | None, _Quartiles | None]:
    latency = point["latency"]
    if latency is None:
        return None, None
    median = latency["median_ms"]
    return median, (median - latency["p25_ms"], latency["p75_ms"] - median)


def _over_keep_ratio(axis: Axes, points: Sequence[_Point], value_of: _Value) -> None:
    """One line per kind of point, each point with its value beside it; the model as trained is a star."""
    axis.set_xlabel("tokens kept in the stages that select, %", fontsize=9)
    for kind in _LABELS:
        for ratio, value, setting in _line(axis, points, kind, lambda point: 100 * point["keep_ratio"], value_of):
            axis.annotate(f"{setting:g}", (ratio, value), textcoords="offset points", xytext=(4, 4), fontsize=6)
    for point in points:
        level, _ = value_of(point)
        if point["kind"] == "configured" and level is not None:
            place = [100 * point["keep_ratio"]], [level]
            axis.plot(*place, marker="*", markersize=13, linestyle="none", color="black", label="as configured")


def _over_token_budget(axis: Axes, points: Sequence[_Point], value_of: _Value) -> None:
    """The line of budgets, each point with the share of tokens that it kept; the model as trained is a level."""
    axis.set_xlabel("token budget K, tokens per image and block", fontsize=9)
    drawn = _line(axis, points, "token_budget", lambda point: point["value"], value_of)
    shares = {point["value"]: 100 * point["keep_ratio"] for point in points if point["kind"] == "token_budget"}
    for budget, value, _ in drawn:
        text = f"{shares[budget]:.2g} %"
        axis.annotate(text, (budget, value), textcoords="offset points", xytext=(4, 4), fontsize=6)
    axis.set_xscale("log")
    axis.set_xticks([budget for budget, _, _ in drawn], [f"{budget:g}" for budget, _, _ in drawn])
    axis.minorticks_off()
    for point in points:
        level, _ = value_of(point)
        if point["kind"] == "configured" and level is not None:
            axis.axhline(level, color="black", linestyle=":", linewidth=1, label="as configured")


def _line(
    axis: Axes, points: Sequence[_Point], kind: str, place_of: Callable[[_Point], float], value_of: _Value
) -> list[tuple[float, float, float]]:
    """Draw the points of a kind that have a value; returns their places, values and settings."""
    drawn = sorted(
        (place_of(point), value, bars, point["value"])
        for point in points
        for value, bars in [value_of(point)]
        if point["kind"] == kind and value is not None
    )
    if drawn:
        places, values, bars, _ = zip(*drawn)
        spread = None if None in bars else np.asarray(bars).T
        # The colour of a kind is the same in all panels.
        color = f"C{list(_LABELS).index(kind)}"
        axis.errorbar(
            places, values, yerr=spread, color=color, marker=_MARKERS[kind], markersize=4, linewidth=1.2,
            label=_LABELS[kind],
        )  # fmt: skip
    return [(place, value, setting) for place, value, _, setting in drawn]
