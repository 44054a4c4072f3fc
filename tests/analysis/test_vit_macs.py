"""Counted multiply-adds of a plain ViT equal what torch's own counter sees, dense and selecting."""

import pytest
import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from spt_d2.analysis import BlockTokens, backbone_macs, image_macs, nominal_macs
from spt_d2.layers.select_pack_attention import FFN_TOKENS, PROJ_TOKENS
from spt_d2.ops.selection import split_selections

pytest.importorskip("detectron2")
from spt_d2.modeling import SPT, SelectionSimplePyramid, Swin, ViT

NANO = {"embed_dim": 16, "depth": 4, "num_heads": 2, "window_size": 3, "pretrain_image_size": 64, "mlp_ratio": 2.5}
SIZES = [(61, 102), (75, 90)]


def run_counted(model: nn.Module, *args) -> tuple[float, tuple]:
    """Multiply-adds by torch's counter, which counts each twice and sees attention in its plain form only."""
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        outputs = model.forward_with_selections(*args)
    return counter.get_total_flops() / 2, outputs


def check_executed(labels=None, **options) -> None:
    check_model(ViT(**{**NANO, "select": "random", "keep_ratio": 0.3, "noise": "logistic", **options}), labels)


def check_model(model: nn.Module, labels=None) -> None:
    """Two images of different size in a batch: in training and evaluation their counts add up to what was computed."""
    for training in (True, False):
        counted, (_, selections) = run_counted(model.train(training), torch.randn(2, 3, 75, 102), SIZES, labels)
        images = split_selections(selections, SIZES, (75, 102))
        assert sum(image_macs(model, image).executed for image in images) == pytest.approx(counted, rel=1e-12)


@pytest.mark.parametrize("position", ["none", "rope", "conv"])
@pytest.mark.parametrize("proj_tokens", PROJ_TOKENS)
@pytest.mark.parametrize("ffn_tokens", FFN_TOKENS)
def test_executed_equals_torchs_counter_for_every_kind_of_block(ffn_tokens, proj_tokens, position):
    check_executed(ffn_tokens=ffn_tokens, proj_tokens=proj_tokens, position=position)


@pytest.mark.parametrize(
    "options",
    (
        {"spa_blocks": ()},
        {"spa_blocks": (0, 1, 2, 3)},
        {"gate": "per_stage"},
        {"select": "all"},
        {"gating": "sigmoid", "select": "gate", "threshold": 0.5},
        {"qkv_bias": False, "patch_size": 8},
        {"segment": "container", "container_size": 5},
        {"segment": "shared"},
        {"segment": "window"},
        {"packing": "padded", "ffn_tokens": "selected"},
        {"packing": "padded", "segment": "container", "container_size": 5},
    ),
    ids=str,
)
def test_executed_equals_torchs_counter_for_other_options(options):
    check_executed(**options)


def test_executed_equals_torchs_counter_where_nothing_is_kept():
    check_executed({16: torch.zeros(2, 5, 7, dtype=torch.uint8)}, select="oracle")


def test_executed_equals_torchs_counter_for_whole_images_in_a_hierarchy():
    sizes = {"embed_dim": 8, "depths": (1, 1, 2, 1), "num_heads": (1, 2, 4, 4), "window_size": 3}
    model = SPT(**sizes, segment="image", select="random", keep_ratio=0.3)
    check_model(model)
    # Its dense twin is Swin all the same.
    twin = nominal_macs(Swin(**sizes), (75, 102), 1.0)
    assert nominal_macs(model, (75, 102), 0.5).dense == twin.dense


def test_hand_count_and_the_dense_twin():
    # 3 x 2 tokens of 8 channels, hidden 16; the second block keeps 4, all of one image.
    sizes = {"embed_dim": 8, "depth": 2, "num_heads": 2, "mlp_ratio": 2.0}
    model = ViT(**sizes, spa_blocks=(1,))
    macs = backbone_macs(model, (48, 20), {(1, 1): BlockTokens(kept=4, executed_pairs=16, useful_pairs=16)})
    dense_block = 6 * 4 * 64 + 2 * 8 * 36 + 6 * 2 * 8 * 16
    packed = 6 * 8 + 4 * 3 * 64 + 4 * 64 + 2 * 8 * 16 + 6 * 2 * 8 * 16
    assert macs.by_stage["patch_embed"].dense == 6 * 3 * 256 * 8
    assert macs.by_stage["stage1"].executed == macs.by_stage["stage1"].useful == dense_block + packed
    assert macs.by_stage["stage1"].dense == 2 * dense_block
    assert list(macs.by_stage) == ["patch_embed", "stage1"]
    assert nominal_macs(model, (48, 20), 4 / 6) == macs
    assert nominal_macs(ViT(**sizes, spa_blocks=()), (48, 20), 1.0).executed == macs.dense


def test_everything_kept_costs_the_gates_more_than_the_dense_twin():
    macs = nominal_macs(ViT(**NANO, spa_blocks=(1, 3)), (75, 102), 1.0)
    assert macs.executed - macs.dense == 2 * 16 * 5 * 7


def test_a_pyramid_is_counted_by_its_network():
    model = ViT(**NANO)
    assert nominal_macs(SelectionSimplePyramid(model, 8), (96, 96), 0.5) == nominal_macs(model, (96, 96), 0.5)


def test_vit_b_at_coco_size(monkeypatch):
    """The published size, its weights left undrawn: no count depends on one."""
    for name in ("trunc_normal_", "kaiming_uniform_", "uniform_"):
        monkeypatch.setattr(nn.init, name, lambda tensor, *_, **__: tensor)
    with torch.device("meta"):
        model = ViT()
    macs = nominal_macs(model, (800, 1280), 0.23)
    counts = [round(count / 1e9, 1) for count in (macs.dense, macs.executed, macs.useful)]
    assert counts == [637.0, 392.7, 392.7]
    dense = sum(p.numel() for name, p in model.named_parameters() if ".gate." not in name)
    # ViT-B/16 of 224 px without its class token, that token's position and its head: 86,567,656 - 768 * 2 - 769,000.
    assert dense == 85797120
