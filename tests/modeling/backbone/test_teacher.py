"""The dense Swin that DynamicSwin may learn from: what it is, and where it is not to be found."""

import copy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tests import reference
from tests.modeling.nano import images, nano_dynamic_swin, nano_spt, nano_swin

from spt_d2.ops.dynamic_selection import map_distance  # isort: skip

DEPTHS = (1, 1, 6, 1)


def dense(**values):
    return nano_swin(depths=DEPTHS, **values).double()


def save(weights: dict, path: Path, **beside) -> str:
    torch.save({"model": weights, **beside}, path)
    return str(path)


@pytest.fixture
def teacher_file(tmp_path: Path) -> str:
    return save(dense().state_dict(), tmp_path / "teacher.pth")


def distance(model, x, sizes=None) -> torch.Tensor:
    return model.forward_with_selections(x, sizes)[1][-1].distillation


def test_the_loss_is_the_distance_from_the_dense_map(teacher_file):
    model, x = nano_dynamic_swin(teacher_weights=teacher_file, distill_weight=0.5), images(2, 64, 96)
    sizes = [(64, 96), (33, 40)]
    torch.manual_seed(1)
    features, selections = model.forward_with_selections(x, sizes)
    with torch.no_grad():
        target = dense().eval()(x)["res5"]
    valid = torch.zeros(2, 2, 3, dtype=torch.bool)
    valid[0], valid[1, :2, :2] = True, True
    losses = model.selection_losses(selections)
    reference.close(losses["loss_distill"], 0.5 * map_distance(features["res5"], target, valid))
    assert all(selection.distillation is None for selection in selections[:-1])


def test_a_student_that_is_its_teacher_has_nothing_to_learn(teacher_file):
    model = nano_dynamic_swin(teacher_weights=teacher_file, keep_ratio=1.0, predictor_blocks=(1,))
    model.load_state_dict(dense().state_dict(), strict=False)
    last = model.layers[2].score_predictor[0].out_conv[4]
    last.weight.data.zero_()
    last.bias.data = torch.tensor([60.0, 0.0], dtype=torch.float64)
    assert distance(model, images()).item() < 1e-20


def test_gradients_reach_the_student_alone_and_the_teacher_drops_nothing(teacher_file):
    model, x = nano_dynamic_swin(teacher_weights=teacher_file, drop_path_rate=0.5, drop_rate=0.5), images()
    distance(model, x).backward()
    assert model.layers[0].blocks[0].attn.qkv.weight.grad.abs().sum() > 0
    network = model.teacher._network
    assert not network.training and all(not p.requires_grad and p.grad is None for p in network.parameters())
    assert torch.equal(model.teacher.last_map(x), model.teacher.last_map(x))
    assert not model.teacher.last_map(x).requires_grad


def test_it_is_no_part_of_the_model(teacher_file, tmp_path: Path):
    plain, model = nano_dynamic_swin(), nano_dynamic_swin(teacher_weights=teacher_file)
    distance(model, images())
    assert model.state_dict().keys() == plain.state_dict().keys()
    assert sum(p.numel() for p in model.parameters()) == sum(p.numel() for p in plain.parameters())
    assert {type(m) for m in model.modules()} == {type(m) for m in plain.modules()}
    plain.load_state_dict(copy.deepcopy(model).state_dict(), strict=True)
    network = model.teacher._network
    assert network.training is False and model.train() is model and network.training is False


def test_no_random_number_is_drawn_for_it(teacher_file):
    plain, model, x = nano_dynamic_swin(), nano_dynamic_swin(teacher_weights=teacher_file), images()
    states = []
    for each in (plain, model):
        torch.manual_seed(4)
        each.forward_with_selections(x)
        states.append(torch.get_rng_state())
    assert torch.equal(*states)


def test_it_is_needed_in_training_under_a_loss_alone(tmp_path: Path):
    model = nano_dynamic_swin(teacher_weights=str(tmp_path / "gone.pth"))
    model.eval().forward_with_selections(images())
    model.train()(images())
    with pytest.raises(FileNotFoundError):
        model.forward_with_selections(images())


def of_a_detector(weights: dict) -> dict:
    return {f"backbone.bottom_up.{k}": v for k, v in weights.items()} | {"backbone.fpn_lateral2.bias": torch.zeros(3)}


def of_a_classifier(weights: dict) -> dict:
    kept = {k.replace("norm3.", "norm.") if k.startswith("norm3.") else k: v for k, v in weights.items()}
    kept = {k: v for k, v in kept.items() if not k.startswith(("norm0", "norm1", "norm2"))}
    return kept | {"head.weight": torch.zeros(5, 64), "head.bias": torch.zeros(5)}


@pytest.mark.parametrize("layout", [of_a_detector, of_a_classifier])
def test_files_of_detectors_and_of_classifiers_give_the_same_map(layout: Callable, teacher_file, tmp_path: Path):
    x = images()
    other = save(layout(dense().state_dict()), tmp_path / "other.pth", iteration=7)
    first, second = (nano_dynamic_swin(teacher_weights=path).teacher.last_map(x) for path in (teacher_file, other))
    assert torch.equal(first, second)


def strangers() -> dict[str, dict]:
    cut = dense().state_dict()
    del cut["norm3.weight"]
    return {
        "deeper": nano_swin(depths=(1, 1, 7, 1)).state_dict(),
        "shallower": nano_swin(depths=(1, 1, 5, 1)).state_dict(),
        "of other windows": dense(window_size=3).state_dict(),
        "without positions": nano_spt(depths=DEPTHS).state_dict(),
        "without its last norm": cut,
    }


@pytest.mark.parametrize("kind", strangers())
def test_a_swin_of_other_sizes_is_refused(kind, tmp_path: Path):
    path = save(strangers()[kind], tmp_path / "other.pth")
    with pytest.raises(ValueError, match=r"Teacher\(weights=\) expects a dense Swin of the student's sizes"):
        distance(nano_dynamic_swin(teacher_weights=path), images())


def test_a_file_without_swin_is_refused(tmp_path: Path):
    path = save({"conv.weight": torch.zeros(2)}, tmp_path / "other.pth")
    with pytest.raises(ValueError, match=r"expects the weights of a Swin backbone\. Got none in .*other\.pth"):
        distance(nano_dynamic_swin(teacher_weights=path), images())


def test_a_swin_of_another_width_is_refused(tmp_path: Path):
    path = save(dense(embed_dim=16).state_dict(), tmp_path / "wide.pth")
    with pytest.raises(ValueError, match="expects a backbone as wide as the model's"):
        distance(nano_dynamic_swin(teacher_weights=path), images())
