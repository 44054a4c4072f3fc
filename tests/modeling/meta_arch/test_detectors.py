"""The backbones under Detectron2's own meta-architectures and under ours, in training and inference."""

import pytest
import torch

from spt_d2.peer_config import PEERS
from tests import reference
from tests.modeling.nano import NUM_CLASSES, batch_of_inputs, nano_cfg

from detectron2.modeling import GeneralizedRCNN, GeneralizedRCNNWithTTA, PanopticFPN, RetinaNet, build_model  # isort: skip
from detectron2.utils.events import EventStorage  # isort: skip

OURS = {
    "SelectionGeneralizedRCNN": (GeneralizedRCNN, "build_{}_fpn_backbone"),
    "SelectionPanopticFPN": (PanopticFPN, "build_{}_fpn_backbone"),
    "SelectionRetinaNet": (RetinaNet, "build_retinanet_{}_fpn_backbone"),
}
STOCK = {
    "GeneralizedRCNN": "build_{}_fpn_backbone",
    "PanopticFPN": "build_{}_fpn_backbone",
    "SemanticSegmentor": "build_{}_fpn_backbone",
    "RetinaNet": "build_retinanet_{}_fpn_backbone",
}
SIZES = ((64, 80), (70, 60))


def build(meta_architecture: str, kind: str, **spt):
    name = (STOCK.get(meta_architecture) or OURS[meta_architecture][1]).format(kind)
    cfg = nano_cfg(name, meta_architecture)
    for key, value in spt.items():
        cfg.MODEL.SPT[key] = value
    model = build_model(cfg)
    generator = torch.Generator().manual_seed(0)
    for parameter_name, parameter in model.named_parameters():
        if "gate" in parameter_name:
            # Some tokens above the border, some below.
            with torch.no_grad():
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.5)
                parameter.sub_(5.0 if parameter_name.endswith("proj.bias") else 0.0)
    return model


def train_step(model, inputs) -> dict[str, torch.Tensor]:
    model.train()
    torch.manual_seed(11)
    with EventStorage(0):
        losses = model(inputs)
        sum(losses.values()).backward()
    return {name: loss.detach() for name, loss in losses.items()}


@pytest.mark.parametrize("kind", ["spt", "swin", *(peer.NODE.lower() for peer in PEERS)])
@pytest.mark.parametrize("meta_architecture", [*STOCK, *OURS])
def test_training_gives_finite_losses_and_a_gradient_for_every_parameter(meta_architecture, kind):
    model = build(meta_architecture, kind)
    losses = train_step(model, batch_of_inputs(*SIZES))
    assert losses and all(torch.isfinite(loss) for loss in losses.values())
    selects = kind == "spt" and meta_architecture in OURS
    expected = {"loss_select_stage2", "loss_select_stage3", "loss_select_stage4"} if selects else set()
    assert {name for name in losses if "select" in name} == expected
    assert ("loss_keep_ratio" in losses) == (kind == "dynamic_swin" and meta_architecture in OURS)
    assert ("loss_budget" in losses) == (kind == "svit_gated_swin" and meta_architecture in OURS)
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name


@pytest.mark.parametrize("kind", ["spt", "swin", *(peer.NODE.lower() for peer in PEERS)])
@pytest.mark.parametrize("meta_architecture", [*STOCK, *OURS])
def test_inference_gives_an_output_for_every_image_at_its_size(meta_architecture, kind):
    model = build(meta_architecture, kind).eval()
    with torch.no_grad():
        outputs = model(batch_of_inputs(*SIZES))
    assert len(outputs) == 2
    for output, (height, width) in zip(outputs, SIZES):
        assert "selection" not in output
        if "instances" in output:
            assert output["instances"].image_size == (2 * height, 2 * width)
            assert (output["instances"].pred_classes < NUM_CLASSES).all()
        if "sem_seg" in output:
            assert output["sem_seg"].shape[-2:] == (2 * height, 2 * width)
    expected = {"Panoptic": {"sem_seg", "instances", "panoptic_seg"}, "Semantic": {"sem_seg"}}
    names = next((names for key, names in expected.items() if key in meta_architecture), {"instances"})
    assert set(outputs[0]) == names


def pair(meta_architecture: str):
    """Ours and Detectron2's own over the same dense backbone with the same weights."""
    ours, theirs = build(meta_architecture, "swin"), build(meta_architecture.removeprefix("Selection"), "swin")
    theirs.load_state_dict(ours.state_dict(), strict=True)
    return ours, theirs


@pytest.mark.parametrize("meta_architecture", OURS)
def test_over_a_dense_backbone_losses_and_gradients_are_detectron2s(meta_architecture):
    ours, theirs = pair(meta_architecture)
    inputs = batch_of_inputs(*SIZES)
    actual, expected = train_step(ours, inputs), train_step(theirs, inputs)
    assert actual.keys() == expected.keys()
    for name, loss in expected.items():
        assert torch.equal(actual[name], loss), name
    for mine, yours in zip(ours.parameters(), theirs.parameters()):
        assert torch.equal(mine.grad, yours.grad)


@pytest.mark.parametrize("meta_architecture", OURS)
def test_over_a_dense_backbone_outputs_are_detectron2s(meta_architecture):
    ours, theirs = (model.eval() for model in pair(meta_architecture))
    inputs = batch_of_inputs(*SIZES)
    for given in inputs[:1]:
        del given["height"], given["width"]
    with torch.no_grad():
        for mine, yours in zip(ours(inputs), theirs(inputs)):
            assert mine.keys() == yours.keys()
            if "instances" in yours:
                assert len(mine["instances"]) == len(yours["instances"])
                for field, value in yours["instances"].get_fields().items():
                    other = mine["instances"].get(field)
                    assert torch.equal(getattr(other, "tensor", other), getattr(value, "tensor", value))
            if "sem_seg" in yours:
                assert torch.equal(mine["sem_seg"], yours["sem_seg"])
            if "panoptic_seg" in yours:
                assert torch.equal(mine["panoptic_seg"][0], yours["panoptic_seg"][0])
                assert mine["panoptic_seg"][1] == yours["panoptic_seg"][1]


@pytest.mark.parametrize("meta_architecture", OURS)
def test_ours_are_instances_of_detectron2s(meta_architecture):
    assert isinstance(build(meta_architecture, "spt"), OURS[meta_architecture][0])


@pytest.mark.parametrize("meta_architecture", OURS)
@pytest.mark.parametrize("gate_bias", [None, -30.0, 30.0], ids=["some_kept", "nothing_kept", "everything_kept"])
def test_an_image_without_objects_gives_every_parameter_a_gradient(meta_architecture, gate_bias):
    """Distributed training waits for each of them, in whatever process has no object in its share."""
    inputs = batch_of_inputs(*SIZES)[1:]
    assert len(inputs[0]["instances"]) == 0
    model = build(meta_architecture, "spt")
    for name, parameter in model.named_parameters():
        if gate_bias is not None and "gate" in name and name.endswith("proj.bias"):
            torch.nn.init.constant_(parameter, gate_bias)
    losses = train_step(model, inputs)
    assert all(torch.isfinite(loss) for loss in losses.values())
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and torch.isfinite(parameter.grad).all(), name


@pytest.mark.parametrize("meta_architecture", OURS)
def test_evaluation_needs_neither_labels_nor_ground_truth(meta_architecture):
    model = build(meta_architecture, "spt", RETURN_SELECTIONS=True).eval()
    with torch.no_grad():
        outputs = model([{"image": given["image"]} for given in batch_of_inputs(*SIZES)])
    assert [output["selection"].tensor_size for output in outputs] == [(96, 96)] * 2


@pytest.mark.parametrize("kind", ["spt", "swin", "dat"])
@pytest.mark.parametrize("meta_architecture", OURS)
def test_outputs_carry_their_selections_on_request(meta_architecture, kind):
    model = build(meta_architecture, kind, RETURN_SELECTIONS=True, SELECT="topk", KEEP_RATIO=0.4).eval()
    with torch.no_grad():
        outputs = model(batch_of_inputs(*SIZES))
    for output, (height, width) in zip(outputs, SIZES):
        selection = output["selection"]
        assert selection.tensor_size == (96, 96)
        if kind != "spt":
            assert selection.blocks == []
            continue
        assert [(b.stage, b.block, b.stride) for b in selection.blocks] == [
            (2, None, 8),
            (3, 0, 16),
            (3, 1, 16),
            (4, 0, 32),
        ]
        for block in selection.blocks:
            assert block.score.shape == (-(-height // block.stride), -(-width // block.stride))
            if block.keep_mask is not None:
                assert block.kept == int(block.keep_mask.sum()) == -(-block.score.numel() * 4 // 10)
                assert block.executed_pairs >= block.useful_pairs > 0


def test_results_before_postprocessing_are_what_detectron2_gives():
    model = build("SelectionGeneralizedRCNN", "spt", RETURN_SELECTIONS=True).eval()
    with torch.no_grad():
        (result, _) = model.inference(batch_of_inputs(*SIZES), do_postprocess=False)
        assert result.image_size == SIZES[0]
        (again, _) = model.inference(batch_of_inputs(*SIZES), [result, result], do_postprocess=False)
    assert again.has("pred_masks")
    panoptic = build("SelectionPanopticFPN", "spt", RETURN_SELECTIONS=True).eval()
    with torch.no_grad():
        detections, segments = panoptic.inference(batch_of_inputs(*SIZES), do_postprocess=False)
    assert len(detections) == len(segments) == 2


def test_test_time_augmentation_accepts_the_model():
    cfg = nano_cfg("build_spt_fpn_backbone")
    cfg.TEST.AUG.MIN_SIZES, cfg.TEST.AUG.MAX_SIZE, cfg.TEST.AUG.FLIP = (64,), 96, True
    cfg.MODEL.SPT.RETURN_SELECTIONS = True
    model = build_model(cfg).eval()
    inputs = [{"image": given["image"], "height": 64, "width": 80} for given in batch_of_inputs((64, 80))]
    with torch.no_grad():
        (output,) = GeneralizedRCNNWithTTA(cfg, model)(inputs)
    assert output["instances"].image_size == (64, 80)


def test_proposals_may_be_given():
    cfg = nano_cfg("build_spt_fpn_backbone")
    cfg.MODEL.PROPOSAL_GENERATOR.NAME, cfg.MODEL.LOAD_PROPOSALS = "PrecomputedProposals", True
    model = build_model(cfg)
    inputs = batch_of_inputs(*SIZES)
    with (
        pytest.raises(ValueError, match=r"expects 'proposals' in every input. Got none.\nHINT: MODEL.LOAD_PROPOSALS"),
        EventStorage(0),
    ):
        model(inputs)
    with pytest.raises(ValueError, match="expects 'proposals' in every input"):
        model.eval()(inputs)
    for given in inputs:
        given["proposals"] = given["instances"][:0]
        given["proposals"].proposal_boxes = given["instances"].gt_boxes[:0]
        given["proposals"].objectness_logits = torch.zeros(0)
        for field in ("gt_boxes", "gt_classes", "gt_masks"):
            given["proposals"].remove(field)
    losses = train_step(model, inputs)
    assert "loss_cls" in losses and "loss_rpn_cls" not in losses


def test_retinanet_without_ground_truth_is_an_error():
    model = build("SelectionRetinaNet", "spt")
    inputs = [{k: v for k, v in given.items() if k != "instances"} for given in batch_of_inputs(*SIZES)]
    with (
        pytest.raises(ValueError, match="SelectionRetinaNet expects 'instances' in every training input. Got none"),
        EventStorage(0),
    ):
        model(inputs)


def test_training_pictures_are_drawn_each_period():
    cfg = nano_cfg("build_spt_fpn_backbone")
    cfg.VIS_PERIOD = 2
    model = build_model(cfg)
    for iteration, drawn in ((0, True), (1, False), (2, True)):
        with EventStorage(iteration) as storage:
            model(batch_of_inputs(*SIZES))
            assert bool(storage._vis_data) == drawn


def test_batched_outputs_are_those_of_single_images_of_equal_size():
    model = build("SelectionGeneralizedRCNN", "spt", RETURN_SELECTIONS=True).eval()
    inputs = batch_of_inputs((64, 64), (64, 64))
    with torch.no_grad():
        together = [output["selection"] for output in model(inputs)]
        alone = [model([given])[0]["selection"] for given in inputs]
    for mine, other in zip(together, alone):
        for a, b in zip(mine.blocks, other.blocks):
            reference.close(a.score, b.score, atol=1e-4, rtol=1e-4)
            assert a.keep_mask is None or torch.equal(a.keep_mask, b.keep_mask)
