"""
Multiply-adds of blocks, from the tokens that they really attended to. :mod:`spt_d2.analysis.hierarchy_macs` sums them.

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

Under PACKING padded, what an image executes depends on its batch: T is there the most tokens that an image of the batch
keeps (in all but the N - T of FFN_TOKENS light, where it stays the image's own), and P the pairs of the batch's
longest row of containers, T^2 under SEGMENT image. The executed counts of a batch still add up to what was computed,
and ``useful`` is as if nothing was padded.
"""

import math
from dataclasses import dataclass, replace
from functools import singledispatch

from torch import nn

from spt_d2.layers.block import SelectPackBlock, SwinBlock
from spt_d2.layers.global_block import GlobalBlock, GlobalSelectPackBlock
from spt_d2.layers.mlp import Mlp
from spt_d2.ops.packing import PackedLayout


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
class BlockTokens:
    """
    What one block attended to in one image.

    Attributes:
        kept: tokens.
        executed_pairs: query-key pairs in containers, containers * L^2.
        useful_pairs: query-key pairs within segments.
        padding: empty slots that projections run on beside the tokens (PACKING padded).
    """

    kept: float
    executed_pairs: float
    useful_pairs: float
    padding: float = 0

    @classmethod
    def of_layout(cls, layout: PackedLayout) -> "BlockTokens":
        """All images of a batch together."""
        padding = layout.rows.num_tokens - layout.num_tokens
        return cls(layout.num_tokens, layout.executed_pairs, layout.useful_pairs, padding)


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
    return same_macs(_window_block(block, grid_size, block.attn.window_size))


@block_macs.register
def _(block: SelectPackBlock, grid_size: tuple[int, int], tokens: BlockTokens | None, place: str) -> Macs:
    if tokens is None:
        raise ValueError(
            f"backbone_macs(kept=) expects the tokens of every Select and Pack block. Got none for {place}.\n"
            "HINT: image_macs reads them off a selection, nominal_macs assumes a keep ratio."
        )
    total, kept = grid_size[0] * grid_size[1], tokens.kept
    fixed = 0.0
    if block.light is not None:
        fixed += linear_macs(block.light, total - kept)
    if block.gate is not None:
        fixed += linear_macs(block.gate.proj, total)
    if block.pos_conv is not None:
        fixed += conv_macs(block.pos_conv, total)
    return Macs(
        dense=_window_block(block, grid_size, block.options.window_size),
        executed=fixed + _packed_layers(block, kept + tokens.padding, total, tokens.executed_pairs),
        useful=fixed + _packed_layers(block, kept, total, tokens.useful_pairs),
    )


@block_macs.register
def _(block: GlobalBlock, grid_size: tuple[int, int], tokens: BlockTokens | None, place: str) -> Macs:
    return same_macs(_global_block(block, grid_size))


@block_macs.register
def _(block: GlobalSelectPackBlock, grid_size: tuple[int, int], tokens: BlockTokens | None, place: str) -> Macs:
    packed = block_macs.dispatch(SelectPackBlock)(block, grid_size, tokens, place)
    return replace(packed, dense=_global_block(block, grid_size))


def _packed_layers(block: SelectPackBlock, packed: float, total: float, pairs: float) -> float:
    """Attention, its projections and the FFN, where so many tokens are packed of all on the map."""
    options = block.options
    return (
        linear_macs(block.attn.qkv, packed)
        + _attention(block.attn.proj.in_features, pairs)
        + linear_macs(block.attn.proj, total if options.proj_tokens == "all" else packed)
        + _mlp(block.mlp, total if options.ffn_tokens == "all" else packed)
    )


def _window_block(block: SwinBlock | SelectPackBlock, grid_size: tuple[int, int], window: int) -> float:
    """A block as dense window attention: its projections see the padding to whole windows, the FFN does not."""
    height, width = grid_size
    padded = math.ceil(height / window) * math.ceil(width / window) * window**2
    attention = _attention(block.attn.proj.in_features, padded * window**2)
    return (
        linear_macs(block.attn.qkv, padded)
        + attention
        + linear_macs(block.attn.proj, padded)
        + _mlp(block.mlp, height * width)
    )


def _global_block(block: GlobalBlock | GlobalSelectPackBlock, grid_size: tuple[int, int]) -> float:
    """A block as attention among all tokens of the map."""
    total = grid_size[0] * grid_size[1]
    attention = _attention(block.attn.proj.in_features, total * total)
    return linear_macs(block.attn.qkv, total) + attention + linear_macs(block.attn.proj, total) + _mlp(block.mlp, total)


def _attention(channels: int, pairs: float) -> float:
    """Scores and weighted sum, over all heads."""
    return 2 * channels * pairs


def _mlp(mlp: Mlp, tokens: float) -> float:
    return linear_macs(mlp.fc1, tokens) + linear_macs(mlp.fc2, tokens)


def linear_macs(linear: nn.Linear, tokens: float) -> float:
    """Of a linear layer over so many tokens."""
    return linear.in_features * linear.out_features * tokens


def conv_macs(conv: nn.Conv2d, positions: int) -> int:
    """Of a convolution at so many positions of its output."""
    # The weight of a grouped convolution already has the input channels of one group only.
    return conv.weight.numel() * positions


def same_macs(count: float) -> Macs:
    """What counts alike in all three."""
    return Macs(count, count, count)
