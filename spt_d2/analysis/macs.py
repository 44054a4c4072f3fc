"""
Multiply-adds of a backbone, from the tokens that it really attended to.

A multiply-add counts once (MACs; counted as FLOPs they are twice as many). Counted are convolutions and matrix
products, those of attention included. Norms, softmax, activations, biases (the relative position bias too), rotary
position, gating factors, residual sums and the moving about of tokens are not.

Per block, with N tokens on the map, N' on the map padded to whole windows of M x M, T kept, P query-key pairs, C
channels, hidden channels D of the FFN:

    window attention    4 C^2 N' + 2 C M^2 N' + 2 C D N
    global attention    4 C^2 N + 2 C N^2 + 2 C D N
    select and pack     3 C^2 T + 2 C P + C^2 (T | N) + C N (gate) + 2 C D (N | T)
                        (+ C^2 (N - T) under FFN_TOKENS light) (+ 9 C N under POSITION conv)

and the patch embedding 3 p^2 C N at p pixels a patch, the merging 8 C^2 per token that it gives, an extra gate C N.

Three counts are made of each block. ``executed``: what the rectangular form computes, P = containers * L^2, its empty
slots included (under SEGMENT image there are none, and P is the sum of the images' T^2). ``useful``: what the
block-diagonal form computes, P = the sum of squared segment lengths. ``dense``: what the block would cost as a Swin
block of the same width: window attention over all tokens, no gate, no convolution for position; in a plain ViT, as a
block of global attention. Only pairs are counted in empty slots, for projections run over packed tokens. Window
attention counts in full in all three, its padding too. ``dense`` of a backbone is therefore its dense twin of equal
depth, Swin or ViT, at the same input size.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import singledispatch
from typing import Any

import torch
from torch import Tensor, nn

from spt_d2.layers.block import SelectPackBlock, SwinBlock
from spt_d2.layers.global_block import GlobalBlock, GlobalSelectPackBlock
from spt_d2.layers.mlp import Mlp
from spt_d2.ops.packing import PackedLayout, pack_layout
from spt_d2.ops.selection import ImageSelection


@dataclass(frozen=True)
class Macs:
    """Multiply-adds of one image, in the three counts of :mod:`spt_d2.analysis.macs`."""

    dense: float = 0
    executed: float = 0
    useful: float = 0

    def __add__(self, other: "Macs") -> "Macs":
        return Macs(self.dense + other.dense, self.executed + other.executed, self.useful + other.useful)

    def as_dict(self) -> dict[str, float]:
        """``{"dense", "executed", "useful"}``, plain numbers."""
        return {"dense": self.dense, "executed": self.executed, "useful": self.useful}


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


@dataclass(frozen=True)
class BlockTokens:
    """
    What one block attended to in one image.

    Attributes:
        kept: tokens.
        executed_pairs: query-key pairs in containers, containers * L^2.
        useful_pairs: query-key pairs within segments.
    """

    kept: float
    executed_pairs: float
    useful_pairs: float

    @classmethod
    def of_layout(cls, layout: PackedLayout) -> "BlockTokens":
        """All images of a batch together."""
        return cls(layout.num_tokens, layout.executed_pairs, layout.useful_pairs)


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
    by_stage = {"patch_embed": _same(_conv(hierarchy.patch_embed.proj, height * width))}
    output_gates = getattr(hierarchy, "output_gates", {})
    for number, stage in enumerate(_stages(hierarchy), start=1):
        macs = Macs()
        for i, block in enumerate(stage.blocks):
            macs += block_macs(block, (height, width), kept.get((number, i)), f"stage {number}, block {i}")
        if f"stage{number}" in output_gates:
            extra = _linear(output_gates[f"stage{number}"].gate.proj, height * width)
            macs += Macs(0, extra, extra)
        downsample = getattr(stage, "downsample", None)
        if downsample is not None:
            height, width = -(-height // 2), -(-width // 2)
            macs += _same(_linear(downsample.reduction, height * width))
        by_stage[f"stage{number}"] = macs
    return BackboneMacs(by_stage)


def image_macs(backbone: nn.Module, selection: ImageSelection) -> BackboneMacs:
    """:func:`backbone_macs` of an image as the backbone saw it: at its padded size, with the tokens that it kept."""
    kept = {
        (block.stage, block.block): BlockTokens(block.kept, block.executed_pairs, block.useful_pairs)
        for block in selection.blocks
        if block.block is not None
    }
    return backbone_macs(backbone, selection.tensor_size, kept)


def nominal_macs(
    backbone: nn.Module, tensor_size: tuple[int, int], keep_ratio: float | Mapping[int, float]
) -> BackboneMacs:
    """
    :func:`backbone_macs` if every block kept a given share of the tokens, ceil(keep_ratio * N), spread evenly.

    Where they lie only matters under ``segment="window"``.

    Args:
        backbone: see :func:`backbone_macs`.
        tensor_size: (height, width) in pixels.
        keep_ratio: in [0, 1], one for all stages or ``{stage: keep_ratio}``.

    Raises:
        ValueError: a ratio outside [0, 1], or none for a stage with Select and Pack blocks.
    """
    hierarchy = _hierarchy(backbone)
    height, width = _grid_size(hierarchy, tensor_size)
    kept: dict[tuple[int, int], BlockTokens] = {}
    for number, stage in enumerate(_stages(hierarchy), start=1):
        for i, block in enumerate(stage.blocks):
            if isinstance(block, SelectPackBlock):
                mask = _even_mask((height, width), _stage_ratio(keep_ratio, number))
                kept[number, i] = BlockTokens.of_layout(_layout(block, mask))
        height, width = -(-height // 2), -(-width // 2)
    return backbone_macs(hierarchy, tensor_size, kept)


@singledispatch
def block_macs(block: nn.Module, grid_size: tuple[int, int], tokens: BlockTokens | None, place: str) -> Macs:
    """
    Count one block; a new kind of block registers its own formula here.

    Args:
        block: read off for its channels and options.
        grid_size: (H, W) in tokens.
        tokens: that the block attended to; None for a dense block.
        place: where the block stands, for error messages.
    """
    raise TypeError(
        f"block_macs(block=) expects a kind of block with a formula. Got {type(block).__name__} at {place}."
    )


@block_macs.register
def _(block: SwinBlock, grid_size: tuple[int, int], tokens: BlockTokens | None, place: str) -> Macs:
    return _same(_window_block(block, grid_size, block.attn.window_size))


@block_macs.register
def _(block: SelectPackBlock, grid_size: tuple[int, int], tokens: BlockTokens | None, place: str) -> Macs:
    if tokens is None:
        raise ValueError(
            f"backbone_macs(kept=) expects the tokens of every Select and Pack block. Got none for {place}.\n"
            "HINT: image_macs reads them off a selection, nominal_macs assumes a keep ratio."
        )
    options, total, kept = block.options, grid_size[0] * grid_size[1], tokens.kept
    fixed = _linear(block.attn.qkv, kept)
    fixed += _linear(block.attn.proj, total if options.proj_tokens == "all" else kept)
    fixed += _mlp(block.mlp, total if options.ffn_tokens == "all" else kept)
    if block.light is not None:
        fixed += _linear(block.light, total - kept)
    if block.gate is not None:
        fixed += _linear(block.gate.proj, total)
    if block.pos_conv is not None:
        fixed += _conv(block.pos_conv, total)
    channels = block.attn.proj.in_features
    return Macs(
        dense=_window_block(block, grid_size, options.window_size),
        executed=fixed + _attention(channels, tokens.executed_pairs),
        useful=fixed + _attention(channels, tokens.useful_pairs),
    )


@block_macs.register
def _(block: GlobalBlock, grid_size: tuple[int, int], tokens: BlockTokens | None, place: str) -> Macs:
    return _same(_global_block(block, grid_size))


@block_macs.register
def _(block: GlobalSelectPackBlock, grid_size: tuple[int, int], tokens: BlockTokens | None, place: str) -> Macs:
    packed = block_macs.dispatch(SelectPackBlock)(block, grid_size, tokens, place)
    return replace(packed, dense=_global_block(block, grid_size))


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


def _window_block(block: SwinBlock | SelectPackBlock, grid_size: tuple[int, int], window: int) -> float:
    """A block as dense window attention: its projections see the padding to whole windows, the FFN does not."""
    height, width = grid_size
    padded = math.ceil(height / window) * math.ceil(width / window) * window**2
    attention = _attention(block.attn.proj.in_features, padded * window**2)
    return (
        _linear(block.attn.qkv, padded) + attention + _linear(block.attn.proj, padded) + _mlp(block.mlp, height * width)
    )


def _global_block(block: GlobalBlock | GlobalSelectPackBlock, grid_size: tuple[int, int]) -> float:
    """A block as attention among all tokens of the map."""
    total = grid_size[0] * grid_size[1]
    attention = _attention(block.attn.proj.in_features, total * total)
    return _linear(block.attn.qkv, total) + attention + _linear(block.attn.proj, total) + _mlp(block.mlp, total)


def _attention(channels: int, pairs: float) -> float:
    """Scores and weighted sum, over all heads."""
    return 2 * channels * pairs


def _mlp(mlp: Mlp, tokens: float) -> float:
    return _linear(mlp.fc1, tokens) + _linear(mlp.fc2, tokens)


def _linear(linear: nn.Linear, tokens: float) -> float:
    return linear.in_features * linear.out_features * tokens


def _conv(conv: nn.Conv2d, positions: int) -> int:
    """The weight of a grouped convolution already has the input channels of one group only."""
    return conv.weight.numel() * positions


def _same(count: float) -> Macs:
    return Macs(count, count, count)


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


def _even_mask(grid_size: tuple[int, int], keep_ratio: float) -> Tensor:
    """(1, H, W) bool with ceil(keep_ratio * N) tokens, evenly spread in raster order."""
    total = grid_size[0] * grid_size[1]
    # As select_tokens counts them: a product a rounding error above an integer is that integer.
    count = math.ceil(total * keep_ratio - 1e-6)
    mask = torch.zeros(total, dtype=torch.bool, device="cpu")
    mask[[i * total // count for i in range(count)]] = True
    return mask.view(1, *grid_size)


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
