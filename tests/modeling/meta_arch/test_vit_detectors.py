"""Detectors over a plain ViT: a step of training, and inference, with every meta-architecture."""

import pytest
import torch
from torch import nn

from tests.modeling.nano import batch_of_inputs, nano_cfg

from detectron2.modeling import GeneralizedRCNNWithTTA, build_model  # isort: skip
from detectron2.utils.events import EventStorage  # isort: skip

NAMES = {
    "SelectionGeneralizedRCNN": "build_vit_fpn_backbone",
    "SelectionPanopticFPN": "build_vit_fpn_backbone",
    "SelectionRetinaNet": "build_retinanet_vit_fpn_backbone",
    "GeneralizedRCNN": "build_vit_fpn_backbone",
    "RetinaNet": "build_retinanet_vit_fpn_backbone",
}
SIZES = ((64, 80), (70, 60))


def build(meta_architecture: str, vit: dict | None = None, **spt) -> nn.Module:
    cfg = nano_cfg(NAMES[meta_architecture], meta_architecture)
    for node, values in ((cfg.MODEL.SPT, spt), (cfg.MODEL.VIT, vit or {})):
        for key, value in values.items():
            node[key] = value
    model = build_model(cfg)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("gate.proj.weight"):
                # Some tokens above the border, some below.
                parameter.copy_(torch.randn(parameter.shape, generator=generator))
            elif name.endswith("gate.proj.bias"):
                parameter.fill_(-3.0)
    return model


@pytest.mark.parametrize("spa_blocks", [[1, 2], []], ids=["selects", "dense"])
@pytest.mark.parametrize("meta_architecture", NAMES)
def test_a_step_trains_every_parameter_and_inference_follows(meta_architecture, spa_blocks):
    model = build(meta_architecture, {"SPA_BLOCKS": spa_blocks}, RETURN_SELECTIONS=True).train()
    inputs = batch_of_inputs(*SIZES)
    with EventStorage(0) as storage:
        losses = model(inputs)
        sum(losses.values()).backward()
        recorded = {name for name in storage.latest() if name.startswith("selection/")}
    supervised = bool(spa_blocks) and meta_architecture.startswith("Selection")
    assert ("loss_select_stage1" in losses) == supervised
    assert bool(recorded) == supervised
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and torch.isfinite(parameter.grad).all(), name
    if supervised:
        gates = [p.grad for name, p in model.named_parameters() if name.endswith("gate.proj.bias")]
        assert len(gates) == 2 and all(gradient.abs().sum() > 0 for gradient in gates)
    model.eval()
    with torch.no_grad():
        outputs = model(inputs)
    for output, (height, width) in zip(outputs, SIZES):
        assert output["instances"].image_size == (2 * height, 2 * width)
        if not meta_architecture.startswith("Selection"):
            continue
        blocks = output["selection"].blocks
        assert [(b.stage, b.block, b.stride) for b in blocks] == [(1, i, 16) for i in spa_blocks]
        for block in blocks:
            assert block.score.shape == (-(-height // 16), -(-width // 16))
            assert block.kept == int(block.keep_mask.sum())
            assert block.useful_pairs == block.executed_pairs == block.kept**2


def test_an_image_without_objects_trains_under_the_oracle():
    inputs = batch_of_inputs(*SIZES)[1:]
    assert len(inputs[0]["instances"]) == 0 and not inputs[0]["selection_labels"][16].any()
    model = build("SelectionGeneralizedRCNN", SELECT="oracle", SUPERVISE=False).train()
    with EventStorage(0):
        losses = model(inputs)
        sum(losses.values()).backward()
    assert not any("select" in name for name in losses)
    assert all(torch.isfinite(loss) for loss in losses.values())
    assert all(p.grad is not None for p in model.parameters())


def test_test_time_augmentation_accepts_the_model():
    cfg = nano_cfg("build_vit_fpn_backbone")
    cfg.TEST.AUG.MIN_SIZES, cfg.TEST.AUG.MAX_SIZE, cfg.TEST.AUG.FLIP = (64,), 96, True
    model = build_model(cfg).eval()
    inputs = [{"image": given["image"], "height": 64, "width": 80} for given in batch_of_inputs((64, 80))]
    with torch.no_grad():
        (output,) = GeneralizedRCNNWithTTA(cfg, model)(inputs)
    assert output["instances"].image_size == (64, 80)
