"""
Decide which tokens are kept (eq. 4-6, App. A), and what a decision looks like to the outside.

Shape shorthand in this module:

    B: images    H, W: token grid    N = H * W
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from spt_d2.ops.packing import PackedLayout

NOISES = ("logistic", "gumbel", "none")
SELECTS = ("gate", "topk", "random", "oracle", "all")


@dataclass(frozen=True)
class BlockSelection:
    """
    What one gate said of a batch, and which tokens its block kept.

    A backbone whose losses need more derives a class of its own from this one.

    Attributes:
        stage: 1 to 4.
        block: index of the block in its stage; None for an extra gate on a stage's output, which decides nothing.
        stride: pixels per token.
        score: (B, H, W) logits, after the maximum with the stage before (eq. 4); of SPT's peers, whatever they rank
            tokens by.
        keep_mask: (B, H, W) bool; None for an extra gate.
        valid: (B, H, W) bool, False for tokens wholly in the padding of the batch.
        layout: how the kept tokens were packed; None for an extra gate, and where a decision packs nothing.
    """

    stage: int
    block: int | None
    stride: int
    score: Tensor
    keep_mask: Tensor | None
    valid: Tensor
    layout: PackedLayout | None

    def pairs_of_image(self, i: int) -> tuple[float, float]:
        """Query-key pairs of image ``i``, executed and useful: its share of the layout's, 0 where there is none."""
        layout = self.layout
        if layout is None:
            return 0.0, 0.0
        return layout.rows.share_of(i) * layout.executed_pairs, layout.share_of(i) * layout.useful_pairs


@dataclass(frozen=True)
class ImageBlockSelection:
    """
    :class:`BlockSelection` of one image, its padding cut off.

    Attributes:
        score: (h, w) logits.
        keep_mask: (h, w) bool, or None.
        kept: number of tokens kept.
        executed_pairs: query-key pairs in containers, the image's share of the batch's (by kept tokens; its own where
            segments are whole images; an equal one where tokens are padded, for then every image computes as many).
        useful_pairs: query-key pairs within segments, likewise, and never of padding.
        padding: empty slots that projections run on beside the kept tokens, where tokens are padded to as many as the
            batch's fullest image keeps.
    """

    stage: int
    block: int | None
    stride: int
    score: Tensor
    keep_mask: Tensor | None
    kept: int
    executed_pairs: float
    useful_pairs: float
    padding: int = 0


@dataclass(frozen=True)
class ImageSelection:
    """
    All decisions a backbone took on one image.

    Attributes:
        blocks: in the order they were taken; empty for a dense backbone.
        tensor_size: (height, width) in pixels of the padded network input.
    """

    blocks: list[ImageBlockSelection]
    tensor_size: tuple[int, int]


def split_selections(
    selections: Sequence[BlockSelection], image_sizes: Sequence[tuple[int, int]], tensor_size: tuple[int, int]
) -> list[ImageSelection]:
    """
    One :class:`ImageSelection` per image.

    Args:
        selections: of a batch.
        image_sizes: (height, width) in pixels of each image, without padding.
        tensor_size: (height, width) in pixels of the batch tensor.
    """
    images = []
    for i, (height, width) in enumerate(image_sizes):
        blocks = []
        for selection in selections:
            h, w = -(-height // selection.stride), -(-width // selection.stride)
            kept, layout = 0, selection.layout
            if layout is not None:
                kept = layout.counts[i]
            elif selection.keep_mask is not None:
                kept = int(selection.keep_mask[i].sum())
            executed_pairs, useful_pairs = selection.pairs_of_image(i)
            blocks.append(
                ImageBlockSelection(
                    stage=selection.stage,
                    block=selection.block,
                    stride=selection.stride,
                    score=selection.score[i, :h, :w],
                    keep_mask=None if selection.keep_mask is None else selection.keep_mask[i, :h, :w],
                    kept=kept,
                    executed_pairs=executed_pairs,
                    useful_pairs=useful_pairs,
                    padding=layout.rows.counts[i] - kept if layout else 0,
                )
            )
        images.append(ImageSelection(blocks=blocks, tensor_size=tensor_size))
    return images


def valid_tokens(
    image_sizes: Sequence[tuple[int, int]] | None,
    grid_size: Sequence[int],
    stride: int,
    batch: int,
    device: torch.device,
) -> Tensor:
    """
    (B, H, W) bool: tokens whose cell holds at least one pixel of their image; all True without ``image_sizes``.

    Args:
        image_sizes: (height, width) in pixels of each image, without padding.
        grid_size: (H, W) of the token grid.
        stride: pixels per token.
    """
    height, width = grid_size
    if image_sizes is None:
        return torch.ones(batch, height, width, dtype=torch.bool, device=device)
    if len(image_sizes) != batch:
        raise ValueError(f"image_sizes expects one size per image. Got {len(image_sizes)} for a batch of {batch}.")
    limits = torch.tensor([[-(-h // stride), -(-w // stride)] for h, w in image_sizes], dtype=torch.long)
    limits = limits.to(device, non_blocking=True)
    rows = torch.arange(height, device=device)[None, :] < limits[:, :1]
    cols = torch.arange(width, device=device)[None, :] < limits[:, 1:]
    return rows[:, :, None] & cols[:, None, :]


def pool_scores(score: Tensor, valid: Tensor) -> Tensor:
    """
    Scores for the next stage: 2x2 maximum over valid tokens, partial cells at the border included (Sec. 3.2).

    Args:
        score: (B, H, W) logits.
        valid: (B, H, W) bool.

    Returns:
        (B, ceil(H/2), ceil(W/2)) logits, -inf where a cell holds no valid token.
    """
    score = score.masked_fill(~valid, -math.inf)
    return F.max_pool2d(score.unsqueeze(1), kernel_size=2, stride=2, ceil_mode=True).squeeze(1)


def selection_noise(score: Tensor, noise: str) -> Tensor | None:
    """
    Noise of the relaxed decision, one sample per token, or None.

    ``logistic`` is the difference of two Gumbel samples: ``sigmoid((score + noise) / tau)`` is then exactly the binary
    Gumbel-Softmax (Jang et al., 2016). ``gumbel`` is one sample, biased towards keeping (mean 0.577).
    """
    if noise == "none":
        return None
    if noise not in NOISES:
        raise ValueError(f"noise expects one of {NOISES}. Got {noise!r}.")
    # Clamped away from 0 and 1 so that no logarithm is infinite.
    uniform = torch.rand_like(score, dtype=torch.float32).clamp_(1e-6, 1 - 1e-6)
    return torch.logit(uniform) if noise == "logistic" else -torch.log(-torch.log(uniform))


def select_tokens(
    score: Tensor,
    valid: Tensor,
    *,
    select: str = "gate",
    threshold: float = 0.01,
    tau: float = 1.0,
    noise: str = "none",
    keep_ratio: float = 1.0,
    token_budget: int = 0,
    labels: Tensor | None = None,
    seed: int | None = None,
) -> tuple[Tensor, Tensor]:
    """
    The keep rule (eq. 6, App. A): ``sigmoid((score + noise) / tau) > threshold``, and its controls.

    Args:
        score: (B, H, W) logits.
        valid: (B, H, W) bool; tokens that are not valid are never kept.
        select: ``gate`` (the rule above), ``topk`` (per image the ceil(keep_ratio * valid tokens) of highest score),
            ``random`` (as many, uniformly), ``oracle`` (those labelled 1) or ``all``.
        threshold: probability in [0, 1).
        tau: temperature, > 0.
        noise: see :func:`selection_noise`; pass ``none`` outside training.
        keep_ratio: in (0, 1], for ``topk`` and ``random``.
        token_budget: the most tokens kept of an image, 0 for no limit. Where ``select`` keeps more, whatever it is,
            those of highest score stay, ties by raster order: the number of tokens, and so the time, has a bound. Pass
            0 in training: the relaxed decision knows a token's own score only, not who took its place.
        labels: (B, H, W) uint8 selection labels, for ``oracle``.
        seed: ``random`` then draws the same tokens at every call, in every image of a size, whatever batch and padding
            it is in; for evaluation, where each block has its own. None draws from torch's generator.

    Returns:
        keep_mask (B, H, W) bool, and soft (B, H, W): the relaxed decision, in (0, 1).
    """
    sample = selection_noise(score, noise)
    logits = (score if sample is None else score + sample) / tau
    soft = torch.sigmoid(logits)
    if select == "gate":
        keep = soft > threshold
    elif select == "topk":
        keep = _highest(logits, valid, _share(valid, keep_ratio))
    elif select == "random":
        keep = _highest(_random_rank(valid, seed), valid, _share(valid, keep_ratio))
    elif select == "oracle":
        if labels is None:
            raise ValueError(
                "select='oracle' expects selection labels at this stride. Got none.\n"
                "HINT: use SelectionDatasetMapper, whose inputs carry 'selection_labels', in training and evaluation."
            )
        keep = labels == 1
    elif select == "all":
        keep = torch.ones_like(valid)
    else:
        raise ValueError(f"select expects one of {SELECTS}. Got {select!r}.")
    keep = keep & valid
    if token_budget < 0:
        raise ValueError(f"token_budget expects 0 (no limit) or more tokens. Got {token_budget}.")
    if token_budget:
        keep = _highest(score, keep, keep.flatten(1).sum(dim=1).clamp(max=token_budget))
    return keep, soft


def _random_rank(valid: Tensor, seed: int | None) -> Tensor:
    """(B, H, W) float32 in [0, 1); under a seed the n-th valid token of every image has the n-th number."""
    if seed is None:
        return torch.rand(valid.shape, device=valid.device)
    number = valid.flatten(1).cumsum(dim=1).sub_(1).clamp_(min=0)
    drawn = torch.rand(number.shape[1], generator=torch.Generator().manual_seed(seed), device="cpu")
    return drawn.to(valid.device)[number].view(valid.shape)


def _share(valid: Tensor, ratio: float) -> Tensor:
    """(B,) long: ceil(ratio * valid tokens) of each image."""
    # In whole millionths: float32 would round 0.09 * 600 up to 55, and not every device has float64.
    millionths = max(round(ratio * 1_000_000), 1)
    return (valid.flatten(1).sum(dim=1) * millionths + 999_999) // 1_000_000


def _highest(rank: Tensor, among: Tensor, counts: Tensor) -> Tensor:
    """Per image, the ``counts`` tokens of highest rank among those marked; ties go to the first in raster order."""
    flat = rank.detach().masked_fill(~among, -math.inf).flatten(1)
    order = torch.argsort(flat, dim=1, descending=True, stable=True)
    position = torch.arange(flat.shape[1], device=flat.device).expand_as(flat)
    keep = torch.zeros_like(flat, dtype=torch.bool)
    keep.scatter_(1, order, position < counts[:, None])
    return keep.view_as(among)
