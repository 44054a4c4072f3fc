"""
Multiply-adds of Swin with SViT's gates (Liu et al., WACV 2024), which has two costs.

Per block with a gate, with T tokens kept, P query-key pairs among them, and the letters of
:mod:`spt_d2.analysis.macs`:

    inference    4 C^2 T + 2 C P + 2 C D T         + C^2 N / 4 + C N / 2 (gate)
    training     4 C^2 N + 2 C M^2 N' + 2 C D N    + C^2 N / 4 + C N / 2 (gate)

``executed`` and ``useful`` are inference's, as of every backbone; :func:`training_macs` counts the forward pass of
training, where skipped tokens are computed too. ``dense`` is Swin's.
"""

from collections.abc import Iterator
from typing import Any

from spt_d2.analysis.hierarchy_macs import BackboneMacs, backbone_macs, even_mask, nominal_tokens
from spt_d2.analysis.macs import BlockTokens, Macs, block_macs, linear_macs
from spt_d2.layers.block import SwinBlock
from spt_d2.layers.gated_block import GatedSwinBlock


@block_macs.register
def _(block: GatedSwinBlock, grid_size: tuple[int, int], tokens: BlockTokens | None, place: str) -> Macs:
    if tokens is None:
        raise ValueError(
            f"backbone_macs(kept=) expects the tokens of every block with a gate. Got none for {place}.\n"
            "HINT: image_macs reads them off a selection, nominal_macs assumes a ratio or takes the targets."
        )
    dense = block_macs.dispatch(SwinBlock)(block, grid_size, None, place).dense
    total = grid_size[0] * grid_size[1]
    fixed = linear_macs(block.gate.fc1, total) + linear_macs(block.gate.fc2, total)
    for linear in (block.attn.qkv, block.attn.proj, block.mlp.fc1, block.mlp.fc2):
        fixed += linear_macs(linear, tokens.kept)
    per_pair = 2 * block.attn.proj.in_features
    return Macs(dense, fixed + per_pair * tokens.executed_pairs, fixed + per_pair * tokens.useful_pairs)


@nominal_tokens.register
def _(block: GatedSwinBlock, grid_size: tuple[int, int], keep_ratio: float) -> BlockTokens:
    return BlockTokens.of_layout(block.attn.layout(even_mask(grid_size, keep_ratio)))


def training_macs(backbone: Any, tensor_size: tuple[int, int]) -> BackboneMacs:
    """
    The forward pass of training: a block computes all tokens, and all pairs of its windows.

    Args:
        backbone: :class:`~spt_d2.modeling.backbone.SvitGatedSwin`, or a pyramid over it.
        tensor_size: (height, width) in pixels.
    """
    kept = {}
    for place, block, (height, width) in _gates(backbone, tensor_size):
        window = block.attn.window_size
        pairs = -(-height // window) * -(-width // window) * window**4
        kept[place] = BlockTokens(height * width, pairs, pairs)
    return backbone_macs(backbone, tensor_size, kept)


def _gates(
    backbone: Any, tensor_size: tuple[int, int]
) -> Iterator[tuple[tuple[int, int], GatedSwinBlock, tuple[int, int]]]:
    """(stage, block), the block and (H, W) of its grid, for each block with a gate."""
    for number, stage in enumerate(getattr(backbone, "bottom_up", backbone).layers, start=1):
        stride = 2 ** (number + 1)
        grid_size = (-(-tensor_size[0] // stride), -(-tensor_size[1] // stride))
        for i, block in enumerate(stage.blocks):
            if isinstance(block, GatedSwinBlock):
                yield (number, i), block, grid_size
