"""What Detectron2 expects of every registered backbone, and that builders read every key."""

import pytest
import torch

from spt_d2.peer_config import PEERS
from tests.modeling.nano import nano_cfg

from detectron2.layers import ShapeSpec  # isort: skip
from detectron2.modeling import BACKBONE_REGISTRY, META_ARCH_REGISTRY, Backbone, build_backbone  # isort: skip
from detectron2.structures import ImageList  # isort: skip

from spt_d2 import modeling  # isort: skip

BUILDERS = [
    "build_spt_backbone",
    "build_spt_fpn_backbone",
    "build_retinanet_spt_fpn_backbone",
    "build_swin_backbone",
    "build_swin_fpn_backbone",
    "build_retinanet_swin_fpn_backbone",
    "build_dat_backbone",
    "build_dat_fpn_backbone",
    "build_retinanet_dat_fpn_backbone",
    "build_vit_backbone",
    "build_vit_fpn_backbone",
    "build_retinanet_vit_fpn_backbone",
    "build_dynamic_swin_backbone",
    "build_dynamic_swin_fpn_backbone",
    "build_retinanet_dynamic_swin_fpn_backbone",
    "build_sparse_vit_backbone",
    "build_sparse_vit_fpn_backbone",
    "build_retinanet_sparse_vit_fpn_backbone",
    "build_svit_gated_swin_backbone",
    "build_svit_gated_swin_fpn_backbone",
    "build_retinanet_svit_gated_swin_fpn_backbone",
]
META_ARCHITECTURES = [
    "MultiLabelClassifier",
    "SelectionGeneralizedRCNN",
    "SelectionMultiLabelClassifier",
    "SelectionPanopticFPN",
    "SelectionRetinaNet",
]


def test_every_builder_of_the_project_is_tested_here():
    registered = [name for name, builder in BACKBONE_REGISTRY if builder.__module__.startswith("spt_d2")]
    assert sorted(registered) == sorted(BUILDERS)
    metas = [name for name, meta in META_ARCH_REGISTRY if meta.__module__.startswith("spt_d2")]
    assert sorted(metas) == sorted(META_ARCHITECTURES)


def test_public_names_are_pinned():
    assert set(modeling.__all__) == {
        "DAT",
        "SPT",
        "SparseViT",
        "Swin",
        "ViT",
        "DynamicSwin",
        "SvitGatedSwin",
        "SelectionFPN",
        *META_ARCHITECTURES,
        "SelectionSimplePyramid",
        *BUILDERS,
    }
    assert all(hasattr(modeling, name) for name in modeling.__all__)


@pytest.mark.parametrize("name", BUILDERS)
@pytest.mark.parametrize("channels", [3, 1])
def test_outputs_are_what_the_contract_says(name, channels):
    backbone = build_backbone(nano_cfg(name), ShapeSpec(channels=channels))
    assert isinstance(backbone, Backbone)
    # A plain ViT alone has one map at stride 16; under a pyramid its smallest level is at stride 32.
    divisor = 16 if name == "build_vit_backbone" else 32
    assert isinstance(backbone.size_divisibility, int) and backbone.size_divisibility == divisor
    assert set(backbone.padding_constraints) <= {"size_divisibility", "square_size"}
    images = ImageList.from_tensors(
        [torch.randn(channels, 70, 50), torch.randn(channels, 33, 90)],
        backbone.size_divisibility,
        padding_constraints=backbone.padding_constraints,
    )
    padded = tuple(images.tensor.shape[-2:])
    assert padded == (-(-70 // divisor) * divisor, 96)
    for features in (backbone(images.tensor), backbone.forward_with_selections(images.tensor, images.image_sizes)[0]):
        shapes = backbone.output_shape()
        assert list(features) == list(shapes)
        for level, shape in shapes.items():
            size = tuple(-(-length // shape.stride) for length in padded)
            assert tuple(features[level].shape) == (2, shape.channels, *size), level


@pytest.mark.parametrize("name", BUILDERS)
def test_the_second_entry_gives_selections_where_the_backbone_takes_decisions(name):
    backbone = build_backbone(nano_cfg(name), ShapeSpec(channels=3)).eval()
    _, selections = backbone.forward_with_selections(torch.randn(1, 3, 64, 64))
    kind = name.removeprefix("build_").removeprefix("retinanet_")
    assert bool(selections) == (not kind.startswith(("swin_", "dat_")))


# For each key a value other than the default, and where the built backbone must show it.
SHARED_KEYS = {
    "EMBED_DIM": (16, lambda b: b.patch_embed.proj.out_channels),
    "DEPTHS": ([1, 2, 1, 1], lambda b: [len(stage.blocks) for stage in b.layers]),
    "NUM_HEADS": ([2, 2, 4, 4], lambda b: [stage.blocks[0].attn.num_heads for stage in b.layers]),
    "WINDOW_SIZE": (6, lambda b: b.layers[0].blocks[0].attn.window_size),
    "MLP_RATIO": (3.0, lambda b: b.layers[0].blocks[0].mlp.fc1.out_features / 8),
    "QKV_BIAS": (False, lambda b: b.layers[3].blocks[0].attn.qkv.bias is not None),
    "DROP_RATE": (0.3, lambda b: b.pos_drop.p),
    "ATTN_DROP_RATE": (0.3, lambda b: b.layers[3].blocks[0].attn.attn_drop),
    "DROP_PATH_RATE": (0.4, lambda b: round(b.layers[3].blocks[-1].drop_path.rate, 6)),
    "OUT_FEATURES": (["res3", "res4"], lambda b: list(b.output_shape())),
    "USE_CHECKPOINT": (True, lambda b: b.layers[2].use_checkpoint and b.layers[0].use_checkpoint),
}
OPTION_KEYS = {
    "PACKING": "padded",
    "GATE": "per_stage",
    "GATING": "sigmoid",
    "SELECT": "topk",
    "KEEP_RATIO": 0.4,
    "TOKEN_BUDGET": 7,
    "THRESHOLD": 0.2,
    "TAU": 0.7,
    "NOISE": "logistic",
    "GATE_PRIOR": 0.3,
    "ORDER": "raster",
    "SEGMENT": "shared",
    "CONTAINER_SIZE": 20,
    "POSITION": "rope",
    "PROJ_TOKENS": "all",
    "FFN_TOKENS": "light",
    "ATTENTION_BACKEND": "sdpa",
}
SPT_KEYS = {
    "SPA_STAGES": ([2, 4], lambda b: list(b.spa_stages)),
    "MULTI_SCALE": (False, lambda b: b.multi_scale),
    **{key: (value, lambda b, key=key: getattr(b.options, key.lower())) for key, value in OPTION_KEYS.items()},
}
DAT_KEYS = {
    "DEFORMABLE_STAGES": ([4], lambda b: list(b.deformable_stages)),
    "GROUPS": ([1, 1, 1, 2], lambda b: [1, 1, b.layers[2].blocks[1].attn.options.groups, 2]),
    "OFFSET_KERNELS": ([9, 7, 3, 3], lambda b: [9, 7, b.layers[2].blocks[1].attn.offset.depthwise.kernel_size[0], 3]),
    "OFFSET_STRIDES": ([8, 4, 1, 1], lambda b: [8, 4, b.layers[2].blocks[1].attn.offset.depthwise.stride[0], 1]),
    "OFFSET_RANGE": (0.0, lambda b: b.layers[3].blocks[1].attn.options.offset_range),
    "PRETRAIN_IMAGE_SIZE": (96, lambda b: 8 * (b.layers[2].blocks[1].attn.relative_position_bias_table.shape[1] + 1)),
}
VIT_KEYS = {
    "PATCH_SIZE": (8, lambda b: b.patch_embed.proj.stride[0]),
    "EMBED_DIM": (32, lambda b: b.patch_embed.proj.out_channels),
    "DEPTH": (4, lambda b: len(b.blocks)),
    "NUM_HEADS": (4, lambda b: b.blocks[0].attn.num_heads),
    "SPA_BLOCKS": ([0, 2], lambda b: list(b.spa_blocks)),
    "PRETRAIN_IMAGE_SIZE": (48, lambda b: int(b.pos_embed.shape[1] ** 0.5) * 16),
    "MLP_RATIO": (3.0, lambda b: b.blocks[2].mlp.fc1.out_features / 16),
    "QKV_BIAS": (False, lambda b: b.blocks[0].attn.qkv.bias is not None),
    "DROP_RATE": (0.3, lambda b: b.pos_drop.p),
    "ATTN_DROP_RATE": (0.3, lambda b: b.blocks[2].attn.attn_drop),
    "DROP_PATH_RATE": (0.4, lambda b: round(b.blocks[-1].drop_path.rate, 6)),
    "USE_CHECKPOINT": (True, lambda b: b.use_checkpoint),
}
DYNAMIC_SWIN_KEYS = {
    # Stage 3 with the blocks that have a predictor.
    "DEPTHS": ([1, 2, 3, 1], SHARED_KEYS["DEPTHS"][1]),
    "PREDICTOR_BLOCKS": ([1], lambda b: list(b.predictor_blocks)),
    "KEEP_RATIO": (0.6, lambda b: b.keep_ratios[0]),
    "RATIO_WEIGHT": (3.0, lambda b: b.ratio_weight),
    "TEACHER_WEIGHTS": ("dense.pth", lambda b: b.teacher and b.teacher.weights),
    "DISTILL_WEIGHT": (3.0, lambda b: b.distill_weight),
}
SPARSE_VIT_KEYS = {
    "PRUNING_RATIOS": (
        [[0.1], [0.2], [0.3, 0.5], [0.6]],
        lambda b: [list(stage.pruning_ratios) for stage in b.layers],
    ),
    "SAMPLE_RATIOS": (True, lambda b: bool(b.layers[0].sampled_from)),
    "RATIO_CHOICES": ([0.0, 0.5], lambda b: list(b.ratio_choices)),
}
SVIT_GATED_SWIN_KEYS = {
    # Stage 3 with a dense block and gates after it.
    "DEPTHS": ([1, 2, 5, 1], SHARED_KEYS["DEPTHS"][1]),
    "GATED_STAGES": ([3], lambda b: list(b.gated_stages)),
    "DENSE_BLOCKS": (0, lambda b: b.dense_blocks),
    "KEEP_RATIOS": ([0.6], lambda b: list(b.keep_ratios)),
    "BUDGET_WEIGHT": (3.0, lambda b: b.budget_weight),
}
PEER_KEYS = {
    "DAT": DAT_KEYS,
    "DYNAMIC_SWIN": DYNAMIC_SWIN_KEYS,
    "SPARSE_VIT": SPARSE_VIT_KEYS,
    "SVIT_GATED_SWIN": SVIT_GATED_SWIN_KEYS,
}
# Keys of the meta-architecture, tested with it.
SUPERVISION_KEYS = {"LOSS_WEIGHT", "LOSS_REDUCTION", "POS_WEIGHT", "SUPERVISE", "RETURN_SELECTIONS", "LOG_PERIOD"}


def test_no_key_is_left_out_here():
    cfg = nano_cfg("build_spt_backbone")
    assert set(cfg.MODEL.SWIN) == set(SHARED_KEYS)
    assert set(cfg.MODEL.SPT) == set(SHARED_KEYS) | set(SPT_KEYS) | SUPERVISION_KEYS
    assert set(cfg.MODEL.VIT) == set(VIT_KEYS)
    assert set(PEER_KEYS) == {peer.NODE for peer in PEERS}
    for peer, keys in PEER_KEYS.items():
        assert set(cfg.MODEL[peer]) == set(SHARED_KEYS) | set(keys)


@pytest.mark.parametrize(
    "node, key",
    [("SWIN", key) for key in SHARED_KEYS]
    + [("SPT", key) for key in (*SHARED_KEYS, *SPT_KEYS)]
    + [("VIT", key) for key in VIT_KEYS]
    + [(peer, key) for peer, keys in PEER_KEYS.items() for key in SHARED_KEYS | keys],
)
def test_builders_read_every_key(node, key):
    own = {"VIT": VIT_KEYS, **PEER_KEYS}.get(node, SPT_KEYS)
    value, shown = (own if node == "VIT" else {**SHARED_KEYS, **own})[key]
    cfg = nano_cfg(f"build_{node.lower()}_backbone")
    assert shown(build_backbone(cfg, ShapeSpec(channels=3))) != value, "the test needs another value"
    cfg.MODEL[node][key] = value
    if node == "SPARSE_VIT" and key == "DEPTHS":
        cfg.MODEL.SPARSE_VIT.PRUNING_RATIOS = [[0.3]] * 4
    assert shown(build_backbone(cfg, ShapeSpec(channels=3))) == value


@pytest.mark.parametrize("key", [*OPTION_KEYS, "WINDOW_SIZE"])
def test_a_plain_vit_selects_and_packs_by_the_keys_of_spt(key):
    value = OPTION_KEYS.get(key, 6)
    cfg = nano_cfg("build_vit_backbone")
    assert getattr(build_backbone(cfg, ShapeSpec(channels=3)).options, key.lower()) != value
    cfg.MODEL.SPT[key] = value
    assert getattr(build_backbone(cfg, ShapeSpec(channels=3)).options, key.lower()) == value


@pytest.mark.parametrize(
    "name", ["build_spt_backbone", "build_swin_fpn_backbone", "build_dat_backbone", "build_sparse_vit_backbone"]
)
def test_freeze_at_is_honoured(name):
    cfg = nano_cfg(name)
    cfg.MODEL.BACKBONE.FREEZE_AT = 2
    backbone = build_backbone(cfg, ShapeSpec(channels=3))
    backbone = getattr(backbone, "bottom_up", backbone)
    assert not any(p.requires_grad for p in backbone.layers[0].parameters())
    assert all(p.requires_grad for p in backbone.layers[1].parameters())
