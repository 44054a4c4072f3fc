"""Pictures of what a backbone selects."""

import cv2
import numpy as np
from PIL import Image, ImageDraw

from spt_d2.ops.selection import ImageBlockSelection, ImageSelection
from spt_d2.visualization.grid import label_font


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
    font = label_font(int(height * 0.45))
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
