"""
Selection labels: which tokens show an object (Sec. 3.2, App. B.3).

Label values: 1 object, 0 background, 255 ignored. The token (i, j) of stride s covers the pixels
[i*s, (i+1)*s) x [j*s, (j+1)*s), and is positive if at least one of them belongs to an object.

Shape shorthand in this module:

    n: boxes    h, w: image in pixels    Hs, Ws = ceil(h / s), ceil(w / s): its tokens    B: images
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from spt_d2.ops.losses import IGNORE

# Where labels come from: masks where an annotation has one, else its box; boxes; masks.
LABEL_SOURCES = ("auto", "box", "mask")


def box_labels(boxes: Tensor, image_size: tuple[int, int], stride: int) -> Tensor:
    """
    Tokens that a union of boxes overlaps by at least one pixel.

    The interval [x1, x2) covers pixel j when floor(x1) <= j < ceil(x2). Boxes are clipped to the image; what is empty
    then covers nothing. Rows and columns separate, so the cost is one (Hs, n) x (n, Ws) product and no pixel is drawn.

    Args:
        boxes: (n, 4) XYXY in absolute pixels, any float dtype.
        image_size: (h, w).
        stride: pixels per token; 1 gives the pixel mask.

    Returns:
        (Hs, Ws) uint8, 1 or 0.

    Raises:
        ValueError: wrong shape or dtype, a coordinate that is not finite, a stride below 1, an empty image.

    Example:
        >>> box_labels(torch.tensor([[7.5, 0.0, 16.0, 8.0]]), (16, 24), 8)
        tensor([[1, 1, 0],
                [0, 0, 0]], dtype=torch.uint8)
    """
    h, w = _check_size("box_labels", image_size, stride)
    if boxes.dim() != 2 or boxes.shape[1] != 4 or not boxes.is_floating_point():
        raise ValueError(
            "box_labels(boxes=) expects (n, 4) XYXY boxes of a float dtype.\n"
            f"  boxes.shape: {tuple(boxes.shape)}\n  boxes.dtype: {boxes.dtype}"
        )
    finite = torch.isfinite(boxes).all(dim=1)
    if not finite.all():
        index = int((~finite).nonzero()[0])
        raise ValueError(
            f"box_labels(boxes=) expects finite coordinates. Got {boxes[index].tolist()} at index {index}."
        )
    x1, x2 = boxes[:, 0].clamp(0, w), boxes[:, 2].clamp(0, w)
    y1, y2 = boxes[:, 1].clamp(0, h), boxes[:, 3].clamp(0, h)
    solid = (x2 > x1) & (y2 > y1)
    columns = _overlapped(x1, x2, w, stride)
    rows = _overlapped(y1, y2, h, stride) & solid[:, None]
    # Counts of boxes per token: whole numbers, exact in float32 for any number of boxes there is memory for.
    return (rows.float().T @ columns.float() > 0).to(torch.uint8)


def _overlapped(low: Tensor, high: Tensor, size: int, stride: int) -> Tensor:
    """(n, ceil(size / stride)) bool: cells that hold a pixel of [low, high)."""
    first = low.floor().long() // stride
    last = (high.ceil().long() - 1) // stride
    cells = torch.arange(-(-size // stride), device=low.device)
    return (cells >= first[:, None]) & (cells <= last[:, None])


def pool_labels(labels: Tensor, factor: int) -> Tensor:
    """
    Coarsen labels: a cell is object (1) if any of its parts is, else ignored (255) if any is, else background (0).

    Cells that are cut by the border count with the parts they have.

    Args:
        labels: (h, w) uint8 of the values above, or bool, True for object: pixels, or tokens of a finer stride.
        factor: rows and columns of ``labels`` per cell.

    Returns:
        (ceil(h / factor), ceil(w / factor)) uint8.
    """
    if labels.dim() != 2 or labels.dtype not in (torch.bool, torch.uint8):
        raise ValueError(
            f"pool_labels(labels=) expects (h, w) bool or uint8. Got shape {tuple(labels.shape)}, {labels.dtype}."
        )
    h, w = _check_size("pool_labels", (labels.shape[0], labels.shape[1]), factor)
    if labels.dtype == torch.bool:
        labels = labels.view(torch.uint8)
    if factor == 1:
        return labels.clone()
    if h % factor or w % factor:
        labels = F.pad(labels, (0, -w % factor, 0, -h % factor))
    # Negated modulo 256 the values rank as they should: background 0, ignored 1, object 255. Rows go first: their
    # maximum is taken over whole contiguous lines.
    ranks = -labels
    ranks = ranks.view(-1, factor, ranks.shape[1]).amax(dim=1)
    return -ranks.view(ranks.shape[0], -1, factor).amax(dim=2)


def combine_labels(objects: Tensor, ignored: Tensor) -> Tensor:
    """
    Join object and ignore regions into one label: 1 where an object is, else 255 where ignored, else 0.

    Args:
        objects: (Hs, Ws) bool or uint8, nonzero where an object is.
        ignored: the same for crowds and ignored regions.

    Returns:
        (Hs, Ws) uint8.
    """
    if objects.shape != ignored.shape:
        raise ValueError(
            "combine_labels expects two maps of one shape.\n"
            f"  objects.shape: {tuple(objects.shape)}\n  ignored.shape: {tuple(ignored.shape)}"
        )
    return (ignored.bool().to(torch.uint8) * IGNORE).masked_fill_(objects.bool(), 1)


def stack_selection_labels(
    labels: Sequence[dict[int, Tensor]], tensor_size: tuple[int, int], device: torch.device | str | None = None
) -> dict[int, Tensor]:
    """
    Make the batch's labels from those of its images, padded right and bottom as Detectron2's ImageList pads images.

    Args:
        labels: one ``{stride: (ceil(h / stride), ceil(w / stride)) uint8}`` per image, as the mapper gives them.
        tensor_size: (H, W) in pixels of the padded network input.
        device: where the result is to be; that of the labels if None.

    Returns:
        ``{stride: (B, ceil(H / stride), ceil(W / stride)) uint8}``, for every stride; the padding is 255, ignored.

    Raises:
        ValueError: no images, images with different strides, a label that does not fit into the padded size.
    """
    if not labels:
        raise ValueError("stack_selection_labels(labels=) expects at least one image. Got none.")
    strides = sorted(labels[0])
    for index, image_labels in enumerate(labels):
        if sorted(image_labels) != strides:
            raise ValueError(
                "stack_selection_labels(labels=) expects the same strides in every image.\n"
                f"  image 0: {strides}\n  image {index}: {sorted(image_labels)}"
            )
    height, width = tensor_size
    stacked = {}
    for stride in strides:
        rows, columns = -(-height // stride), -(-width // stride)
        # Filled on the host and moved once: a batch is one copy per stride, whatever its size.
        batch = torch.full((len(labels), rows, columns), IGNORE, dtype=torch.uint8, device=labels[0][stride].device)
        for index, image_labels in enumerate(labels):
            label = image_labels[stride]
            if label.dim() != 2 or label.dtype != torch.uint8:
                raise ValueError(
                    f"stack_selection_labels(labels=) expects (Hs, Ws) uint8 at stride {stride}. "
                    f"Got shape {tuple(label.shape)}, {label.dtype} in image {index}."
                )
            if label.shape[0] > rows or label.shape[1] > columns:
                raise ValueError(
                    "stack_selection_labels(labels=) expects labels that fit into the padded input.\n"
                    f"  label.shape: {tuple(label.shape)} at stride {stride}, image {index}\n"
                    f"  largest    : {(rows, columns)} for tensor_size {(height, width)}"
                )
            batch[index, : label.shape[0], : label.shape[1]] = label
        stacked[stride] = batch if device is None else batch.to(device, non_blocking=True)
    return stacked


def _check_size(name: str, image_size: tuple[int, int], stride: int) -> tuple[int, int]:
    h, w = image_size
    if h < 1 or w < 1:
        raise ValueError(f"{name} expects an image of at least one pixel. Got (h, w) = {(h, w)}.")
    if stride < 1:
        raise ValueError(f"{name}(stride=) expects at least 1 pixel. Got {stride}.")
    return h, w
