"""
Multiply-adds of a block with deformable attention (:mod:`spt_d2.analysis.macs`).

With N tokens, S samples, C channels, k x k the kernel of the offset network and D hidden channels of the FFN:

    2 C^2 N (queries, projection) + 2 C^2 S (keys, values) + (k^2 + 2) C S (offsets) + 2 C N S + 2 C D N

S is about N / r^2 at a stride r, so that the attention is quadratic in N. Bilinear sampling, of keys as of the position
bias, is no matrix product and not counted, as biases are not; it takes 4 multiply-adds a value, 4 h N S for the bias,
which at 32 channels a head is a sixteenth of the attention. Every token is processed: all three counts are the same.
"""

from spt_d2.analysis.macs import BlockTokens, Macs, block_macs, conv_macs, linear_macs, same_macs
from spt_d2.layers.deformable_stage import DeformableBlock


@block_macs.register
def _(block: DeformableBlock, grid_size: tuple[int, int], tokens: BlockTokens | None, place: str) -> Macs:
    attention, (height, width) = block.attn, grid_size
    options, total = attention.options, height * width
    samples = -(-height // options.stride) * -(-width // options.stride)
    # A third of the layer makes queries of tokens, the rest keys and values of samples.
    projections = linear_macs(attention.qkv, total + 2 * samples) / 3 + linear_macs(attention.proj, total)
    network = attention.offset
    offsets = options.groups * (conv_macs(network.depthwise, samples) + linear_macs(network.proj, samples))
    pairs = 2 * attention.proj.in_features * total * samples
    ffn = linear_macs(block.mlp.fc1, total) + linear_macs(block.mlp.fc2, total)
    return same_macs(projections + offsets + pairs + ffn)
