"""Multiply-adds of SparseViT: equal to torch's counter at every ratio, and Swin's where nothing is skipped."""

import pytest
import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

pytest.importorskip("detectron2")

from spt_d2.analysis import image_macs, nominal_macs
from spt_d2.modeling import SparseViT, Swin
from spt_d2.modeling.backbone.sparse_vit import PRUNING_RATIOS
from spt_d2.ops.selection import split_selections

# Nowhere a multiple of a patch, a merging or a window.
SMALL = (42, 71)
DEPTHS = {"T": (2, 2, 6, 2), "S": (2, 2, 18, 2)}


@pytest.fixture
def unset_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    """Large models without the seconds that drawing their weights takes: no count depends on a weight."""
    for name in ("trunc_normal_", "kaiming_uniform_", "uniform_"):
        monkeypatch.setattr(nn.init, name, lambda tensor, *_, **__: tensor)


def counted(model: SparseViT, size: tuple[int, int]) -> tuple[float, float]:
    """By our formulas and by torch's counter."""
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        _, selections = model.forward_with_selections(torch.zeros(1, 3, *size))
    (image,) = split_selections(selections, [size], size)
    macs = image_macs(model, image)
    assert macs.useful == macs.executed
    return macs.executed, counter.get_total_flops() / 2


@pytest.mark.usefixtures("unset_weights")
@pytest.mark.parametrize("size", DEPTHS)
@pytest.mark.parametrize("ratios", [PRUNING_RATIOS, [[0.5]] * 4, [[0.0], [0.3], [0.0, 0.0, 0.8], [0.6]], [[0.0]] * 4])
def test_executed_equals_half_of_torchs_flops_in_training_and_evaluation(size, ratios):
    model = SparseViT(depths=DEPTHS[size], pruning_ratios=ratios)
    for training in (True, False):
        ours, torchs = counted(model.train(training), SMALL)
        assert ours == torchs


@pytest.mark.usefixtures("unset_weights")
def test_drawn_ratios_are_counted_as_drawn():
    model = SparseViT(embed_dim=8, num_heads=(1, 2, 4, 4), window_size=3, sample_ratios=True).train()
    found = set()
    for _ in range(4):
        ours, torchs = counted(model, (75, 102))
        assert ours == torchs
        found.add(ours)
    assert len(found) > 1


@pytest.mark.usefixtures("unset_weights")
def test_an_image_of_a_batch_counts_its_own_windows():
    model = SparseViT(embed_dim=8, num_heads=(1, 2, 4, 4), window_size=3, pruning_ratios=[[0.3]] * 4).eval()
    sizes = [(96, 160), (60, 40)]
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        _, selections = model.forward_with_selections(torch.zeros(2, 3, 96, 160), sizes)
    macs = [image_macs(model, image).executed for image in split_selections(selections, sizes, (96, 160))]
    assert sum(macs) == counter.get_total_flops() / 2 and macs[0] > 1.3 * macs[1]


@pytest.mark.usefixtures("unset_weights")
def test_nominal_counts_are_those_of_the_same_share_in_every_block():
    model = SparseViT(pruning_ratios=[[0.5]] * 4)
    with torch.no_grad():
        _, selections = model.forward_with_selections(torch.zeros(1, 3, 448, 448))
    (image,) = split_selections(selections, [(448, 448)], (448, 448))
    assert nominal_macs(model, (448, 448), 0.5) == image_macs(model, image)
    swin = nominal_macs(Swin(), (448, 448), 1.0)
    assert nominal_macs(model, (448, 448), 1.0) == swin and nominal_macs(model, (448, 448), 0.5).dense == swin.dense
    less = [nominal_macs(model, (448, 448), ratio).executed for ratio in (0.0, 0.3, 0.6, 0.9)]
    assert less == sorted(less) and len(set(less)) == 4
