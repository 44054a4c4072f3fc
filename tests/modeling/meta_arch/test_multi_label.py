"""Multi-label classification over our backbones and Detectron2's, in training and inference."""

import logging

import pytest
import torch

from tests import reference
from tests.modeling.nano import nano_cfg

from detectron2.modeling import build_model  # isort: skip
from detectron2.utils.events import EventStorage  # isort: skip

from spt_d2.checkpoint import SelectionCheckpointer  # isort: skip
from spt_d2.modeling import MultiLabelClassifier  # isort: skip

CLASSES = 5
SIZES = ((64, 80), (70, 60))
OURS = "SelectionMultiLabelClassifier"


def classifier_cfg(backbone: str = "build_spt_backbone", meta_architecture: str = OURS, **spt):
    cfg = nano_cfg(backbone, meta_architecture)
    cfg.MODEL.MULTI_LABEL.NUM_CLASSES = CLASSES
    cfg.MODEL.SPT.OUT_FEATURES = cfg.MODEL.SWIN.OUT_FEATURES = ["res5"]
    for key, value in spt.items():
        cfg.MODEL.SPT[key] = value
    return cfg


def build(*arguments, **spt):
    model = build_model(classifier_cfg(*arguments, **spt))
    generator = torch.Generator().manual_seed(0)
    for name, parameter in model.named_parameters():
        if "gate" in name:
            # Some tokens above the border, some below.
            with torch.no_grad():
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.5)
                parameter.sub_(3.0 if name.endswith("proj.bias") else 0.0)
    return model


def batch_of_inputs(*sizes: tuple[int, int]) -> list[dict]:
    generator = torch.Generator().manual_seed(1)
    inputs = []
    for height, width in sizes:
        grids = {stride: (-(-height // stride), -(-width // stride)) for stride in (4, 8, 16, 32)}
        labels = torch.rand(CLASSES, generator=generator) < 0.5
        inputs.append(
            {
                "image": torch.randint(0, 256, (3, height, width), dtype=torch.uint8, generator=generator),
                "labels": labels.float(),
                "labels_ignored": labels & (torch.rand(CLASSES, generator=generator) < 0.3),
                "selection_labels": {
                    stride: (torch.rand(grid, generator=generator) < 0.4).to(torch.uint8)
                    for stride, grid in grids.items()
                },
            }
        )
    return inputs


def train_step(model, inputs) -> dict[str, torch.Tensor]:
    model.train()
    torch.manual_seed(11)
    with EventStorage(0):
        losses = model(inputs)
        sum(losses.values()).backward()
    return {name: loss.detach() for name, loss in losses.items()}


BACKBONES = {
    "build_spt_backbone": {"loss_select_stage2", "loss_select_stage3", "loss_select_stage4"},
    "build_swin_backbone": set(),
}
VARIANTS = [
    ("build_spt_backbone", {}),
    ("build_swin_backbone", {}),
    ("build_spt_backbone", {"SELECT": "topk", "KEEP_RATIO": 0.5, "SUPERVISE": False, "MULTI_SCALE": False}),
    ("build_spt_backbone", {"SUPERVISE": False}),
    ("build_spt_backbone", {"SELECT": "oracle", "SUPERVISE": False, "SEGMENT": "window", "POSITION": "relative_bias"}),
]


@pytest.mark.parametrize(("backbone", "options"), VARIANTS, ids=str)
def test_training_gives_finite_losses_and_a_gradient_for_every_parameter(backbone, options):
    model = build(backbone, **options)
    losses = train_step(model, batch_of_inputs(*SIZES))
    selecting = BACKBONES[backbone] if options.get("SUPERVISE", True) else set()
    assert set(losses) == {"loss_multi_label"} | selecting
    assert all(torch.isfinite(loss) for loss in losses.values())
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and torch.isfinite(parameter.grad).all(), name


def slow_logits(model, inputs):
    """One image at a time put into its batch's padding; its tokens gathered one by one."""
    images = model.preprocess_image(inputs)
    features = model.backbone.forward_with_selections(images.tensor, images.image_sizes)[0]["res5"]
    rows = []
    for image, (height, width) in zip(features, images.image_sizes):
        tokens = [
            image[:, i, j]
            for i in range(image.shape[1])
            for j in range(image.shape[2])
            if i * 32 < height and j * 32 < width
        ]
        rows.append(torch.stack(tokens).mean(dim=0) @ model.label_predictor.weight.T + model.label_predictor.bias)
    return torch.stack(rows)


@pytest.mark.parametrize("backbone", BACKBONES)
def test_logits_are_those_of_the_mean_over_an_images_own_tokens(backbone):
    model, inputs = build(backbone).eval(), batch_of_inputs((64, 160), (33, 60), (96, 40))
    with torch.no_grad():
        expected, outputs = slow_logits(model, inputs), model(inputs)
        for output, logits in zip(outputs, expected, strict=True):
            assert set(output) == {"logits", "scores"}
            reference.close(output["logits"], logits, atol=1e-5, rtol=1e-5)
            reference.close(output["scores"], torch.sigmoid(logits), atol=1e-5, rtol=1e-5)


def test_losses_and_outputs_follow_from_logits():
    model, inputs = build(), batch_of_inputs(*SIZES)
    logits = slow_logits(model.train(), inputs)
    losses = train_step(model, inputs)
    terms = []
    for row, given in zip(logits.detach(), inputs):
        counted = ~given["labels_ignored"]
        probability = torch.sigmoid(row)
        term = -torch.where(given["labels"] > 0, probability.log(), (1 - probability).log())
        terms.append(term[counted].mean())
    reference.close(losses["loss_multi_label"], torch.stack(terms).mean(), atol=1e-5, rtol=1e-5)


def test_the_padding_of_a_batch_changes_nothing_in_an_image():
    """Select and Pack blocks, all of them here, never see it, and pooling does not either."""
    model = build(SPA_STAGES=[1, 2, 3, 4], MULTI_SCALE=False).eval()
    (small, large) = batch_of_inputs((64, 64), (64, 128))
    with torch.no_grad():
        alone, together = model([small])[0], model([small, large])[0]
    reference.close(together["logits"], alone["logits"], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", BACKBONES)
def test_outputs_carry_their_selections_on_request(kind):
    model = build(kind, RETURN_SELECTIONS=True).eval()
    inputs = batch_of_inputs(*SIZES)
    with torch.no_grad():
        outputs = model(inputs)
    assert [output["selection"].tensor_size for output in outputs] == [(96, 96)] * 2
    stages = {block.stage for block in outputs[0]["selection"].blocks}
    assert stages == ({2, 3, 4} if kind == "build_spt_backbone" else set())


def test_evaluation_needs_no_labels_but_the_oracle_does():
    plain = [{"image": given["image"]} for given in batch_of_inputs(*SIZES)]
    with torch.no_grad():
        assert len(build().eval()(plain)) == 2
        oracle = build(SELECT="oracle", RETURN_SELECTIONS=True).eval()
        with pytest.raises(ValueError, match="select='oracle' expects selection labels"):
            oracle(plain)
        outputs = oracle(batch_of_inputs(*SIZES))
    for output, given in zip(outputs, batch_of_inputs(*SIZES)):
        for block in output["selection"].blocks:
            if block.keep_mask is not None:
                assert torch.equal(block.keep_mask, given["selection_labels"][block.stride] == 1)


def test_over_a_dense_backbone_both_classifiers_are_one():
    ours, plain = build("build_swin_backbone"), build("build_swin_backbone", "MultiLabelClassifier")
    assert isinstance(ours, MultiLabelClassifier)
    plain.load_state_dict(ours.state_dict(), strict=True)
    inputs = batch_of_inputs(*SIZES)
    assert train_step(ours, inputs) == train_step(plain, inputs)
    for mine, other in zip(ours.parameters(), plain.parameters()):
        assert torch.equal(mine.grad, other.grad)
    with torch.no_grad():
        for mine, other in zip(ours.eval()(inputs), plain.eval()(inputs)):
            assert torch.equal(mine["logits"], other["logits"])


def test_any_backbone_of_detectron2_classifies():
    cfg = classifier_cfg("build_resnet_backbone", "MultiLabelClassifier")
    cfg.MODEL.RESNETS.DEPTH, cfg.MODEL.RESNETS.RES2_OUT_CHANNELS = 18, 64
    cfg.MODEL.RESNETS.OUT_FEATURES = ["res5"]
    model = build_model(cfg)
    losses = train_step(model, batch_of_inputs(*SIZES))
    assert set(losses) == {"loss_multi_label"}
    assert all(parameter.grad is not None for parameter in model.parameters())
    cfg.MODEL.META_ARCHITECTURE = OURS
    with pytest.raises(TypeError, match=rf"{OURS}\(backbone=\) expects a backbone with forward_with_selections"):
        build_model(cfg)


def test_a_level_of_a_pyramid_may_be_read_and_what_is_not_read_is_warned_of(caplog):
    cfg = classifier_cfg("build_spt_fpn_backbone")
    cfg.MODEL.SPT.OUT_FEATURES = ["res2", "res3", "res4", "res5"]
    cfg.MODEL.MULTI_LABEL.FEATURE = "p4"
    with caplog.at_level(logging.WARNING, logger="spt_d2"):
        model = build_model(cfg)
    assert "reads 'p4' alone: what the backbone has for ['p2', 'p3', 'p5', 'p6'] gets no gradient" in caplog.text
    assert (model.stride, model.label_predictor.in_features) == (16, 16)
    with torch.no_grad():
        assert model.eval()(batch_of_inputs(*SIZES))[0]["logits"].shape == (CLASSES,)
    caplog.clear()
    build()
    assert not caplog.text


def test_a_checkpoint_with_other_classes_loses_its_predictor_loudly(caplog, tmp_path):
    first = build()
    torch.save({"model": first.state_dict()}, tmp_path / "first.pth")
    cfg = classifier_cfg()
    cfg.MODEL.MULTI_LABEL.NUM_CLASSES = 3
    second = build_model(cfg)
    before = second.label_predictor.weight.clone()
    with caplog.at_level(logging.WARNING, logger="spt_d2"):
        SelectionCheckpointer(second).load(str(tmp_path / "first.pth"))
    assert "label_predictor.weight: (5, 64) in the checkpoint, (3, 64) here" in caplog.text
    assert torch.equal(second.label_predictor.weight, before)
    assert torch.equal(second.backbone.norm3.weight, first.backbone.norm3.weight)


def test_what_is_missing_is_named():
    cfg = classifier_cfg()
    cfg.MODEL.MULTI_LABEL.FEATURE = "res6"
    with pytest.raises(ValueError, match=r"feature=\) expects one of the backbone's maps, \['res5'\].* Got 'res6'"):
        build_model(cfg)
    model = build()
    with EventStorage(0):
        inputs = batch_of_inputs(*SIZES)
        inputs[1]["labels"] = inputs[1]["labels"][:3]
        with pytest.raises(ValueError, match=r"of shape \(5,\) in every .*'labels': \(3,\).*\nHINT: use MultiLabel"):
            model(inputs)
        del inputs[1]["labels"], inputs[1]["labels_ignored"]
        with pytest.raises(ValueError, match="Got none"):
            model(inputs)
        inputs = batch_of_inputs(*SIZES)
        del inputs[0]["selection_labels"]
        with pytest.raises(ValueError, match="expects 'selection_labels' in every training input"):
            model(inputs)
