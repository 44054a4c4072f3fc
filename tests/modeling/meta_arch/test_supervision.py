"""Selection loss, figures and errors of the meta-architectures."""

import pytest
import torch

from tests import reference
from tests.modeling.nano import batch_of_inputs, nano_cfg, nano_spt

from detectron2.modeling import build_model  # isort: skip
from detectron2.modeling.backbone.resnet import BasicStem, ResNet  # isort: skip
from detectron2.utils.events import EventStorage  # isort: skip

from spt_d2.modeling import SelectionGeneralizedRCNN  # isort: skip
from spt_d2.ops.labels import stack_selection_labels  # isort: skip

SIZES = ((64, 80), (70, 60))


def build(**spt) -> SelectionGeneralizedRCNN:
    cfg = nano_cfg("build_spt_fpn_backbone")
    for key, value in spt.items():
        cfg.MODEL.SPT[key] = value
    model = build_model(cfg)
    backbone = model.backbone.bottom_up
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in backbone.named_parameters():
            if "gate" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.5)
                parameter.sub_(5.0 if name.endswith("proj.bias") else 0.0)
    return model


def selections_of(model, inputs):
    """What the backbone selects on the batch, with padding and labels cut image by image."""
    images = model.preprocess_image(inputs)
    _, selections = model.backbone.forward_with_selections(images.tensor, images.image_sizes)
    for selection in selections:
        for i, given in enumerate(inputs):
            label = given["selection_labels"][selection.stride]
            rows, columns = label.shape
            yield selection, i, label, selection.score[i, :rows, :columns], selection.keep_mask


def ignore_some(inputs):
    for given in inputs:
        for label in given["selection_labels"].values():
            label[:, :1] = 255
    return inputs


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("pos_weight", [1.0, 5.0])
def test_losses_are_those_of_each_stages_score_maps_without_padding(reduction, pos_weight):
    model = build(LOSS_WEIGHT=0.7, LOSS_REDUCTION=reduction, POS_WEIGHT=pos_weight)
    inputs = ignore_some(batch_of_inputs(*SIZES))
    with EventStorage(1):
        losses = model(inputs)
    expected: dict[str, torch.Tensor] = {}
    for selection, _, label, score, _ in selections_of(model, inputs):
        weight = torch.where(label == 1, pos_weight, 1.0)
        probability = torch.sigmoid(torch.where(label == 1, score, -score))
        terms = (-weight * torch.log(probability))[label != 255]
        key = f"loss_select_stage{selection.stage}"
        # Two images.
        term = (terms.sum() if reduction == "sum" else terms.mean()) / 2
        expected[key] = expected.get(key, 0.0) + 0.7 * term
    actual = {name: loss for name, loss in losses.items() if "select" in name}
    assert actual.keys() == expected.keys() == {f"loss_select_stage{stage}" for stage in (2, 3, 4)}
    for name, loss in expected.items():
        reference.close(actual[name], loss)


def test_gates_learn_from_the_selection_loss_where_they_are_supervised():
    gradients = []
    for supervise in (True, False):
        model = build(SUPERVISE=supervise)
        with EventStorage(1):
            torch.manual_seed(3)
            losses = model(batch_of_inputs(*SIZES))
        assert any("select" in name for name in losses) == supervise
        sum(losses.values()).backward()
        # Even the gate whose tokens the task does not reach has a gradient: distributed training wants one.
        gradients.append({n: p.grad for n, p in model.named_parameters() if "gate" in n})
        assert all(gradient is not None for gradient in gradients[-1].values())
    assert any(not torch.equal(gradients[0][name], gradient) for name, gradient in gradients[1].items())


def test_without_supervision_no_labels_are_needed():
    model = build(SUPERVISE=False)
    inputs = [{k: v for k, v in given.items() if k != "selection_labels"} for given in batch_of_inputs(*SIZES)]
    with EventStorage(0) as storage:
        losses = model(inputs)
        latest = storage.latest()
    assert not any("select" in name for name in losses)
    assert "selection/stage3/keep_ratio" in latest
    assert not any("retention" in name or "density" in name for name in latest)


def test_figures_are_those_of_the_loop_and_come_once_a_period():
    model = build(LOG_PERIOD=5, SELECT="topk", KEEP_RATIO=0.6)
    inputs = ignore_some(batch_of_inputs(*SIZES))
    with EventStorage(10) as storage:
        model(inputs)
        latest = {name: value for name, (value, _) in storage.latest().items() if name.startswith("selection/")}
    counts: dict[int, list[int]] = {}
    for selection, i, label, _, keep in selections_of(model, inputs):
        if keep is None:
            continue
        row = counts.setdefault(selection.stage, [0, 0, 0, 0, 0])
        rows, columns = label.shape
        for k, y in zip(keep[i, :rows, :columns].flatten().tolist(), label.flatten().tolist()):
            for place, counted in enumerate((True, k, y == 1, k and y == 1, k and y != 255)):
                row[place] += counted
    expected = {}
    for stage, (tokens, kept, objects, kept_objects, judged) in counts.items():
        assert kept < tokens and objects > 0
        expected[f"selection/stage{stage}/keep_ratio"] = kept / tokens
        expected[f"selection/stage{stage}/retention"] = kept_objects / objects
        expected[f"selection/stage{stage}/density"] = kept_objects / judged
    assert 0 < expected["selection/stage3/density"] < 1
    assert latest == pytest.approx(expected)
    with EventStorage(11) as storage:
        model(inputs)
        assert not any(name.startswith("selection/") for name in storage.latest())


def test_between_two_records_nothing_is_asked_of_the_device(monkeypatch):
    """Whatever brings a value to the host would wait for the device there."""
    model, inputs = build(LOG_PERIOD=5), batch_of_inputs(*SIZES)
    images = model.preprocess_image(inputs)
    _, selections, labels = model.select_features(images, inputs)

    def wait(*args, **kwargs):
        raise AssertionError("the host waits for the device")

    for name in ("item", "tolist", "cpu", "numpy", "nonzero", "__bool__", "__int__", "__float__", "__index__"):
        monkeypatch.setattr(torch.Tensor, name, wait)
    with EventStorage(11):
        losses = model.selection_losses(selections, labels)
    assert len(losses) == 3
    with EventStorage(10), pytest.raises(AssertionError, match="the host waits"):
        model.selection_losses(selections, labels)


def test_figures_without_objects_are_left_out():
    model = build()
    inputs = batch_of_inputs(*SIZES)[1:]
    with EventStorage(0) as storage:
        model(inputs)
        latest = storage.latest()
    assert "selection/stage3/keep_ratio" in latest and "selection/stage3/retention" not in latest


def test_pixels_of_padding_and_their_labels_do_not_reach_the_loss():
    """Labels cut to the image or filled up to the batch with anything: the same loss."""
    model = build()
    inputs = batch_of_inputs(*SIZES)
    images = model.preprocess_image(inputs)
    labels = stack_selection_labels(
        [x["selection_labels"] for x in inputs], tuple(images.tensor.shape[-2:]), torch.device("cpu")
    )
    _, selections = model.backbone.forward_with_selections(images.tensor, images.image_sizes)
    wild = {stride: label.clone() for stride, label in labels.items()}
    for selection in selections:
        wild[selection.stride][~selection.valid] = 1
        assert (~selection.valid).any()
    with EventStorage(0) as storage:
        expected, figures = model.selection_losses(selections, labels), storage.latest()
    with EventStorage(0) as storage:
        actual, other = model.selection_losses(selections, wild), storage.latest()
    assert figures == other
    assert all(torch.equal(actual[name], loss) for name, loss in expected.items())


def test_oracle_reads_the_labels_of_the_inputs():
    model = build(SELECT="oracle", RETURN_SELECTIONS=True).eval()
    inputs = batch_of_inputs(*SIZES)
    with torch.no_grad():
        outputs = model(inputs)
    for given, output in zip(inputs, outputs):
        for block in output["selection"].blocks[1:]:
            assert torch.equal(block.keep_mask, given["selection_labels"][block.stride] == 1)


@pytest.mark.parametrize("which", ["all", "one"])
def test_training_without_labels_is_an_error_that_names_the_cure(which):
    model, inputs = build(), batch_of_inputs(*SIZES)
    for given in inputs if which == "all" else inputs[:1]:
        del given["selection_labels"]
    message = (
        r"SelectionGeneralizedRCNN expects 'selection_labels' in every training input. Got none.\n"
        r"HINT: use SelectionDatasetMapper, or supervise=False"
    )
    with pytest.raises(ValueError, match=message), EventStorage(0):
        model(inputs)


def test_training_without_labels_at_a_gates_stride_is_an_error_that_names_it():
    model = build()
    message = r"expects selection labels at stride 8. Got strides \[16, 32\].\nHINT: name it in INPUT.SPT.STRIDES"
    with pytest.raises(ValueError, match=message), EventStorage(0):
        model(batch_of_inputs(*SIZES, strides=(16, 32)))


def test_a_backbone_without_the_second_entry_is_an_error():
    resnet = ResNet(BasicStem(), [], out_features=["stem"])
    with pytest.raises(
        TypeError,
        match=r"SelectionGeneralizedRCNN\(backbone=\) expects a backbone with forward_with_selections\(\). "
        r"Got ResNet.\nHINT",
    ):
        SelectionGeneralizedRCNN(
            backbone=resnet, proposal_generator=None, roi_heads=None, pixel_mean=[0], pixel_std=[1]
        )


def test_an_unknown_reduction_is_an_error():
    with pytest.raises(ValueError, match=r"loss_reduction expects one of \('mean', 'sum'\). Got 'median'"):
        SelectionGeneralizedRCNN(backbone=nano_spt(), loss_reduction="median")


def test_arguments_reach_the_model_from_the_config():
    model = build(
        LOSS_WEIGHT=0.3, LOSS_REDUCTION="sum", POS_WEIGHT=2.0, SUPERVISE=False, RETURN_SELECTIONS=True, LOG_PERIOD=7
    )
    assert (model.loss_weight, model.loss_reduction, model.pos_weight) == (0.3, "sum", 2.0)
    assert (model.supervise, model.return_selections, model.log_period) == (False, True, 7)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_a_detector_trains_under_autocast_on_the_gpu(dtype):
    cfg = nano_cfg("build_spt_fpn_backbone")
    cfg.MODEL.DEVICE = "cuda"
    model = build_model(cfg)
    with EventStorage(0), torch.autocast("cuda", dtype=dtype):
        losses = model(batch_of_inputs(*SIZES))
    assert losses["loss_select_stage3"].dtype == torch.float32
    sum(losses.values()).backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in model.parameters())
