"""Containers beside the usual form, padding every image to the batch's most tokens: the same outputs, other times."""

import functools
import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from spt_d2.benchmark.attention import SELECTING
from spt_d2.benchmark.cases import Case
from spt_d2.benchmark.models import build_own, dense_weights
from spt_d2.benchmark.planting import planted_ranks
from spt_d2.benchmark.steps import step
from spt_d2.layers.block import SelectPackBlock
from spt_d2.layers.select_pack_attention import SelectPackAttention
from spt_d2.ops.packing import PackedLayout, pack_layout

# Of four images in one batch.
KEEP_RATIOS = (0.05, 0.1, 0.3, 0.9)
STAGE = 3


def packed_branch(block: SelectPackBlock, normed: Tensor, keep_mask: Tensor) -> Tensor:
    """
    What attention adds to the residual stream, as Select and Pack blocks compute it.

    Args:
        block: its attention and options are read.
        normed: (B, H, W, C).
        keep_mask: (B, H, W) bool.

    Returns:
        (B, H, W, C), zero for tokens that are not kept.
    """
    layout = _layout(block, keep_mask)
    flat = normed.flatten(0, 2)
    tokens = flat.index_select(0, layout.keep_indices)
    branch = block.attn.proj(block.attn(tokens, layout))
    return torch.zeros_like(flat, dtype=branch.dtype).index_add(0, layout.keep_indices, branch).view(normed.shape)


def padded_branch(block: SelectPackBlock, normed: Tensor, keep_mask: Tensor) -> Tensor:
    """
    The same function, every image padded to the containers of the one that keeps most.

    All that follows the gathering, projections too, is done for the padding as well: the tensors are rectangular,
    (B, P, C), with a mask. Arguments and result are those of :func:`packed_branch`.

    Raises:
        ValueError: options under which tokens attend to others than those of their own image's containers.
    """
    options = block.options
    if options.segment != "container" or options.position != "none":
        raise ValueError(
            "padded_branch(block=) expects SEGMENT container and POSITION none. "
            f"Got {options.segment} and {options.position}."
        )
    layout, attention = _layout(block, keep_mask), block.attn
    length = options.container_length
    batch = keep_mask.shape[0]
    flat = normed.flatten(0, 2)
    if layout.num_tokens == 0:
        return _no_tokens(attention, flat).view(normed.shape)
    width = -(-max(layout.counts) // length) * length
    filled = torch.arange(width, device=flat.device) < torch.tensor(layout.counts, device=flat.device)[:, None]
    # Padding points to the first token; what comes of it is dropped.
    index = torch.zeros(batch, width, dtype=torch.long, device=flat.device)
    index[filled] = layout.keep_indices
    tokens = flat.index_select(0, index.flatten())
    q, k, v = attention.qkv(tokens).view(-1, length, 3, attention.num_heads, attention.head_dim).permute(2, 0, 3, 1, 4)
    seen = filled.view(-1, length)
    # Rows of softmax with nothing to see would be NaN: padding sees padding.
    mask = (seen[:, :, None] == seen[:, None, :])[:, None]
    attended = F.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2).reshape(batch * width, -1)
    branch = attention.proj(attended)[filled.flatten()]
    return torch.zeros_like(flat, dtype=branch.dtype).index_add(0, layout.keep_indices, branch).view(normed.shape)


def _no_tokens(attention: SelectPackAttention, flat: Tensor) -> Tensor:
    """Zeros of (B * N, C) that still hang on the weights."""
    nothing = attention.proj(attention.qkv(flat[:0])[:, : flat.shape[1]])
    return torch.zeros_like(flat) + nothing.sum()


Branch = Callable[[SelectPackBlock, Tensor, Tensor], Tensor]
# By row name. The first is what others are compared with.
FORMS: Mapping[str, Branch] = {"padded": padded_branch, "packed": packed_branch}


def _layout(block: SelectPackBlock, keep_mask: Tensor) -> PackedLayout:
    options = block.options
    return pack_layout(
        keep_mask,
        container_size=options.container_length,
        window_size=options.window_size,
        shift_size=block.shift_size,
        order=options.order,
        segment=options.segment,
    )


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
    The attention branch of a stage-3 block in each of :data:`FORMS`, from the keep mask to the residual stream.

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
        for i, (name, form) in enumerate(FORMS.items()):
            cases.append(
                Case(
                    entry=step(
                        block,
                        functools.partial(_output, form, block, x, mode == "training", keep_mask),
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


def _output(form: Branch, block: SelectPackBlock, x: Tensor, training: bool, keep_mask: Tensor) -> dict[str, Tensor]:
    # A leaf without a gradient from earlier rounds.
    return {"branch": form(block, x.detach().requires_grad_(training), keep_mask)}
