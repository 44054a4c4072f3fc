"""
Pictures of what a backbone selects and what a detector finds. Every function returns an array; none opens a window.

Images are (H, W, 3) uint8 in RGB order throughout.
"""

from spt_d2.visualization.grid import picture_grid, save_picture
from spt_d2.visualization.objects import draw_ground_truth, draw_predictions
from spt_d2.visualization.outputs import draw_output
from spt_d2.visualization.selections import draw_keep_mask, draw_selection, heat_legend, selection_heat

__all__ = [
    "draw_ground_truth",
    "draw_keep_mask",
    "draw_output",
    "draw_predictions",
    "draw_selection",
    "heat_legend",
    "picture_grid",
    "save_picture",
    "selection_heat",
]
