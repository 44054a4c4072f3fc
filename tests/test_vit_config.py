"""Configs of the plain ViT and of oracle selection load, say little, and train a step; values that cannot be do not."""

import pytest
import torch
import yaml

from spt_d2 import get_config, get_config_file

pytest.importorskip("detectron2", reason="detectron2 is not installed")
from detectron2.config import instantiate
from detectron2.modeling import build_model
from detectron2.utils.events import EventStorage

from spt_d2.config import validate_spt_config
from spt_d2.engine.optimizer import build_optimizer
from spt_d2.modeling import SPT, SelectionFPN, SelectionSimplePyramid, ViT
from tests.modeling.nano import batch_of_inputs, nano_cfg

COCO, SHAPES = "COCO-InstanceSegmentation", "Shapes-InstanceSegmentation"
# Blocks that select; who decides.
LEAVES = {
    f"{COCO}/mask_rcnn_vit_b_fpn_3x.yaml": ([], "gate"),
    f"{COCO}/mask_rcnn_spa_vit_b_fpn_3x.yaml": (list(range(4, 12)), "gate"),
    f"{COCO}/mask_rcnn_spa_vit_b_fpn_3x_oracle.yaml": (list(range(4, 12)), "oracle"),
    f"{COCO}/mask_rcnn_spt_t_fpn_3x_oracle.yaml": (None, "oracle"),
    f"{SHAPES}/mask_rcnn_vit_nano_fpn.yaml": ([], "gate"),
    f"{SHAPES}/mask_rcnn_spa_vit_nano_fpn.yaml": (list(range(3, 9)), "gate"),
    f"{SHAPES}/mask_rcnn_spa_vit_nano_fpn_oracle.yaml": (list(range(3, 9)), "oracle"),
    f"{SHAPES}/mask_rcnn_spt_nano_fpn_oracle.yaml": (None, "oracle"),
}


@pytest.mark.parametrize("name", LEAVES)
def test_a_leaf_says_what_it_is_about_and_no_more(name):
    spa_blocks, select = LEAVES[name]
    cfg = get_config(name)
    validate_spt_config(cfg)
    assert cfg.MODEL.SPT.SELECT == select
    # Labels that select leave the gates with nothing to learn.
    assert cfg.MODEL.SPT.SUPERVISE == (select == "gate")
    assert cfg.MODEL.BACKBONE.NAME == ("build_spt_fpn_backbone" if spa_blocks is None else "build_vit_fpn_backbone")
    if spa_blocks is not None:
        assert list(cfg.MODEL.VIT.SPA_BLOCKS) == spa_blocks
        assert cfg.MODEL.SPT.SEGMENT == "image" or not spa_blocks
    with open(get_config_file(name)) as file:
        lines = file.readlines()
    assert len(lines) <= 12
    base = get_config(f"{name.split('/')[0]}/{yaml.safe_load(''.join(lines))['_BASE_']}")
    assert base.dump() != cfg.dump()


@pytest.mark.parametrize("name", LEAVES)
def test_a_leaf_trains_a_step_and_infers(name):
    """At its own size on Shapes; COCO's, at toy width."""
    cfg = get_config(name)
    cfg.MODEL.DEVICE = "cpu"
    if name.startswith(COCO):
        vit, spt = cfg.MODEL.VIT, cfg.MODEL.SPT
        vit.EMBED_DIM, vit.NUM_HEADS = 24, 2
        spt.EMBED_DIM, spt.DEPTHS, spt.NUM_HEADS = 8, [1, 1, 2, 1], [1, 1, 1, 1]
        cfg.MODEL.FPN.OUT_CHANNELS, cfg.MODEL.ROI_BOX_HEAD.FC_DIM = 16, 32
        cfg.MODEL.RPN.POST_NMS_TOPK_TRAIN = cfg.MODEL.RPN.POST_NMS_TOPK_TEST = 20
    model = build_model(cfg).train()
    inputs = batch_of_inputs((64, 96), (96, 64))
    with EventStorage(0) as storage:
        losses = model(inputs)
        sum(losses.values()).backward()
        latest = {key: value for key, (value, _) in storage.latest().items()}
    assert all(torch.isfinite(loss) for loss in losses.values())
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in model.parameters())
    spa_blocks, select = LEAVES[name]
    assert any(key.startswith("loss_select") for key in losses) == (select == "gate" and spa_blocks != [])
    if select == "oracle":
        retention = [value for key, value in latest.items() if key.endswith("/retention")]
        assert retention and set(retention) == {1.0}
    model.eval()
    with torch.no_grad():
        assert all("selection" in output for output in model(inputs))
    net = model.backbone.bottom_up
    assert isinstance(net, SPT if spa_blocks is None else ViT)
    assert isinstance(model.backbone, SelectionFPN if spa_blocks is None else SelectionSimplePyramid)


def test_the_nano_pair_differs_in_selection_alone():
    dense, selecting = (get_config(f"{SHAPES}/mask_rcnn_{kind}_nano_fpn.yaml") for kind in ("vit", "spa_vit"))
    dense.MODEL.VIT.SPA_BLOCKS, dense.OUTPUT_DIR = selecting.MODEL.VIT.SPA_BLOCKS, selecting.OUTPUT_DIR
    assert dense.dump() == selecting.dump()


def test_positions_do_not_decay_and_other_weights_do():
    cfg = nano_cfg("build_vit_fpn_backbone")
    cfg.SOLVER.WEIGHT_DECAY, cfg.SOLVER.WEIGHT_DECAY_POSITION = 0.05, 0.0
    model = build_model(cfg)
    groups = build_optimizer(cfg, model).param_groups
    decay = {id(p): group["weight_decay"] for group in groups for p in group["params"]}
    net = model.backbone.bottom_up
    assert decay[id(net.pos_embed)] == decay[id(net.norm.weight)] == 0.0
    assert decay[id(net.patch_embed.proj.weight)] == decay[id(net.blocks[1].attn.qkv.weight)] == 0.05


def test_lazyconfig_builds_what_yaml_builds():
    cfg = get_config(f"{COCO}/mask_rcnn_spa_vit_b_fpn_3x.yaml")
    lazy = get_config("common/models/vit_fpn.py").model
    assert lazy.backbone.net.drop_path_rate == cfg.MODEL.VIT.DROP_PATH_RATE
    assert (lazy.backbone.net.embed_dim, lazy.backbone.net.num_heads) == (cfg.MODEL.VIT.EMBED_DIM, 12)
    cfg.MODEL.DEVICE, cfg.MODEL.VIT.EMBED_DIM, cfg.MODEL.VIT.NUM_HEADS = "cpu", 24, 2
    lazy.backbone.net.update(embed_dim=24, num_heads=2)
    lazy.roi_heads.box_head.fc_dims, cfg.MODEL.ROI_BOX_HEAD.FC_DIM = [16, 16], 16
    first, second = build_model(cfg).eval(), instantiate(lazy).eval()
    second.load_state_dict(first.state_dict())
    assert first.backbone.bottom_up.options == second.backbone.bottom_up.options
    x = torch.randn(1, 3, 64, 64)
    actual, expected = second.backbone(x), first.backbone(x)
    assert all(torch.equal(actual[name], expected[name]) for name in expected)


@pytest.mark.parametrize(
    "key, value, message",
    [
        ("VIT.PATCH_SIZE", 8, "MODEL.VIT.PATCH_SIZE expects a power of two above 1; 16 for a pyramid. Got 8"),
        ("VIT.DEPTH", 0, "MODEL.VIT.DEPTH expects at least 1 block. Got 0"),
        ("VIT.NUM_HEADS", 3, "MODEL.VIT.NUM_HEADS expects a divisor of EMBED_DIM 16. Got 3"),
        ("VIT.SPA_BLOCKS", [1, 3], r"MODEL.VIT.SPA_BLOCKS expects distinct numbers of 0 to 2. Got \[1, 3\]"),
        ("VIT.SPA_BLOCKS", [1, 1], r"MODEL.VIT.SPA_BLOCKS expects distinct numbers of 0 to 2. Got \[1, 1\]"),
        ("VIT.PRETRAIN_IMAGE_SIZE", 60, "MODEL.VIT.PRETRAIN_IMAGE_SIZE expects a multiple of PATCH_SIZE 16. Got 60"),
        ("VIT.MLP_RATIO", 0.0, "MODEL.VIT.MLP_RATIO expects a ratio above 0. Got 0.0"),
        ("VIT.DROP_RATE", 1.0, r"MODEL.VIT.DROP_RATE expects a probability in \[0, 1\). Got 1.0"),
        ("VIT.ATTN_DROP_RATE", -0.1, "MODEL.VIT.ATTN_DROP_RATE expects a probability"),
        ("VIT.DROP_PATH_RATE", 1.5, "MODEL.VIT.DROP_PATH_RATE expects a probability"),
        ("SPT.POSITION", "relative_bias", "MODEL.SPT.POSITION expects none, rope or conv under SEGMENT 'image'"),
        ("SPT.SEGMENT", "bag", r"MODEL.SPT.SEGMENT expects one of \('container', 'shared', 'window', 'image'\)"),
    ],
)
def test_values_that_cannot_be_are_named(key, value, message):
    cfg = nano_cfg("build_vit_fpn_backbone")
    validate_spt_config(cfg)
    node, name = key.split(".")
    cfg.MODEL[node][name] = value
    with pytest.raises(ValueError, match=message):
        validate_spt_config(cfg)


def test_heads_turn_where_they_are():
    """Under rope the heads of the backbone that is built count, and no others."""
    cfg = nano_cfg("build_vit_fpn_backbone")
    cfg.MODEL.SPT.POSITION = "rope"
    cfg.MODEL.SPT.NUM_HEADS = [1, 2, 16, 32]
    cfg.MODEL.VIT.EMBED_DIM, cfg.MODEL.VIT.NUM_HEADS = 24, 6
    validate_spt_config(cfg)
    cfg.MODEL.VIT.NUM_HEADS = 12
    with pytest.raises(ValueError, match="MODEL.VIT.NUM_HEADS expects heads of a multiple of 4 channels"):
        validate_spt_config(cfg)


@pytest.mark.parametrize(
    "backbone, spt, strides, missing",
    [
        ("build_vit_fpn_backbone", {}, [8, 32], r"\[16\]"),
        ("build_vit_fpn_backbone", {"SUPERVISE": False, "SELECT": "oracle"}, [8, 32], r"\[16\]"),
        ("build_vit_fpn_backbone", {"SUPERVISE": False}, [8, 32], None),
        ("build_spt_fpn_backbone", {"SUPERVISE": False, "SELECT": "oracle"}, [16], r"\[16, 32\]"),
        ("build_spt_fpn_backbone", {"SUPERVISE": False, "SELECT": "oracle"}, [16, 32], None),
        ("build_spt_fpn_backbone", {"SELECT": "oracle"}, [16, 32], r"\[8, 16, 32\]"),
    ],
)
def test_labels_are_asked_for_at_the_strides_that_select_or_are_supervised(backbone, spt, strides, missing):
    cfg = nano_cfg(backbone)
    for key, value in spt.items():
        cfg.MODEL.SPT[key] = value
    cfg.INPUT.SPT.STRIDES = strides
    if missing is None:
        validate_spt_config(cfg)
        return
    with pytest.raises(ValueError, match=f"INPUT.SPT.STRIDES expects the strides {missing} of the gated stages"):
        validate_spt_config(cfg)


def test_the_default_blocks_of_a_vit_are_no_concern_of_another_backbone():
    cfg = nano_cfg("build_spt_fpn_backbone")
    cfg.MODEL.VIT.DEPTH, cfg.MODEL.VIT.SPA_BLOCKS = 2, [11]
    validate_spt_config(cfg)
