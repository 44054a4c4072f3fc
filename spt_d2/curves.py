"""The course of a training as a picture: losses and, per stage, what was selected."""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

_SELECTION = re.compile(r"selection/(stage\d+)/(keep_ratio|retention|density)$")
_TITLES = {
    "keep_ratio": "Keep ratio: share of tokens kept",
    "retention": "Retention: share of object tokens kept",
    "density": "Density: share of kept tokens on objects",
}

Curve = tuple[list[int], list[float]]


def read_metrics(path: str | os.PathLike[str]) -> dict[str, Curve]:
    """
    Read the ``metrics.json`` of a training.

    Where a resumed training repeated iterations, the later record of each counts. A last line cut short by an
    interruption is passed over, and so are values that are no finite numbers.

    Returns:
        ``{name: (iterations, values)}``, iterations ascending.
    """
    points: dict[str, dict[int, float]] = {}
    with open(path, encoding="utf-8") as lines:
        for line in lines:
            try:
                record = json.loads(line)
            except ValueError:
                continue
            iteration = record.pop("iteration", None)
            if iteration is None:
                continue
            for name, value in record.items():
                if isinstance(value, (int, float)) and math.isfinite(value):
                    points.setdefault(name, {})[int(iteration)] = float(value)
    curves = {}
    for name, values in points.items():
        iterations = sorted(values)
        curves[name] = (iterations, [values[i] for i in iterations])
    return curves


def draw_curves(curves: Mapping[str, Curve], title: str = "") -> np.ndarray:
    """
    Draw losses, and keep ratio, retention and density per stage, over the iterations.

    Args:
        curves: of :func:`read_metrics`. Without selection figures (a dense backbone) only losses are drawn.
        title: above the picture.

    Returns:
        (H, W, 3) uint8 RGB.
    """
    stages = sorted({match[1] for match in map(_SELECTION.match, curves) if match})
    figures = [figure for figure in _TITLES if any(f"selection/{stage}/{figure}" in curves for stage in stages)]
    rows, columns = (2, 2) if figures else (1, 1)
    figure = Figure(figsize=(5.5 * columns, 3.4 * rows), dpi=110, layout="constrained")
    axes = np.asarray(figure.subplots(rows, columns)).reshape(-1)
    _draw_losses(axes[0], curves)
    for axis, name in zip(axes[1:], figures):
        for stage in stages:
            if f"selection/{stage}/{name}" in curves:
                iterations, values = curves[f"selection/{stage}/{name}"]
                _draw_line(axis, iterations, values, stage.replace("stage", "stage "))
        axis.set_ylim(0, 1.03)
        _finish(axis, _TITLES[name])
    for axis in axes[1 + len(figures) :]:
        axis.set_visible(False)
    if title:
        figure.suptitle(title, fontsize=11)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def _draw_losses(axis: Axes, curves: Mapping[str, Curve]) -> None:
    names = sorted(name for name in curves if "loss" in name and not name.startswith("validation"))
    # The greatest first, as the lines then stand in the legend as they do in the picture.
    names.sort(key=lambda name: (name != "total_loss", -float(np.mean(curves[name][1]))))
    for name in names:
        iterations, values = curves[name]
        _draw_line(axis, iterations, values, name.replace("loss_", ""), bold=name == "total_loss")
    axis.set_yscale("log")
    # Room for the legend, which would otherwise lie on the highest line.
    bottom, top = axis.get_ylim()
    axis.set_ylim(bottom, top * (top / bottom) ** 0.35)
    _finish(axis, "Losses", columns=3)


def _draw_line(axis: Axes, iterations: Sequence[int], values: Sequence[float], label: str, bold: bool = False) -> None:
    # A line of one point is invisible without its marker.
    marker = "." if len(values) < 5 else None
    axis.plot(iterations, values, label=label, linewidth=2.0 if bold else 1.2, marker=marker)


def _finish(axis: Axes, title: str, columns: int = 2) -> None:
    axis.set_title(title, fontsize=10)
    axis.set_xlabel("iteration", fontsize=9)
    axis.tick_params(labelsize=8)
    axis.grid(alpha=0.3)
    if axis.lines:
        axis.legend(fontsize=7, ncol=columns)
