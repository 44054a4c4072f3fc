"""Patch embedding and merging against loops over cells."""

import pytest
import torch
import torch.nn.functional as F

from spt_d2.layers.patch import PatchEmbed, PatchMerging
from tests import reference


@pytest.mark.parametrize("height, width", [(4, 4), (8, 12), (5, 7), (1, 9)])
def test_a_patch_is_projected_and_normalised_on_its_own(height, width):
    embed = reference.randomise_(PatchEmbed(4, 3, 6)).double()
    image = torch.randn(2, 3, height, width, dtype=torch.float64)
    tokens = embed(image)
    rows, columns = -(-height // 4), -(-width // 4)
    assert tokens.shape == (2, rows, columns, 6)
    padded = torch.zeros(2, 3, rows * 4, columns * 4, dtype=torch.float64)
    padded[:, :, :height, :width] = image
    for i in range(rows):
        for j in range(columns):
            patch = padded[:, :, 4 * i : 4 * i + 4, 4 * j : 4 * j + 4].flatten(1)
            token = patch @ embed.proj.weight.flatten(1).T + embed.proj.bias
            reference.close(tokens[:, i, j], F.layer_norm(token, (6,), embed.norm.weight, embed.norm.bias))


def test_norm_of_patches_can_be_left_out():
    embed = PatchEmbed(2, 1, 3, norm=False)
    image = torch.randn(1, 1, 4, 4)
    reference.close(embed(image), embed.proj(image).permute(0, 2, 3, 1))


@pytest.mark.parametrize("height, width", [(2, 2), (4, 6), (5, 7), (1, 1)])
def test_merging_takes_four_tokens_in_swins_order(height, width):
    merging = reference.randomise_(PatchMerging(3)).double()
    x = torch.randn(2, height, width, 3, dtype=torch.float64)
    merged = merging(x)
    rows, columns = -(-height // 2), -(-width // 2)
    assert merged.shape == (2, rows, columns, 6)
    padded = torch.zeros(2, rows * 2, columns * 2, 3, dtype=torch.float64)
    padded[:, :height, :width] = x
    for i in range(rows):
        for j in range(columns):
            # Top left, bottom left, top right, bottom right.
            cells = [padded[:, 2 * i + a, 2 * j + b] for a, b in ((0, 0), (1, 0), (0, 1), (1, 1))]
            token = F.layer_norm(torch.cat(cells, dim=-1), (12,), merging.norm.weight, merging.norm.bias)
            reference.close(merged[:, i, j], token @ merging.reduction.weight.T)
