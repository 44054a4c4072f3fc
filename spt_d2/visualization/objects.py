"""Pictures of what a detector finds, and of what is annotated."""

from collections.abc import Mapping, Sequence
from typing import Any

import cv2
import numpy as np
from detectron2.data import Metadata
from detectron2.structures import BoxMode, Instances
from detectron2.utils.visualizer import GenericMask, Visualizer

# One colour per class, told apart on dark and on bright pictures; RGB in [0, 1]. Classes beyond them begin again.
_CLASS_COLORS = tuple(
    tuple(int(code[i : i + 2], 16) / 255 for i in (0, 2, 4))
    for code in ("ff5a4f", "3fd0ff", "ffd23f", "5be37d", "ff8ae2", "ff9b3d", "b79bff", "d8f060")
)


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
    # Matplotlib takes what stands between two dollar signs for a formula, and may not be able to read it.
    label = label.replace("$", r"\$")
    visualizer.draw_text(
        label,
        (x1 if left else x2, y),
        font_size=font_size,
        color=color,
        horizontal_alignment="left" if left else "right",
    )
