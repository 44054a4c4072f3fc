"""What a stage of DAT is made of."""

import pytest
import torch
import torch.nn.functional as F

from spt_d2.layers.block import SwinBlock
from spt_d2.layers.deformable_attention import DeformableOptions
from spt_d2.layers.deformable_stage import DeformableBlock, DeformableStage, ProjectedMerging
from tests import reference

OPTIONS = DeformableOptions(groups=2, kernel_size=3, stride=2, table_size=4)


def make(options: DeformableOptions | None, depth: int = 4, window_size: int = 7, **values) -> DeformableStage:
    return DeformableStage(
        dim=8, depth=depth, num_heads=4, window_size=window_size, drop_path=[0.0] * depth, downsample=True,
        options=options, mlp_ratio=2.0, **values,
    )  # fmt: skip


def test_every_second_block_is_deformable():
    blocks = make(OPTIONS, depth=5).blocks
    assert [type(block) for block in blocks] == [SwinBlock, DeformableBlock, SwinBlock, DeformableBlock, SwinBlock]
    assert all(block.attn.shift_size == 0 for block in blocks[::2])


@pytest.mark.parametrize("window_size, shift", [(7, 4), (4, 2), (2, 1), (1, 0)])
def test_without_options_every_second_block_is_shifted_by_half_a_window_rounded_up(window_size, shift):
    stage = make(None, window_size=window_size)
    assert [block.attn.shift_size for block in stage.blocks] == [0, shift, 0, shift]
    assert stage(torch.randn(1, 9, 5, 8)).shape == (1, 9, 5, 8)


def test_rates_of_stochastic_depth_are_those_of_the_blocks():
    stage = DeformableStage(
        dim=8, depth=2, num_heads=4, window_size=7, drop_path=[0.1, 0.2], downsample=False, options=OPTIONS
    )
    assert [block.drop_path.rate for block in stage.blocks] == [0.1, 0.2] and stage.downsample is None


@pytest.mark.parametrize("height, width", [(4, 6), (5, 3), (1, 1)])
def test_merging_is_a_convolution_of_two_by_two_and_a_norm(height, width):
    merging = reference.randomise_(ProjectedMerging(3)).double()
    x = torch.randn(2, height, width, 3, dtype=torch.float64, requires_grad=True)
    kernel = torch.stack(
        [torch.stack([merging.reduction.weight[:, 3 * (2 * dx + dy) :][:, :3] for dx in (0, 1)], -1) for dy in (0, 1)],
        -2,
    )
    padded = F.pad(x.permute(0, 3, 1, 2), (0, width % 2, 0, height % 2))
    expected = F.conv2d(padded, kernel, stride=2).permute(0, 2, 3, 1)
    expected = F.layer_norm(expected, (6,), merging.norm.weight, merging.norm.bias)
    actual = merging(x)
    assert actual.shape == (2, -(-height // 2), -(-width // 2), 6)
    leaves = {"x": x, **dict(merging.named_parameters())}
    reference.close(actual, expected)
    truth = reference.gradients(expected, **leaves)
    for name, gradient in reference.gradients(actual, **leaves).items():
        reference.close(gradient, truth[name])


def test_a_block_is_attention_and_mlp_each_added_to_its_input():
    block = reference.randomise_(DeformableBlock(8, 4, OPTIONS, mlp_ratio=2.0)).double()
    x = torch.randn(2, 5, 6, 8, dtype=torch.float64)
    middle = x + block.attn(F.layer_norm(x, (8,), block.norm1.weight, block.norm1.bias))
    expected = middle + block.mlp(F.layer_norm(middle, (8,), block.norm2.weight, block.norm2.bias))
    reference.close(block(x), expected)


def test_whole_images_are_dropped():
    block = reference.randomise_(DeformableBlock(8, 4, OPTIONS, drop_path=0.5))
    x = torch.randn(16, 3, 4, 8)
    unchanged = (block(x) == x).flatten(1).all(dim=1)
    assert 0 < unchanged.sum() < 16
    assert not (block.eval()(x) == x).flatten(1).all(dim=1).any()
