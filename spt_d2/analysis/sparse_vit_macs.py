"""
Multiply-adds of SparseViT's blocks, in the symbols of :mod:`spt_d2.analysis.macs`.

With K of the map's N' / M^2 windows run:

    some windows        (4 C^2 + 2 C D) M^2 K + 2 C M^4 K
    all of them         as a Swin block, whose FFN does not see the padding to whole windows

``useful`` equals ``executed``: windows are run whole, and nothing is padded to the image that keeps most. To rank
windows takes no matrix product. In a batch of images of different sizes an image that keeps all of its windows is
counted as a Swin block, though its FFN then sees padding.
"""

import math

from torch import nn

from spt_d2.analysis.hierarchy_macs import nominal_tokens
from spt_d2.analysis.macs import BlockTokens, Macs, block_macs, linear_macs
from spt_d2.layers.block import SwinBlock
from spt_d2.layers.sparse_window import SparseWindowBlock
from spt_d2.ops.window_selection import kept_windows


@block_macs.register
def _(block: SparseWindowBlock, grid_size: tuple[int, int], tokens: BlockTokens | None, place: str) -> Macs:
    dense = block_macs.dispatch(SwinBlock)(block, grid_size, None, place)
    area = block.attn.window_size**2
    if tokens is None or tokens.executed_pairs >= _num_windows(block, grid_size) * area**2:
        return dense
    slots = tokens.executed_pairs / area
    linears: tuple[nn.Linear, ...] = (block.attn.qkv, block.attn.proj, block.mlp.fc1, block.mlp.fc2)
    run = sum(linear_macs(linear, slots) for linear in linears)
    run += 2 * block.attn.proj.in_features * tokens.executed_pairs
    return Macs(dense=dense.dense, executed=run, useful=run)


@nominal_tokens.register
def _(block: SparseWindowBlock, grid_size: tuple[int, int], keep_ratio: float) -> BlockTokens:
    windows = kept_windows(_num_windows(block, grid_size), 1.0 - keep_ratio)
    area = block.attn.window_size**2
    pairs = windows * area**2
    return BlockTokens(min(windows * area, grid_size[0] * grid_size[1]), pairs, pairs)


def _num_windows(block: SparseWindowBlock, grid_size: tuple[int, int]) -> int:
    size = block.attn.window_size
    return math.ceil(grid_size[0] / size) * math.ceil(grid_size[1] / size)
