"""The figures of data sets as a picture: object-to-pixel ratios, and object tokens over strides."""

from collections.abc import Mapping

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from spt_d2.data.coco_stats import DatasetStats
from spt_d2.data.sparse_subset import SPARSE_RATIO

_LINES = ("-", "--", ":")


def draw_stats(stats: Mapping[str, DatasetStats]) -> np.ndarray:
    """
    Draw data sets side by side.

    Left, the share of images whose ratio (union) is at most so large, as a curve per set, with the paper's bound of
    sparse images; right, the object-token density over the strides.

    Args:
        stats: by the title in the legend.

    Returns:
        (H, W, 3) uint8 RGB.
    """
    # The legend stands beside the axes, and takes a line of 0.19 inches per set.
    figure = Figure(figsize=(12, max(4, 0.6 + 0.19 * len(stats))), dpi=110, layout="constrained")
    ratios, tokens = figure.subplots(1, 2)
    for number, (title, stat) in enumerate(stats.items()):
        # Colours repeat after ten.
        style = {"color": f"C{number % 10}", "linestyle": _LINES[number // 10 % len(_LINES)]}
        values = np.sort(stat.unions)
        ratios.step(np.append(0, values), np.linspace(0, 1, len(values) + 1), where="post", label=title, **style)
        density = {stride: counts[:, 0].sum() / max(counts[:, 1].sum(), 1) for stride, counts in stat.tokens.items()}
        tokens.plot(list(density), list(density.values()), marker="o", **style)
    ratios.axvline(SPARSE_RATIO, color="grey", linestyle=":", linewidth=1)
    ratios.set(xlim=(0, 1), ylim=(0, 1.02), xlabel="object-to-pixel ratio (union)", ylabel="share of images up to it")
    ratios.set_title("How much of an image objects cover", fontsize=10)
    strides = sorted({stride for stat in stats.values() for stride in stat.tokens})
    tokens.set_xscale("log", base=2)
    tokens.set_xticks(strides, [str(stride) for stride in strides])
    tokens.set(xlabel="stride, pixels per token", ylabel="share of tokens on objects")
    tokens.set_ylim(bottom=0)
    tokens.set_title("Object-token density: what a perfect gate keeps", fontsize=10)
    for axis in (ratios, tokens):
        axis.grid(alpha=0.3)
        axis.tick_params(labelsize=8)
    if stats:
        figure.legend(*ratios.get_legend_handles_labels(), loc="outside right upper", fontsize=8)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()
