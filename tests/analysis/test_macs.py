"""Counted multiply-adds equal what fvcore and torch's own counter see, for every option that changes them."""

import itertools

import pytest
import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from spt_d2.analysis import BlockTokens, backbone_macs, image_macs, nominal_macs
from spt_d2.analysis.hierarchy_macs import even_mask
from spt_d2.layers.select_pack_attention import FFN_TOKENS, POSITIONS, PROJ_TOKENS
from spt_d2.ops.selection import ImageSelection, split_selections
from tests.reference import ORDERS_AND_SEGMENTS, attention_mask, containers_of

pytest.importorskip("detectron2")
from detectron2.modeling.backbone.swin import SwinTransformer

from spt_d2.modeling import SPT, SelectionFPN, Swin

# Channels, depths, heads of the published sizes.
SIZES = {
    "t": (96, (2, 2, 6, 2), (3, 6, 12, 24)),
    "s": (96, (2, 2, 18, 2), (3, 6, 12, 24)),
    "b": (128, (2, 2, 18, 2), (4, 8, 16, 32)),
}
COCO_SIZE = (800, 1280)
NANO = {"embed_dim": 8, "depths": (1, 1, 2, 1), "num_heads": (1, 2, 4, 4), "window_size": 3, "drop_path_rate": 0.3}


@pytest.fixture
def unset_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    """Large models without the seconds that drawing their weights takes: no count depends on a weight."""
    for name in ("trunc_normal_", "kaiming_uniform_", "uniform_"):
        monkeypatch.setattr(nn.init, name, lambda tensor, *_, **__: tensor)


def published(size: str, kind: type[Swin] = Swin, extra_blocks: int = 0, **options) -> Swin:
    channels, depths, heads = SIZES[size]
    depths = (*depths[:2], depths[2] + extra_blocks, depths[3])
    return kind(embed_dim=channels, depths=depths, num_heads=heads, **options)


def run_counted(model: nn.Module, *args) -> tuple[float, tuple]:
    """Multiply-adds by torch's counter, which counts each twice and sees attention in its plain form only."""
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        outputs = model.forward_with_selections(*args)
    return counter.get_total_flops() / 2, outputs


def check_executed(labels=None, **options) -> list[ImageSelection]:
    """Two images of different size in a batch: in training and evaluation their counts add up to what was computed."""
    model = SPT(**{**NANO, "select": "random", "keep_ratio": 0.3, "noise": "logistic", **options})
    image_sizes = [(61, 102), (75, 90)]
    for training in (True, False):
        counted, (_, selections) = run_counted(model.train(training), torch.randn(2, 3, 75, 102), image_sizes, labels)
        images = split_selections(selections, image_sizes, (75, 102))
        assert sum(image_macs(model, image).executed for image in images) == pytest.approx(counted, rel=1e-12)
    return images


@pytest.mark.parametrize("ffn,proj,position", list(itertools.product(FFN_TOKENS, PROJ_TOKENS, POSITIONS)))
def test_executed_equals_torchs_counter_for_every_kind_of_block(ffn, proj, position):
    check_executed(ffn_tokens=ffn, proj_tokens=proj, position=position)


@pytest.mark.parametrize("order,segment", ORDERS_AND_SEGMENTS)
def test_executed_equals_torchs_counter_for_every_packing(order, segment):
    check_executed(order=order, segment=segment, container_size=11)


# Every pair of tokens that are projected, and every order and segment.
PADDED = list(zip(itertools.product(FFN_TOKENS, PROJ_TOKENS), (*ORDERS_AND_SEGMENTS, ("window", "image")), strict=True))


@pytest.mark.parametrize("ffn,proj,order,segment", [(*tokens, *kind) for tokens, kind in PADDED])
def test_executed_equals_torchs_counter_where_images_are_padded(ffn, proj, order, segment):
    # The images keep different shares of tokens, and of different numbers of valid ones.
    labels = {16: torch.zeros(2, 5, 7, dtype=torch.uint8), 32: torch.ones(2, 3, 4, dtype=torch.uint8)}
    labels[16][0], labels[16][1, 0, :3] = 1, 1
    options = {"select": "oracle", "order": order, "segment": segment, "ffn_tokens": ffn, "proj_tokens": proj}
    padded = check_executed(labels, packing="padded", container_size=11, **options)
    packed = check_executed(labels, container_size=11, **options)
    for fewer, image in enumerate(padded):
        deciding = [block for block in image.blocks if block.keep_mask is not None]
        assert [block.padding for block in deciding if block.stage == 3] == [fewer * 25] * 2
        assert [b.useful_pairs for b in image.blocks] == [b.useful_pairs for b in packed[fewer].blocks]


@pytest.mark.parametrize("segment", ("container", "window", "image"))
def test_an_image_executes_what_the_fullest_of_its_batch_does(segment):
    # Only what all tokens take, light ones too, is an image's own.
    model = SPT(**NANO, select="oracle", packing="padded", segment=segment, ffn_tokens="selected").eval()
    ratios = (0.2, 0.8)
    grids = {16: (5, 6), 32: (3, 3)}
    labels = {s: torch.cat([even_mask(grid, r) for r in ratios]).to(torch.uint8) for s, grid in grids.items()}
    _, selections = model.forward_with_selections(torch.randn(2, 3, 75, 90), None, labels)
    images = split_selections(selections, [(75, 90)] * 2, (75, 90))
    counts = [image_macs(model, image) for image in images]
    assert counts[0].executed == counts[1].executed and counts[0].useful < counts[1].useful
    for ratio, real in zip(ratios, counts):
        assert nominal_macs(model, (75, 90), ratio, fullest=0.8).executed == pytest.approx(real.executed, rel=1e-12)
    alone = nominal_macs(model, (75, 90), 0.2)
    assert alone.executed < counts[0].executed
    packed = SPT(**NANO, select="oracle", segment=segment, ffn_tokens="selected")
    assert nominal_macs(packed, (75, 90), 0.2, fullest=0.8) == alone


@pytest.mark.parametrize(
    "options",
    (
        {"gate": "per_stage"},
        {"multi_scale": False},
        {"spa_stages": (4,)},
        {"spa_stages": (1, 2, 3, 4)},
        {"spa_stages": (1, 3)},
        {"gating": "sigmoid", "select": "gate", "threshold": 0.5},
        {"select": "all", "segment": "window"},
        {"mlp_ratio": 2.5, "qkv_bias": False},
    ),
    ids=str,
)
def test_executed_equals_torchs_counter_for_other_options(options):
    check_executed(**options)


@pytest.mark.parametrize("ffn", FFN_TOKENS)
def test_executed_equals_torchs_counter_where_nothing_is_kept(ffn):
    labels = {stride: torch.zeros(2, -(-75 // stride), -(-102 // stride), dtype=torch.uint8) for stride in (16, 32)}
    images = check_executed(labels, select="oracle", ffn_tokens=ffn)
    assert all(block.kept == 0 for image in images for block in image.blocks)


@pytest.mark.filterwarnings("ignore")
def test_dense_swin_equals_fvcore_less_its_layer_norm():
    from fvcore.nn import FlopCountAnalysis

    # Neither side is a multiple of a patch, a merging or a window.
    model = SwinTransformer(embed_dim=24, depths=(2, 2, 2, 2), num_heads=(3, 3, 3, 3)).eval()
    analysis = FlopCountAnalysis(model, torch.zeros(1, 3, 90, 147))
    counts = analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False).by_operator()
    ours = nominal_macs(Swin(embed_dim=24, depths=(2, 2, 2, 2), num_heads=(3, 3, 3, 3)), (90, 147), 1.0)
    assert ours.executed == ours.dense == ours.useful == sum(counts.values()) - counts["layer_norm"]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", (Swin, SwinTransformer))
def test_swin_t_at_coco_size_equals_torchs_counter(kind):
    model = kind().to("meta").eval()
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model(torch.zeros(1, 3, *COCO_SIZE, device="meta"))
    assert nominal_macs(Swin(), COCO_SIZE, 1.0).dense == counter.get_total_flops() / 2


@pytest.mark.usefixtures("unset_weights")
@pytest.mark.parametrize(
    "size,extra_blocks,giga,parameters",
    (("t", 0, 95.6, 27.5), ("s", 0, 187.6, 48.8), ("b", 0, 331.1, 86.7), ("t", 4, 126.2, 34.6)),
)
def test_published_sizes_of_swin(size, extra_blocks, giga, parameters):
    model = published(size, extra_blocks=extra_blocks)
    assert round(nominal_macs(model, COCO_SIZE, 1.0).dense / 1e9, 1) == giga
    assert round(sum(p.numel() for p in model.parameters()) / 1e6, 1) == parameters


@pytest.mark.usefixtures("unset_weights")
@pytest.mark.parametrize(
    "extra_blocks,options,giga",
    (
        (4, {}, 98.0),
        (4, {"proj_tokens": "all"}, 103.4),
        (0, {}, 76.8),
        (4, {"ffn_tokens": "selected"}, 54.6),
        (4, {"ffn_tokens": "light"}, 60.0),
    ),
    ids=str,
)
def test_readings_of_spt_t_at_the_papers_keep_ratio(extra_blocks, options, giga):
    model = published("t", SPT, extra_blocks, **options)
    macs = nominal_macs(model, COCO_SIZE, {3: 0.23, 4: 0.25})
    assert round(macs.executed / 1e9, 1) == giga
    assert macs.dense == nominal_macs(published("t", extra_blocks=extra_blocks), COCO_SIZE, 1.0).dense
    assert macs.useful < macs.executed


@pytest.mark.parametrize("order,segment", ORDERS_AND_SEGMENTS)
def test_useful_leaves_out_the_pairs_that_no_query_reads(order, segment):
    rule = {"container_size": 10, "window_size": 3, "order": order, "segment": segment}
    model = SPT(**NANO, select="random", keep_ratio=0.3, order=order, segment=segment, container_size=10).eval()
    _, selections = model.forward_with_selections(torch.randn(1, 3, 75, 102))
    macs = image_macs(model, split_selections(selections, [(75, 102)], (75, 102))[0])
    idle = {3: 0, 4: 0}
    for selection in selections:
        if selection.block is not None:
            rule["shift_size"] = selection.block % 2
            executed = len(containers_of(selection.keep_mask, **rule)) * 10**2
            idle[selection.stage] += executed - int(attention_mask(selection.keep_mask, **rule).sum())
    channels = {3: 32, 4: 64}
    for stage, pairs in idle.items():
        counts = macs.by_stage[f"stage{stage}"]
        assert pairs > 0
        assert counts.executed - counts.useful == 2 * channels[stage] * pairs


@pytest.mark.parametrize(
    "segment,keep_ratio", (("container", 0.3), ("container", 1.0), ("shared", 0.07), ("window", 1.0))
)
def test_nominal_equals_real_at_the_same_keep_ratio(segment, keep_ratio):
    model = SPT(**NANO, select="random", keep_ratio=keep_ratio, segment=segment, ffn_tokens="light").eval()
    _, selections = model.forward_with_selections(torch.randn(1, 3, 75, 102))
    real = image_macs(model, split_selections(selections, [(75, 102)], (75, 102))[0])
    assert nominal_macs(model, (75, 102), keep_ratio).as_dict() == real.as_dict()


def test_stages_add_up_and_an_fpn_is_counted_by_its_bottom_up_network():
    model = SPT(**NANO)
    macs = nominal_macs(model, (96, 96), {3: 0.5, 4: 0.0})
    assert list(macs.by_stage) == ["patch_embed", "stage1", "stage2", "stage3", "stage4"]
    assert macs.as_dict() == {
        "dense": macs.dense,
        "executed": macs.executed,
        "useful": macs.useful,
        "by_stage": {name: counts.as_dict() for name, counts in macs.by_stage.items()},
    }
    assert macs.executed == sum(counts.executed for counts in macs.by_stage.values())
    # The extra gate: one product per channel and token of stage 2, not part of the dense twin.
    assert macs.by_stage["stage2"].executed - macs.by_stage["stage2"].dense == 16 * 12 * 12
    fpn = SelectionFPN(model, ["res4", "res5"], 8)
    assert nominal_macs(fpn, (96, 96), {3: 0.5, 4: 0.0}) == macs


def test_hand_count_of_one_block():
    # 4 x 4 tokens of 8 channels, 5 kept: containers of 4 hold 4 and 1.
    model = SPT(embed_dim=8, depths=(1,), num_heads=(2,), window_size=2, spa_stages=(1,), out_features=("res2",))
    macs = backbone_macs(model, (16, 13), {(1, 0): BlockTokens(kept=5, executed_pairs=32, useful_pairs=17)})
    fixed = 16 * 8 + 5 * 3 * 64 + 5 * 64 + 16 * 2 * 8 * 32
    assert macs.by_stage["patch_embed"].dense == 16 * 3 * 16 * 8
    assert macs.by_stage["stage1"].executed == fixed + 2 * 8 * 32
    assert macs.by_stage["stage1"].useful == fixed + 2 * 8 * 17
    assert macs.by_stage["stage1"].dense == 16 * 4 * 64 + 2 * 8 * 16 * 4 + 16 * 2 * 8 * 32
    assert nominal_macs(model, (16, 13), 5 / 16) == macs


def test_errors_name_the_cure():
    model = SPT(**NANO)
    with pytest.raises(ValueError, match="none for stage 3, block 0"):
        backbone_macs(model, (64, 64), {})
    with pytest.raises(ValueError, match="none for stage 4"):
        nominal_macs(model, (64, 64), {3: 0.5})
    with pytest.raises(ValueError, match="Got 2 for stage 3"):
        nominal_macs(model, (64, 64), 2)
    with pytest.raises(ValueError, match=r"fullest=\) expects the keep ratio of the batch's fullest image"):
        nominal_macs(SPT(**NANO, packing="padded"), (64, 64), 0.5, fullest=0.4)
    with pytest.raises(TypeError, match="Swin, SPT, ViT, or a pyramid"):
        backbone_macs(nn.Conv2d(3, 3, 1), (64, 64), {})
    with pytest.raises(TypeError, match="Got SwinTransformerBlock at stage 1, block 0"):
        backbone_macs(SwinTransformer(), (64, 64), {})
