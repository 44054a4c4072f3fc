"""Multiply-adds of a whole backbone, block by block (:mod:`spt_d2.analysis.macs`)."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import singledispatch
from typing import Any

import torch
from torch import Tensor, nn

from spt_d2.analysis.macs import BlockTokens, Macs, block_macs, conv_macs, linear_macs, same_macs
from spt_d2.layers.block import SelectPackBlock
from spt_d2.ops.packing import pack_layout
from spt_d2.ops.selection import ImageSelection


@dataclass(frozen=True)
class BackboneMacs:
    """
    Multiply-adds of a backbone on one image.

    Attributes:
        by_stage: ``patch_embed``, then ``stage1`` and so on; a stage includes the merging that follows it and an extra
            gate on its output. The blocks of a plain ViT are ``stage1``.
    """

    by_stage: dict[str, Macs]

    @property
    def total(self) -> Macs:
        return sum(self.by_stage.values(), Macs())

    @property
    def dense(self) -> float:
        return self.total.dense

    @property
    def executed(self) -> float:
        return self.total.executed

    @property
    def useful(self) -> float:
        return self.total.useful

    def as_dict(self) -> dict:
        """The totals, and ``by_stage`` as such dicts: plain numbers, ready for JSON."""
        return {**self.total.as_dict(), "by_stage": {name: macs.as_dict() for name, macs in self.by_stage.items()}}


def backbone_macs(
    backbone: nn.Module, tensor_size: tuple[int, int], kept: Mapping[tuple[int, int], BlockTokens]
) -> BackboneMacs:
    """
    Count one image.

    Args:
        backbone: :class:`~spt_d2.modeling.backbone.Swin`, :class:`~spt_d2.modeling.backbone.SPT` or
            :class:`~spt_d2.modeling.backbone.ViT`; of a pyramid over one of them the bottom-up network is counted, the
            pyramid itself is not.
        tensor_size: (height, width) in pixels of the network input, padding included.
        kept: ``{(stage, block): tokens}`` of every Select and Pack block, stages from 1 and blocks from 0; empty for
            dense Swin.

    Raises:
        TypeError: a backbone of another build.
        ValueError: a Select and Pack block without its tokens.
    """
    hierarchy = _hierarchy(backbone)
    height, width = _grid_size(hierarchy, tensor_size)
    by_stage = {"patch_embed": same_macs(conv_macs(hierarchy.patch_embed.proj, height * width))}
    output_gates = getattr(hierarchy, "output_gates", {})
    for number, stage in enumerate(_stages(hierarchy), start=1):
        macs = Macs()
        for i, block in enumerate(stage.blocks):
            macs += block_macs(block, (height, width), kept.get((number, i)), f"stage {number}, block {i}")
        if f"stage{number}" in output_gates:
            extra = linear_macs(output_gates[f"stage{number}"].gate.proj, height * width)
            macs += Macs(0, extra, extra)
        macs += stage_macs(stage, (height, width))
        downsample = getattr(stage, "downsample", None)
        if downsample is not None:
            height, width = -(-height // 2), -(-width // 2)
            macs += same_macs(linear_macs(downsample.reduction, height * width))
        by_stage[f"stage{number}"] = macs
    return BackboneMacs(by_stage)


def image_macs(backbone: nn.Module, selection: ImageSelection) -> BackboneMacs:
    """:func:`backbone_macs` of an image as the backbone saw it: at its padded size, with the tokens that it kept."""
    kept = {
        (block.stage, block.block): BlockTokens(block.kept, block.executed_pairs, block.useful_pairs, block.padding)
        for block in selection.blocks
        if block.block is not None
    }
    return backbone_macs(backbone, selection.tensor_size, kept)


def nominal_macs(
    backbone: nn.Module,
    tensor_size: tuple[int, int],
    keep_ratio: float | Mapping[int, float] | None,
    fullest: float | Mapping[int, float] | None = None,
) -> BackboneMacs:
    """
    :func:`backbone_macs` if every block that selects kept a given share of the tokens, ceil(keep_ratio * N), spread
    evenly.

    Where they lie only matters under ``segment="window"``.

    Args:
        backbone: see :func:`backbone_macs`.
        tensor_size: (height, width) in pixels.
        keep_ratio: in [0, 1], one for all stages or ``{stage: keep_ratio}``. None: for each block its own, which
            stages of fixed ratios say in ``keep_ratio_of(block)``; everything where there is none.
        fullest: likewise, of the fullest image of the batch. Read under ``packing="padded"``, where the image executes
            what that one does; None: the image itself is the fullest, as in a batch of one.

    Raises:
        ValueError: a ratio outside [0, 1], or none for a stage that selects; ``fullest`` below ``keep_ratio``.
    """
    hierarchy = _hierarchy(backbone)
    height, width = _grid_size(hierarchy, tensor_size)
    kept: dict[tuple[int, int], BlockTokens] = {}
    for number, stage in enumerate(_stages(hierarchy), start=1):
        for i, block in enumerate(stage.blocks):
            if takes_decisions(block):
                ratio = _own_ratio(stage, i) if keep_ratio is None else _stage_ratio(keep_ratio, number)
                kept[number, i] = nominal_tokens(block, (height, width), ratio)
                if fullest is not None and isinstance(block, SelectPackBlock) and block.options.packing == "padded":
                    most = nominal_tokens(block, (height, width), _stage_ratio(fullest, number))
                    kept[number, i] = _padded_to(kept[number, i], most)
        height, width = -(-height // 2), -(-width // 2)
    return backbone_macs(hierarchy, tensor_size, kept)


def has_own_ratios(backbone: nn.Module) -> bool:
    """Whether the backbone itself says how many tokens its blocks keep, whatever is in the image."""
    return any(hasattr(stage, "keep_ratio_of") for stage in _stages(_hierarchy(backbone)))


def _own_ratio(stage: Any, block: int) -> float:
    ratio = stage.keep_ratio_of(block) if hasattr(stage, "keep_ratio_of") else None
    return 1.0 if ratio is None else ratio


def _padded_to(tokens: BlockTokens, most: BlockTokens) -> BlockTokens:
    """What an image executes beside one that keeps the most."""
    if most.kept < tokens.kept:
        raise ValueError(
            "nominal_macs(fullest=) expects the keep ratio of the batch's fullest image, keep_ratio at least.\n"
            f"  kept at keep_ratio: {tokens.kept} tokens\n  kept at fullest   : {most.kept}"
        )
    pairs = max(tokens.executed_pairs, most.executed_pairs)
    return replace(tokens, executed_pairs=pairs, padding=most.kept - tokens.kept)


def _hierarchy(backbone: nn.Module) -> Any:
    """The network that :func:`backbone_macs` counts: ``backbone``, or the bottom-up network of a pyramid."""
    hierarchy = getattr(backbone, "bottom_up", backbone)
    if not hasattr(hierarchy, "patch_embed") or not all(hasattr(stage, "blocks") for stage in _stages(hierarchy)):
        raise TypeError(
            "backbone_macs(backbone=) expects Swin, SPT, ViT, or a pyramid over one of them. "
            f"Got {type(hierarchy).__name__}."
        )
    return hierarchy


def _stages(hierarchy: Any) -> Sequence[Any]:
    """The stages of a hierarchy; a plain ViT is one stage of blocks, with no merging after it."""
    return getattr(hierarchy, "layers", [hierarchy])


def _grid_size(hierarchy: Any, tensor_size: tuple[int, int]) -> tuple[int, int]:
    """(H, W) in tokens of the first stage."""
    rows, columns = hierarchy.patch_embed.proj.stride
    return -(-tensor_size[0] // rows), -(-tensor_size[1] // columns)


def _stage_ratio(keep_ratio: float | Mapping[int, float], stage: int) -> float:
    if isinstance(keep_ratio, Mapping):
        if stage not in keep_ratio:
            raise ValueError(
                "nominal_macs(keep_ratio=) expects a ratio for every stage with Select and Pack blocks. "
                f"Got stages {sorted(keep_ratio)}, none for stage {stage}."
            )
        keep_ratio = keep_ratio[stage]
    if not 0.0 <= keep_ratio <= 1.0:
        raise ValueError(f"nominal_macs(keep_ratio=) expects a fraction in [0, 1]. Got {keep_ratio} for stage {stage}.")
    return keep_ratio


@singledispatch
def stage_macs(stage: nn.Module, grid_size: tuple[int, int]) -> Macs:
    """
    What a stage computes beside its blocks and its merging; a kind of stage that does registers its formula here.

    Args:
        stage: read off for its channels.
        grid_size: (H, W) in tokens.
    """
    return Macs()


@singledispatch
def nominal_tokens(block: nn.Module, grid_size: tuple[int, int], keep_ratio: float) -> BlockTokens:
    """
    What a block that selects attends to where it keeps a share of the tokens, for :func:`nominal_macs`.

    A kind of block that takes decisions registers its answer here, and is known by it.

    Args:
        grid_size: (H, W) in tokens.
        keep_ratio: in [0, 1].
    """
    raise TypeError(f"nominal_tokens(block=) expects a block that selects. Got {type(block).__name__}.")


def takes_decisions(block: nn.Module) -> bool:
    """Whether a block spends more on some tokens than on others."""
    return nominal_tokens.dispatch(type(block)) is not nominal_tokens.dispatch(object)


def even_mask(grid_size: tuple[int, int], keep_ratio: float) -> Tensor:
    """(1, H, W) bool with ceil(keep_ratio * N) tokens, evenly spread in raster order."""
    total = grid_size[0] * grid_size[1]
    # As select_tokens counts them: a product a rounding error above an integer is that integer.
    count = math.ceil(total * keep_ratio - 1e-6)
    mask = torch.zeros(total, dtype=torch.bool, device="cpu")
    mask[[i * total // count for i in range(count)]] = True
    return mask.view(1, *grid_size)


@nominal_tokens.register
def _(block: SelectPackBlock, grid_size: tuple[int, int], keep_ratio: float) -> BlockTokens:
    options = block.options
    layout = pack_layout(
        even_mask(grid_size, keep_ratio),
        container_size=options.container_length,
        window_size=options.window_size,
        shift_size=block.shift_size,
        order=options.order,
        segment=options.segment,
    )
    return BlockTokens.of_layout(layout)
