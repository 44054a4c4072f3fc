"""One model's output for one image: every picture that there is to draw of it."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from detectron2.data import Metadata

from spt_d2.visualization.objects import draw_predictions
from spt_d2.visualization.selections import draw_selection, selection_heat


def draw_output(
    image: np.ndarray,
    output: Mapping[str, Any],
    input_size: tuple[int, int],
    metadata: Metadata | None = None,
    *,
    score_threshold: float = 0.5,
    scale: float = 1.0,
) -> tuple[list[np.ndarray], int]:
    """
    Draw what was found and, where the backbone selects, what was selected.

    Args:
        image: as large as the output's ``instances`` say.
        output: of a detector, with ``selection`` or without.
        input_size, metadata, score_threshold, scale: as for :func:`draw_predictions` and :func:`draw_selection`.

    Returns:
        the predictions, then the heat map if there is one; the number of blocks that it counts, 0 if there is none.
    """
    pictures = [draw_predictions(image, output["instances"], metadata, score_threshold=score_threshold, scale=scale)]
    # A model of Detectron2's own has none to return.
    if "selection" not in output:
        return pictures, 0
    _, blocks = selection_heat(output["selection"], input_size)
    if blocks:
        pictures.append(draw_selection(image, output["selection"], input_size))
    return pictures, blocks
