"""Containers beside the usual form, padding every image to the batch's most tokens: the same outputs, other times."""

import copy
import dataclasses
import functools
import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from spt_d2.benchmark.attention import SELECTING
from spt_d2.benchmark.cases import Case
from spt_d2.benchmark.models import build_own, dense_weights
from spt_d2.benchmark.planting import planted_ranks
from spt_d2.benchmark.steps import step
from spt_d2.layers.block import SelectPackBlock
from spt_d2.layers.linear import apply_linear
from spt_d2.ops.packing import pack_layout
from spt_d2.ops.padding import pad_layout

# Of four images in one batch.
KEEP_RATIOS = (0.05, 0.1, 0.3, 0.9)
STAGE = 3
# MODEL.SPT.PACKING, by row name. The first is what others are compared with.
FORMS = {"padded": "padded", "packed": "containers"}


def branch(block: SelectPackBlock, normed: Tensor, keep_mask: Tensor) -> Tensor:
    """
    What attention adds to the residual stream, as a Select and Pack block computes it.

    Args:
        block: its attention and options are read.
        normed: (B, H, W, C).
        keep_mask: (B, H, W) bool.

    Returns:
        (B, H, W, C), zero for tokens that are not kept.
    """
    options = block.options
    layout = pack_layout(
        keep_mask,
        container_size=options.container_length,
        window_size=options.window_size,
        shift_size=block.shift_size,
        order=options.order,
        segment=options.segment,
    )
    if options.packing == "padded":
        layout = pad_layout(layout)
    flat = normed.flatten(0, 2)
    tokens = layout.pad(flat.index_select(0, layout.keep_indices))
    attended = layout.unpad(apply_linear(block.attn.proj, block.attn(tokens, layout.rows)))
    added = torch.zeros_like(flat, dtype=attended.dtype).index_add(0, layout.keep_indices, attended)
    return added.view(normed.shape)


def with_packing(block: SelectPackBlock, packing: str) -> SelectPackBlock:
    """The block, its weights shared, under another value of ``packing``."""
    other = copy.copy(block)
    other.options = dataclasses.replace(block.options, packing=packing)
    return other


def kept_of_each(image_size: tuple[int, int], keep_ratios: Sequence[float]) -> Tensor:
    """(B, H, W) bool on the grid of stage 3: image i keeps share i, in blobs."""
    masks = [planted_ranks(image_size, {STAGE: ratio}, seed)[STAGE] > 0 for seed, ratio in enumerate(keep_ratios)]
    return torch.stack(masks)


def packing_cases(
    *,
    keep_ratios: Sequence[float] = KEEP_RATIOS,
    image_sizes: Sequence[tuple[int, int]],
    device: torch.device,
    dtype: str = "float32",
    modes: Sequence[str] = ("inference",),
    overrides: Mapping[str, Any] | None = None,
) -> list[Case]:
    """
    The attention branch of a stage-3 block under each of :data:`FORMS`, from the keep mask to the residual stream.

    Args: as :func:`spt_d2.benchmark.backbone.backbone_cases`, and
        keep_ratios: one for each image of the batch.
        modes: of :data:`spt_d2.benchmark.steps.MODES`.
    """
    overrides = overrides or {}
    spt: Any = build_own(SELECTING, overrides, dense_weights(overrides)).to(device)
    block = spt.layers[STAGE - 1].blocks[0]
    cases = []
    for image_size, mode in itertools.product(image_sizes, modes):
        keep_mask = kept_of_each(image_size, keep_ratios).to(device)
        generator = torch.Generator().manual_seed(0)
        x = torch.randn(*keep_mask.shape, block.attn.qkv.in_features, generator=generator).to(device)
        for i, (name, packing) in enumerate(FORMS.items()):
            form = with_packing(block, packing)
            cases.append(
                Case(
                    entry=step(
                        form,
                        functools.partial(_output, form, x, mode == "training", keep_mask),
                        device,
                        dtype=dtype,
                        training=mode == "training",
                    ),
                    name=name,
                    keep_ratio=list(keep_ratios),
                    mode=mode,
                    batch=len(keep_ratios),
                    image_size=image_size,
                    dtype=dtype,
                    is_peer=i == 0,
                )
            )
    return cases


def _output(block: SelectPackBlock, x: Tensor, training: bool, keep_mask: Tensor) -> dict[str, Tensor]:
    # A leaf without a gradient from earlier rounds.
    return {"branch": branch(block, x.detach().requires_grad_(training), keep_mask)}
