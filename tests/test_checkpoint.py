"""Checkpoints of relatives: with other classes, pretrained, dense or sparse; of a run to be resumed."""

import argparse
import logging
import sys
from pathlib import Path

import pytest
import torch
from detectron2.config import CfgNode, get_cfg
from detectron2.modeling import build_model
from torch import nn

import spt_d2.checkpoint
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


# Pretrained: dense and sparse twins, and files of others (tests/weights has the layouts).


DENSE = {"SELECT": "all", "SEGMENT": "window", "POSITION": "relative_bias"}


def twin(backbone: str, depths: list[int], seed: int, **spt: object) -> nn.Module:
    torch.manual_seed(seed)
    cfg = make_cfg()
    cfg.MODEL.BACKBONE.NAME = f"build_{backbone}_fpn_backbone"
    for node in (cfg.MODEL.SPT, cfg.MODEL.SWIN):
        node.EMBED_DIM, node.DEPTHS, node.NUM_HEADS, node.WINDOW_SIZE = 8, depths, [1, 1, 1, 1], 4
    for key, value in spt.items():
        cfg.MODEL.SPT[key] = value
    return build_model(cfg).eval()


def same_detector(actual: nn.Module, expected: nn.Module) -> bool:
    image = torch.randn(1, 3, 128, 128)
    with torch.no_grad():
        pairs = zip(actual.backbone(image).values(), expected.backbone(image).values())
        same = all(torch.allclose(mine, theirs, atol=1e-5) for mine, theirs in pairs)
    others = {n: v for n, v in expected.state_dict().items() if "bottom_up" not in n}
    return same and all(torch.equal(actual.state_dict()[name], value) for name, value in others.items())


@pytest.mark.parametrize("depths", [[1, 1, 2, 1], [1, 1, 4, 1]], ids=["equal", "deeper"])
def test_a_dense_detector_starts_its_sparse_twin(depths: list[int], tmp_path: Path, warnings_of) -> None:
    dense = twin("swin", [1, 1, 2, 1], 0)
    for name, parameter in dense.named_parameters():
        if "norm" in name or "table" in name:
            nn.init.normal_(parameter)
    path = save(dense, tmp_path)
    sparse = twin("spt", depths, 1, **DENSE)
    assert not same_detector(sparse, dense)
    SelectionCheckpointer(sparse).load(path)
    assert same_detector(sparse, dense)
    assert warnings_of() == []
    # Where blocks have no position the function is another one, and that is all that is said.
    SelectionCheckpointer(twin("spt", depths, 1)).load(path)
    assert len(warnings_of()) == 2
    assert all("relative_position_bias_table" in message for message in warnings_of())


def test_a_sparse_detector_starts_its_dense_twin(tmp_path: Path, warnings_of) -> None:
    sparse, dense = twin("spt", [1, 1, 2, 1], 0, **DENSE), twin("swin", [1, 1, 2, 1], 1)
    SelectionCheckpointer(dense).load(save(sparse, tmp_path))
    assert same_detector(dense, sparse)
    assert warnings_of() == []


def test_a_resumed_run_takes_its_checkpoint_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = make_model()
    SelectionCheckpointer(source, str(tmp_path), trainer=Counter()).save("model")
    fit, calls = spt_d2.checkpoint.fit_to_model, []
    monkeypatch.setattr(spt_d2.checkpoint, "fit_to_model", lambda *a: calls.append(a) or fit(*a))
    resumed = make_model(seed=1)
    SelectionCheckpointer(resumed, str(tmp_path), trainer=Counter()).resume_or_load("", resume=True)
    assert all(torch.equal(value, source.state_dict()[name]) for name, value in resumed.state_dict().items())
    assert calls == []
    # And a run that only starts from it is fitted to it.
    SelectionCheckpointer(make_model(), trainer=Counter()).resume_or_load(str(tmp_path / "model.pth"), resume=False)
    assert len(calls) == 1


def test_a_backbone_alone_starts_a_detector_and_its_other_parts_keep_their_own_start(
    tmp_path: Path, warnings_of
) -> None:
    source, target = make_model(), make_model(seed=1)
    before = {name: value.clone() for name, value in target.state_dict().items()}
    torch.save(source.backbone.bottom_up.state_dict(), tmp_path / "backbone.pth")
    SelectionCheckpointer(target).load(str(tmp_path / "backbone.pth"))
    for name, value in target.state_dict().items():
        expected = source.state_dict()[name] if "bottom_up" in name else before[name]
        assert torch.equal(value, expected), name
    assert warnings_of() == []


def test_safetensors_are_read_and_without_the_package_the_error_names_the_cure(
    tmp_path: Path, warnings_of, monkeypatch: pytest.MonkeyPatch
) -> None:
    safetensors = pytest.importorskip("safetensors.torch", reason="safetensors is not installed")
    source, target = make_model(), make_model(seed=1)
    path = str(tmp_path / "model.safetensors")
    safetensors.save_file(source.state_dict(), path)
    SelectionCheckpointer(target).load(path)
    assert all(torch.equal(value, source.state_dict()[name]) for name, value in target.state_dict().items())
    assert warnings_of() == []
    monkeypatch.setitem(sys.modules, "safetensors.torch", None)
    with pytest.raises(ImportError, match="HINT: pip install safetensors"):
        SelectionCheckpointer(target).load(path)


def test_a_file_that_holds_more_than_tensors_is_an_error_that_names_the_cure(tmp_path: Path) -> None:
    path = save(make_model(), tmp_path, config=argparse.Namespace())
    with pytest.raises(ValueError, match=r"file of tensors(.|\n)*HINT: tools/convert_swin_weights.py --trust"):
        SelectionCheckpointer(make_model()).load(path)


def test_a_backbone_of_another_width_is_an_error(tmp_path: Path) -> None:
    path = save(make_model(), tmp_path)
    cfg = make_cfg()
    cfg.MODEL.SPT.EMBED_DIM = 16
    with pytest.raises(ValueError, match="8 channels(.|\n)*16 channels(.|\n)*HINT"):
        SelectionCheckpointer(build_model(cfg)).load(path)


def test_a_run_that_is_killed_while_it_tags_a_checkpoint_still_has_the_one_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpointer = SelectionCheckpointer(nn.Linear(2, 2), str(tmp_path))
    checkpointer.save("model_1")
    with monkeypatch.context() as patch:
        patch.setattr("os.replace", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            checkpointer.save("model_2")
    assert checkpointer.get_checkpoint_file() == str(tmp_path / "model_1.pth")
    checkpointer.save("model_3")
    assert checkpointer.get_checkpoint_file() == str(tmp_path / "model_3.pth")
    assert sorted(path.name for path in tmp_path.glob("last_checkpoint*")) == ["last_checkpoint"]
