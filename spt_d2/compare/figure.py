"""A comparison as a picture: accuracy against what it costs."""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from spt_d2.compare.front import pareto_front
from spt_d2.compare.report import POOLED, Row

_FRONT = "on the Pareto front"
_MARKERS = "osD^vP*X<>hpd8"


def draw_comparison(rows: Sequence[Row], reference: str) -> np.ndarray:
    """
    One panel per data set: box AP against executed multiply-adds, a marker per variant, bars of one standard error.

    With several data sets one more, pooled: paired difference in AP from the reference against multiply-adds as a
    multiple of the reference's. So too a data set whose variants have different seeds: their AP would compare these.
    Variants on the Pareto front of a panel are ringed.

    Args:
        rows: of :func:`spt_d2.compare.report.report_rows`.
        reference: the variant that differences are taken from.

    Returns:
        uint8 (height, width, 3), RGB.
    """
    panels = list(dict.fromkeys(row.data_set for row in rows))
    variants = list(dict.fromkeys(row.variant for row in rows))
    styles = {name: (_MARKERS[i % len(_MARKERS)], f"C{i % 10}") for i, name in enumerate(variants)}
    columns = 2 if len(panels) == 4 else min(3, len(panels))
    lines = -(-len(panels) // columns)
    # The legend stands beside the panels: there may be many variants.
    figure = Figure(figsize=(4.2 * columns + 2.2, 3.6 * lines), dpi=110, layout="constrained")
    axes = np.asarray(figure.subplots(lines, columns, squeeze=False)).reshape(-1)
    front = pareto_front(rows)
    for axis, panel in zip(axes, panels):
        ringed = {variant for data_set, variant in front if data_set == panel}
        points = [row for row in rows if row.data_set == panel]
        if panel == POOLED or _only_differences_compare(points, reference):
            _draw_differences(axis, points, reference, styles, ringed)
        else:
            _draw_accuracies(axis, points, styles, ringed)
        axis.grid(alpha=0.3)
        axis.tick_params(labelsize=8)
    for axis in axes[len(panels) :]:
        axis.set_visible(False)
    found = {label: handle for axis in axes for handle, label in zip(*axis.get_legend_handles_labels())}
    if found:
        names = [name for name in (*variants, _FRONT) if name in found]
        figure.legend([found[name] for name in names], names, loc="outside right upper", fontsize=7)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def _only_differences_compare(points: Sequence[Row], reference: str) -> bool:
    """Whether variants differ in their seeds, and each has a pair with the reference."""
    paired = all(row.variant == reference or (row.box is not None and row.cost is not None) for row in points)
    return paired and len({row.seeds for row in points}) > 1


def _draw_accuracies(
    axis: Axes, points: Sequence[Row], styles: Mapping[str, tuple[str, str]], ringed: Container[str]
) -> None:
    for row in points:
        accuracy, macs = row.figures.get("box_AP"), row.figures.get("executed_macs_g")
        if accuracy is not None and macs is not None:
            _draw(axis, macs.mean, accuracy.mean, accuracy.error, row.variant, styles, macs.error)
            if row.variant in ringed:
                _ring(axis, macs.mean, accuracy.mean)
    axis.set_title(points[0].data_set, fontsize=10)
    axis.set_xlabel("backbone, executed GMACs an image", fontsize=9)
    axis.set_ylabel("box AP, %", fontsize=9)


def _draw_differences(
    axis: Axes, points: Sequence[Row], reference: str, styles: Mapping[str, tuple[str, str]], ringed: Container[str]
) -> None:
    for row in points:
        if row.variant == reference:
            x, y, error = 1.0, 0.0, None
        elif row.box is not None and row.cost is not None:
            x, y, error = row.cost, row.box.mean, row.box.error
        else:
            continue
        _draw(axis, x, y, error, row.variant, styles)
        if row.variant in ringed:
            _ring(axis, x, y)
    axis.axhline(0.0, color="grey", linewidth=0.8)
    name = "all" if points[0].data_set == POOLED else points[0].data_set
    axis.set_title(f"{name}, paired with {reference}", fontsize=10)
    axis.set_xlabel(f"executed MACs over those of {reference}", fontsize=9)
    axis.set_ylabel("difference in box AP", fontsize=9)


def _draw(
    axis: Axes,
    x: float,
    y: float,
    error: float | None,
    variant: str,
    styles: Mapping[str, tuple[str, str]],
    x_error: float | None = None,
) -> None:
    marker, color = styles[variant]
    axis.errorbar(
        x, y, yerr=error, xerr=x_error, marker=marker, color=color, label=variant, linestyle="none", markersize=7,
        capsize=3, linewidth=1,
    )  # fmt: skip


def _ring(axis: Axes, x: float, y: float) -> None:
    axis.plot(x, y, marker="o", color="black", fillstyle="none", markersize=13, linestyle="none", label=_FRONT)
