"""Checkpoints of relatives: with other classes, with Swin's stored tables; of a run to be resumed."""

import logging
from pathlib import Path

import pytest
import torch
from detectron2.config import CfgNode, get_cfg
from detectron2.modeling import build_model
from torch import nn

import spt_d2.modeling  # noqa: F401  registers the backbones
from spt_d2.checkpoint import SelectionCheckpointer
from spt_d2.config import add_spt_config
from tests.conftest import ROOT


def make_cfg(meta: str = "SelectionGeneralizedRCNN", classes: int = 3, **roi_heads: object) -> CfgNode:
    cfg = get_cfg()
    add_spt_config(cfg)
    cfg.merge_from_file(str(ROOT / "configs" / "Base-nano-RCNN-FPN.yaml"))
    cfg.MODEL.DEVICE = "cpu"
    cfg.MODEL.META_ARCHITECTURE = meta
    cfg.MODEL.SPT.EMBED_DIM, cfg.MODEL.SPT.DEPTHS, cfg.MODEL.SPT.NUM_HEADS = 8, [1, 1, 1, 1], [1, 1, 1, 1]
    cfg.MODEL.FPN.OUT_CHANNELS, cfg.MODEL.ROI_BOX_HEAD.FC_DIM = 8, 16
    cfg.MODEL.ROI_MASK_HEAD.CONV_DIM = 8
    cfg.MODEL.ROI_HEADS.NUM_CLASSES = cfg.MODEL.RETINANET.NUM_CLASSES = classes
    for key, value in roi_heads.items():
        cfg.MODEL.ROI_HEADS[key] = value
    if meta == "SelectionRetinaNet":
        cfg.MODEL.BACKBONE.NAME = "build_retinanet_spt_fpn_backbone"
        cfg.MODEL.FPN.IN_FEATURES = ["res3", "res4", "res5"]
    if meta == "SelectionPanopticFPN":
        cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES = classes
    return cfg


def make_model(
    meta: str = "SelectionGeneralizedRCNN", classes: int = 3, seed: int = 0, **roi_heads: object
) -> nn.Module:
    torch.manual_seed(seed)
    return build_model(make_cfg(meta, classes, **roi_heads))


def save(model: nn.Module, folder: Path, **extra: object) -> str:
    path = str(folder / "model.pth")
    torch.save({"model": model.state_dict(), **extra}, path)
    return path


@pytest.fixture
def warnings_of(caplog: pytest.LogCaptureFixture):
    """Messages of level WARNING and above, from loggers that may not propagate."""
    names = ("spt_d2.checkpoint", "fvcore.common.checkpoint", "spt_d2", "fvcore", "detectron2")
    loggers = [logging.getLogger(name) for name in names]
    before = [logger.propagate for logger in loggers]
    for logger in loggers:
        logger.propagate = True
    yield lambda: [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    for logger, value in zip(loggers, before):
        logger.propagate = value


PREDICTORS = {
    "SelectionGeneralizedRCNN": {
        "roi_heads.box_predictor.cls_score.weight": ((4, 16), (7, 16)),
        "roi_heads.box_predictor.cls_score.bias": ((4,), (7,)),
        "roi_heads.box_predictor.bbox_pred.weight": ((12, 16), (24, 16)),
        "roi_heads.box_predictor.bbox_pred.bias": ((12,), (24,)),
        "roi_heads.mask_head.predictor.weight": ((3, 8, 1, 1), (6, 8, 1, 1)),
        "roi_heads.mask_head.predictor.bias": ((3,), (6,)),
    },
    "SelectionRetinaNet": {
        "head.cls_score.weight": ((27, 8, 3, 3), (54, 8, 3, 3)),
        "head.cls_score.bias": ((27,), (54,)),
    },
}


@pytest.mark.parametrize("meta", sorted(PREDICTORS))
def test_predictors_of_another_number_of_classes_are_dropped_loudly_and_all_else_is_loaded(
    meta: str, tmp_path: Path, warnings_of
) -> None:
    source, target = make_model(meta, 3, seed=0), make_model(meta, 6, seed=1)
    before = {name: value.clone() for name, value in target.state_dict().items()}
    SelectionCheckpointer(target).load(save(source, tmp_path))
    expected = PREDICTORS[meta]
    if meta == "SelectionRetinaNet":
        anchors = source.state_dict()["head.cls_score.bias"].numel() // 3
        expected = {n: ((3 * anchors, *a[1:]), (6 * anchors, *b[1:])) for n, (a, b) in expected.items()}
    for name, value in target.state_dict().items():
        reference = before[name] if name in expected else source.state_dict()[name]
        assert torch.equal(value, reference), name
    (message,) = warnings_of()
    assert f"These {len(expected)} entries" in message
    for name, (old, new) in expected.items():
        assert any(name in line and f"{old} in the checkpoint, {new} here" in line for line in message.splitlines())


def test_semantic_predictors_are_dropped_too(tmp_path: Path, warnings_of) -> None:
    source, target = make_model("SelectionPanopticFPN", 3), make_model("SelectionPanopticFPN", 6, seed=1)
    SelectionCheckpointer(target).load(save(source, tmp_path))
    (message,) = warnings_of()
    assert "sem_seg_head.predictor.weight" in message and "box_predictor" in message


def test_predictors_of_every_stage_of_a_cascade_are_dropped(tmp_path: Path, warnings_of) -> None:
    cascade = {"NAME": "CascadeROIHeads"}

    def build(classes: int, seed: int) -> nn.Module:
        torch.manual_seed(seed)
        cfg = make_cfg(classes=classes, **cascade)
        cfg.MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG = True
        return build_model(cfg)

    source, target = build(3, 0), build(6, 1)
    SelectionCheckpointer(target).load(save(source, tmp_path))
    (message,) = warnings_of()
    # Boxes are regressed for all classes alike, and stay.
    assert "8 entries" in message and "box_predictor.2.cls_score.weight" in message and "bbox_pred" not in message
    name = "roi_heads.box_predictor.1.bbox_pred.weight"
    assert torch.equal(target.state_dict()[name], source.state_dict()[name])


def test_a_checkpoint_of_the_same_model_is_loaded_whole_and_silently(tmp_path: Path, warnings_of) -> None:
    source, target = make_model(), make_model(seed=1)
    SelectionCheckpointer(target).load(save(source, tmp_path))
    assert all(torch.equal(value, source.state_dict()[name]) for name, value in target.state_dict().items())
    assert warnings_of() == []


def test_tables_that_swin_stores_are_ignored_silently_and_other_strangers_are_not(tmp_path: Path, warnings_of) -> None:
    source, target = make_model(), make_model(seed=1)
    weights = dict(source.state_dict())
    weights["backbone.bottom_up.layers.0.blocks.0.attn.relative_position_index"] = torch.zeros(49, 49)
    weights["backbone.bottom_up.layers.0.blocks.1.attn_mask"] = torch.zeros(4, 49, 49)
    torch.save({"model": weights}, tmp_path / "swin.pth")
    SelectionCheckpointer(target).load(str(tmp_path / "swin.pth"))
    assert warnings_of() == []
    torch.save({"model": {**weights, "backbone.stranger": torch.zeros(1)}}, tmp_path / "stranger.pth")
    SelectionCheckpointer(target).load(str(tmp_path / "stranger.pth"))
    assert "stranger" in warnings_of()[0]


def test_other_shapes_outside_predictors_are_reported_one_by_one(tmp_path: Path, warnings_of) -> None:
    source, target = make_model(), make_model(seed=1)
    weights = dict(source.state_dict())
    weights["backbone.fpn_lateral2.weight"] = torch.zeros(9, 9, 1, 1)
    torch.save({"model": weights}, tmp_path / "other.pth")
    SelectionCheckpointer(target).load(str(tmp_path / "other.pth"))
    assert any("backbone.fpn_lateral2.weight" in message and "(9, 9, 1, 1)" in message for message in warnings_of())


class Counter:
    """A trainer, to a checkpointer."""

    def __init__(self) -> None:
        self.loaded: dict | None = None

    def state_dict(self) -> dict:
        return {"iteration": 5}

    def load_state_dict(self, state: dict) -> None:
        self.loaded = state


def test_a_run_with_another_number_of_classes_starts_from_a_checkpoint_but_does_not_resume_it(tmp_path: Path) -> None:
    SelectionCheckpointer(make_model(), str(tmp_path), trainer=Counter()).save("model")
    trainer = Counter()
    checkpointer = SelectionCheckpointer(make_model(classes=6), str(tmp_path), trainer=trainer)
    with pytest.raises(ValueError, match=r"resumed run(.|\n)*cls_score(.|\n)*HINT"):
        checkpointer.resume_or_load("", resume=True)
    checkpointer = SelectionCheckpointer(make_model(classes=6), str(tmp_path), trainer=trainer)
    checkpointer.resume_or_load(str(tmp_path / "model.pth"), resume=False)
    assert trainer.loaded is None


def test_a_checkpoint_saved_from_a_wrapped_model_loses_its_prefix_and_its_predictors(
    tmp_path: Path, warnings_of
) -> None:
    source, target = make_model(), make_model(classes=6, seed=1)
    torch.save({"model": {f"module.{k}": v for k, v in source.state_dict().items()}}, tmp_path / "model.pth")
    SelectionCheckpointer(target).load(str(tmp_path / "model.pth"))
    assert len(warnings_of()) == 1
    name = "proposal_generator.rpn_head.conv.weight"
    assert torch.equal(target.state_dict()[name], source.state_dict()[name])
