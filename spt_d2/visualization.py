"""
Pictures of what a backbone selects and what a detector finds. Every function returns an array; none opens a window.

Images are (H, W, 3) uint8 in RGB order throughout.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Mapping, Sequence
from typing import Any

import cv2
import matplotlib
import numpy as np
from detectron2.data import Metadata
from detectron2.structures import BoxMode, Instances
from detectron2.utils.visualizer import GenericMask, Visualizer
from PIL import Image, ImageDraw, ImageFont

from spt_d2.ops.selection import ImageBlockSelection, ImageSelection

# One colour per class, told apart on dark and on bright pictures; RGB in [0, 1]. Classes beyond them begin again.
_CLASS_COLORS = tuple(
    tuple(int(code[i : i + 2], 16) / 255 for i in (0, 2, 4))
    for code in ("ff5a4f", "3fd0ff", "ffd23f", "5be37d", "ff8ae2", "ff9b3d", "b79bff", "d8f060")
)


def selection_heat(
    selection: ImageSelection, input_size: tuple[int, int], stage: int | None = None
) -> tuple[np.ndarray, int]:
    """
    Count, for each pixel, the Select and Pack blocks that kept its token (Fig. 5).

    Args:
        selection: of one image.
        input_size: (height, width) in pixels of the image as the network saw it, without padding.
        stage: count the blocks of this stage only; None counts all.

    Returns:
        (height, width) int64 counts, and the number of blocks counted, which no count exceeds.

    Raises:
        ValueError: ``input_size`` does not belong to this selection, or no block of that stage selects tokens.
    """
    blocks = _deciding(selection, stage)
    heat = np.zeros(input_size, dtype=np.int64)
    for block in blocks:
        heat += _to_pixels(block, input_size)
    return heat, len(blocks)


def _deciding(selection: ImageSelection, stage: int | None) -> list[ImageBlockSelection]:
    """The Select and Pack blocks of a stage, or of all stages; extra gates decide nothing."""
    blocks = [block for block in selection.blocks if block.keep_mask is not None]
    if stage is None:
        return blocks
    chosen = [block for block in blocks if block.stage == stage]
    if not chosen:
        stages = sorted({block.stage for block in blocks})
        raise ValueError(f"stage expects one that selects tokens: {stages}. Got {stage}.")
    return chosen


def _to_pixels(block: ImageBlockSelection, input_size: tuple[int, int]) -> np.ndarray:
    """(height, width) bool: each pixel's decision, that of the token whose cell it lies in."""
    assert block.keep_mask is not None
    keep = block.keep_mask.cpu().numpy()
    expected = tuple(-(-side // block.stride) for side in input_size)
    if keep.shape != expected:
        raise ValueError(
            "A keep mask expects as many tokens as the image has cells.\n"
            f"  keep_mask.shape: {tuple(keep.shape)}\n"
            f"  input_size     : {tuple(input_size)} at stride {block.stride}, so {expected} tokens\n"
            "HINT: pass input_size=, the size of the image after the test resize (the predictor's output has it)."
        )
    return keep.repeat(block.stride, axis=0).repeat(block.stride, axis=1)[: input_size[0], : input_size[1]]


def draw_selection(
    image: np.ndarray,
    selection: ImageSelection,
    input_size: tuple[int, int] | None = None,
    *,
    stage: int | None = None,
    alpha: float = 0.5,
    legend: bool = False,
) -> np.ndarray:
    """
    Lay the selection heat map over an image (Fig. 5): red was kept by every block, blue by none.

    Args:
        image: of any size; the map is scaled to it.
        selection: of the same image.
        input_size: (height, width) in pixels of the image as the network saw it; by default the size of ``image``.
        stage: show the blocks of this stage only.
        alpha: opacity of the map, in [0, 1].
        legend: whether to put :func:`heat_legend` below the picture.
    """
    heat, blocks = selection_heat(selection, input_size or image.shape[:2], stage)
    size = (image.shape[1], image.shape[0])
    share = cv2.resize((heat / max(blocks, 1)).astype(np.float32), size, interpolation=cv2.INTER_NEAREST)
    # On grey, so that a colour always means a count and never the picture's own colour.
    grey = cv2.cvtColor(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)
    picture = cv2.addWeighted(_heat_colors(share), alpha, grey, 1 - alpha, 0)
    return np.vstack((picture, heat_legend(image.shape[1], blocks))) if legend else picture


def _heat_colors(share: np.ndarray) -> np.ndarray:
    """RGB colours of values in [0, 1], cold to warm; both dark ends of the colour map are left out."""
    return cv2.applyColorMap(np.round(32 + share * 191).astype(np.uint8), cv2.COLORMAP_JET)[..., ::-1].copy()


def heat_legend(width: int, num_blocks: int, height: int = 30) -> np.ndarray:
    """
    Explain the colours of :func:`draw_selection`: one step per count, from 0 to ``num_blocks``.

    Args:
        width: in pixels.
        num_blocks: that the heat map counts.
        height: in pixels.
    """
    strip = Image.new("RGB", (width, height), "white")
    draw = ImageDraw.Draw(strip)
    font = _font(int(height * 0.45))
    left, right = "kept by no block", f"by all {num_blocks}"
    if width < 300:
        left, right = "0", f"{num_blocks} blocks"
    margin = height // 4
    start = margin + int(draw.textlength(left, font=font)) + margin
    stop = width - 2 * margin - int(draw.textlength(right, font=font))
    draw.text((margin, height / 2), left, "black", font=font, anchor="lm")
    draw.text((width - margin, height / 2), right, "black", font=font, anchor="rm")
    steps = num_blocks + 1
    colors = _heat_colors(np.linspace(0, 1, max(steps, 2), dtype=np.float32)[None])[0]
    edges = np.linspace(start, max(stop, start + steps), steps + 1)
    for i in range(steps):
        box = (int(edges[i]), height // 4, max(int(edges[i + 1]) - 1, int(edges[i])), height - height // 4)
        draw.rectangle(box, fill=tuple(colors[i].tolist()))
    return np.asarray(strip)


def draw_keep_mask(
    image: np.ndarray,
    selection: ImageSelection,
    stage: int,
    input_size: tuple[int, int] | None = None,
    *,
    block: int = -1,
) -> np.ndarray:
    """
    Show what one block kept: its tokens stay as they are, the others are darkened.

    Args:
        image, selection, input_size: as for :func:`draw_selection`.
        stage: of the block.
        block: index among the stage's blocks; by default the last.

    Raises:
        ValueError: the stage selects no tokens.
        IndexError: the stage has fewer blocks.
    """
    blocks = _deciding(selection, stage)
    if not -len(blocks) <= block < len(blocks):
        raise IndexError(f"draw_keep_mask(block=) expects one of {len(blocks)} blocks of stage {stage}. Got {block}.")
    keep = _to_pixels(blocks[block], input_size or image.shape[:2]).astype(np.uint8)
    scaled = cv2.resize(keep, (image.shape[1], image.shape[0]), interpolation=cv2.INTER_NEAREST)[..., None]
    return np.where(scaled.astype(bool), image, (image * 0.25).astype(np.uint8))


def draw_predictions(
    image: np.ndarray,
    instances: Instances,
    metadata: Metadata | None = None,
    *,
    score_threshold: float = 0.5,
    scale: float = 1.0,
) -> np.ndarray:
    """
    Draw boxes, masks, classes and scores.

    Args:
        image: as large as ``instances`` say.
        instances: of a model's output.
        metadata: names the classes (``thing_classes``); without them their indices are shown.
        score_threshold: what scores lower is not drawn.
        scale: of the result.
    """
    kept = instances.to("cpu")
    kept = kept[kept.scores >= score_threshold]
    masks = None
    if kept.has("pred_masks"):
        masks = [GenericMask(mask, *image.shape[:2]) for mask in kept.pred_masks.numpy()]
    labels = [
        f"{name} {score:.0%}"
        for name, score in zip(_class_names(kept.pred_classes.tolist(), metadata), kept.scores.tolist())
    ]
    return _overlay(image, kept.pred_boxes.tensor.numpy(), masks, kept.pred_classes.tolist(), labels, metadata, scale)


def draw_ground_truth(
    image: np.ndarray, record: Mapping[str, Any], metadata: Metadata | None = None, *, scale: float = 1.0
) -> np.ndarray:
    """
    Draw the annotations of a Detectron2 data set's record.

    Args:
        image: the record's image.
        record: with ``annotations``; where one has no mask, only boxes are drawn.
        metadata, scale: as for :func:`draw_predictions`.
    """
    annotations = record.get("annotations", [])
    boxes = [BoxMode.convert(a["bbox"], a["bbox_mode"], BoxMode.XYXY_ABS) for a in annotations]
    classes = [a["category_id"] for a in annotations]
    masks = None
    if all(a.get("segmentation") for a in annotations):
        masks = [GenericMask(a["segmentation"], *image.shape[:2]) for a in annotations]
    crowd = ["|crowd" if a.get("iscrowd", 0) else "" for a in annotations]
    labels = [name + suffix for name, suffix in zip(_class_names(classes, metadata), crowd)]
    return _overlay(image, np.asarray(boxes, dtype=np.float64).reshape(-1, 4), masks, classes, labels, metadata, scale)


def _class_names(classes: Sequence[int], metadata: Metadata | None) -> list[str]:
    names = metadata.get("thing_classes", None) if metadata is not None else None
    return [names[c] if names and c < len(names) else str(c) for c in classes]


def _overlay(
    image: np.ndarray,
    boxes: np.ndarray,
    masks: list[GenericMask] | None,
    classes: Sequence[int],
    labels: list[str],
    metadata: Metadata | None,
    scale: float,
) -> np.ndarray:
    """Detectron2's drawing in fixed class colours; its own are random, and two pictures could not be compared."""
    # Enlarged beforehand: the Visualizer would show the pixels of a small picture as squares.
    height, width = image.shape[:2]
    size = (round(width * scale), round(height * scale))
    interpolation = cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC
    canvas = cv2.resize(image, size, interpolation=interpolation)
    factor = np.array([size[0] / width, size[1] / height])
    if masks is not None:
        polygons = [[points.reshape(-1, 2) * factor for points in mask.polygons] for mask in masks]
        scaled = [GenericMask([p.reshape(-1) for p in parts], size[1], size[0]) for parts in polygons]
    else:
        scaled = None
    visualizer = Visualizer(canvas, metadata)
    colors = [_CLASS_COLORS[c % len(_CLASS_COLORS)] for c in classes]
    boxes = boxes * np.tile(factor, 2)
    visualizer.overlay_instances(boxes=boxes, masks=scaled, assigned_colors=colors, alpha=0.35)
    # Last first: a detector's most confident label comes first, and is to lie on top.
    for box, label, color in list(zip(boxes, labels, colors))[::-1]:
        _draw_label(visualizer, box, label, color, size)
    return np.ascontiguousarray(visualizer.get_output().get_image())


def _draw_label(
    visualizer: Visualizer, box: np.ndarray, label: str, color: tuple[float, ...], size: tuple[int, int]
) -> None:
    """Below a box, or above it at the picture's lower border; Detectron2's own labels are cut off at the right one."""
    x1, y1, x2, y2 = box.tolist()
    font_size = visualizer._default_font_size * 0.75
    # A line of text with its frame is about twice as high as its letters.
    line = 2 * font_size
    y = y2 if y2 + line < size[1] else max(y1 - line, 0)
    left = x1 + x2 < size[0]
    visualizer.draw_text(
        label,
        (x1 if left else x2, y),
        font_size=font_size,
        color=color,
        horizontal_alignment="left" if left else "right",
    )


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
    font = _font(int(header * 0.55))
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
def _font(size: int) -> ImageFont.FreeTypeFont:
    """The font that matplotlib brings along: there on every machine."""
    path = os.path.join(matplotlib.get_data_path(), "fonts", "ttf", "DejaVuSans.ttf")
    return ImageFont.truetype(path, max(size, 8))


def save_picture(path: str | os.PathLike[str], picture: np.ndarray) -> None:
    """Write an RGB picture; the folder is made if missing."""
    os.makedirs(os.path.dirname(os.path.abspath(path)), exist_ok=True)
    Image.fromarray(picture).save(path)
