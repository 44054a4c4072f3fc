"""Keys of Swin with SViT's gates: what is refused, and for which backbone."""

import pytest

pytest.importorskip("detectron2")
from detectron2.config import CfgNode, get_cfg

from spt_d2.config import add_spt_config, validate_spt_config


def config(backbone: str = "build_svit_gated_swin_backbone", **values) -> CfgNode:
    cfg = get_cfg()
    add_spt_config(cfg)
    cfg.MODEL.BACKBONE.NAME = backbone
    for key, value in values.items():
        cfg.MODEL.SVIT_GATED_SWIN[key] = value
    return cfg


def test_defaults_are_valid():
    validate_spt_config(config())


@pytest.mark.parametrize(
    "values, message",
    [
        ({"KEEP_RATIOS": []}, r"SVIT_GATED_SWIN.KEEP_RATIOS expects fractions in \(0, 1\]. Got \[\]"),
        ({"KEEP_RATIOS": [0.5, 0.0]}, r"SVIT_GATED_SWIN.KEEP_RATIOS expects fractions"),
        ({"KEEP_RATIOS": [0.5] * 7}, r"SVIT_GATED_SWIN.KEEP_RATIOS expects at most one for each of 6 gates"),
        ({"BUDGET_WEIGHT": -1.0}, r"SVIT_GATED_SWIN.BUDGET_WEIGHT expects a weight of at least 0. Got -1.0"),
        ({"GATED_STAGES": []}, r"SVIT_GATED_SWIN.GATED_STAGES expects some of \[1, 2, 3, 4\]. Got \[\]"),
        ({"GATED_STAGES": [0, 3]}, r"SVIT_GATED_SWIN.GATED_STAGES expects some of"),
        ({"DENSE_BLOCKS": 6}, r"SVIT_GATED_SWIN.DENSE_BLOCKS expects 0 to 5, for stage 3 has gates. Got 6"),
        ({"GATED_STAGES": [4]}, r"SVIT_GATED_SWIN.DENSE_BLOCKS expects 0 to 1, for stage 4 has gates. Got 2"),
        ({"NUM_HEADS": [3, 6, 12]}, r"SVIT_GATED_SWIN.NUM_HEADS expects one number per stage"),
    ],
)
def test_values_that_cannot_be_are_named(values, message):
    with pytest.raises(ValueError, match=message):
        validate_spt_config(config(**values))


def test_depths_of_another_backbone_ask_nothing_of_these_gates():
    validate_spt_config(config("build_swin_backbone", DEPTHS=[1, 1, 1, 1]))


def test_labels_are_needed_at_the_strides_of_the_gates():
    cfg = config("build_svit_gated_swin_fpn_backbone", GATED_STAGES=[1, 3, 4], DENSE_BLOCKS=1)
    cfg.MODEL.META_ARCHITECTURE = "SelectionGeneralizedRCNN"
    with pytest.raises(ValueError, match=r"INPUT.SPT.STRIDES expects the strides \[4, 16, 32\]"):
        validate_spt_config(cfg)
    cfg.MODEL.META_ARCHITECTURE = "GeneralizedRCNN"
    validate_spt_config(cfg)
