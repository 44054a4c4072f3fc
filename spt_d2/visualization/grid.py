"""Pictures in a grid, and pictures as files."""

import functools
import os
from collections.abc import Sequence

import matplotlib
import numpy as np
from PIL import Image, ImageDraw, ImageFont


def picture_grid(
    rows: Sequence[Sequence[np.ndarray]], titles: Sequence[str], *, groups: int = 1, legend: np.ndarray | None = None
) -> np.ndarray:
    """
    Arrange pictures in a grid with a title above each column.

    Args:
        rows: of pictures, as many in each as there are titles; every picture is fitted into the first one's size.
        titles: of the columns.
        groups: rows placed side by side, to make a tall grid wide; the titles are repeated.
        legend: a picture put below the grid, as wide as it or narrower.

    Raises:
        ValueError: no rows, or one with another number of pictures.
    """
    if not rows or any(len(row) != len(titles) for row in rows):
        counts = [len(row) for row in rows]
        raise ValueError(f"picture_grid(rows=) expects rows of {len(titles)} pictures each. Got {counts}.")
    height, width = rows[0][0].shape[:2]
    gap, wide_gap = max(width // 60, 2), max(width // 15, 8)
    header = max(width // 10, 16)
    per_row = width * len(titles) + gap * (len(titles) - 1)
    lines = -(-len(rows) // groups)
    total_width = per_row * groups + wide_gap * (groups - 1) + 2 * gap
    bottom = 0 if legend is None else legend.shape[0] + gap
    canvas = Image.new("RGB", (total_width, header + lines * (height + gap) + bottom), "white")
    draw = ImageDraw.Draw(canvas)
    font = label_font(int(header * 0.55))
    for group in range(groups):
        for column, title in enumerate(titles):
            left = gap + group * (per_row + wide_gap) + column * (width + gap)
            draw.text((left + width / 2, header / 2), title, "black", font=font, anchor="mm")
            for line, row in enumerate(rows[group * lines : (group + 1) * lines]):
                canvas.paste(_fit(row[column], width, height), (left, header + line * (height + gap)))
    if legend is not None:
        canvas.paste(Image.fromarray(legend), ((total_width - legend.shape[1]) // 2, canvas.height - legend.shape[0]))
    return np.asarray(canvas)


def _fit(picture: np.ndarray, width: int, height: int) -> Image.Image:
    """The picture at its own proportions on a grey ground."""
    scale = min(width / picture.shape[1], height / picture.shape[0])
    size = (max(round(picture.shape[1] * scale), 1), max(round(picture.shape[0] * scale), 1))
    ground = Image.new("RGB", (width, height), (128, 128, 128))
    ground.paste(Image.fromarray(picture).resize(size), ((width - size[0]) // 2, (height - size[1]) // 2))
    return ground


@functools.lru_cache
def label_font(size: int) -> ImageFont.FreeTypeFont:
    """The font that matplotlib brings along: there on every machine."""
    path = os.path.join(matplotlib.get_data_path(), "fonts", "ttf", "DejaVuSans.ttf")
    return ImageFont.truetype(path, max(size, 8))


def save_picture(path: str | os.PathLike[str], picture: np.ndarray) -> None:
    """Write an RGB picture; the folder is made if missing."""
    os.makedirs(os.path.dirname(os.path.abspath(path)), exist_ok=True)
    Image.fromarray(picture).save(path)
