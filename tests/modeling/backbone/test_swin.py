"""Dense Swin against Detectron2's own, with the same weights."""

import pytest
import torch

from tests import reference
from tests.modeling.nano import FEATURES, SIZES, nano_swin

from detectron2.modeling.backbone.swin import SwinTransformer  # isort: skip

from spt_d2.modeling import Swin  # isort: skip


def pair(dtype: torch.dtype, **values) -> tuple[Swin, SwinTransformer]:
    ours = Swin(**{**SIZES, "drop_path_rate": 0.0, **values})
    theirs = reference.randomise_(SwinTransformer(**{**SIZES, "drop_path_rate": 0.0, **values}))
    weights = {name: value for name, value in theirs.state_dict().items() if "relative_position_index" not in name}
    ours.load_state_dict(weights, strict=True)
    return ours.to(dtype), theirs.to(dtype)


@pytest.mark.parametrize("window_size", [4, 7])
@pytest.mark.parametrize("height, width", [(32, 32), (64, 96), (50, 77), (33, 130), (3, 5)])
def test_equals_detectron2s_swin_forward_and_backward(height, width, window_size):
    ours, theirs = pair(torch.float64, window_size=window_size)
    image = torch.randn(2, 3, height, width, dtype=torch.float64, requires_grad=True)
    actual, expected = ours(image), theirs(image)
    assert list(actual) == list(FEATURES) and list(expected) == ["p0", "p1", "p2", "p3"]
    with torch.no_grad():
        unrecorded = ours.eval()(image)
    for mine, again, yours in zip(actual.values(), unrecorded.values(), expected.values()):
        reference.close(mine, yours)
        reference.close(again, yours.detach())
    parameters = dict(theirs.named_parameters())
    truth = reference.gradients(torch.cat([f.flatten() for f in expected.values()]), image=image, **parameters)
    mine = reference.gradients(
        torch.cat([f.flatten() for f in actual.values()]), image=image, **dict(ours.named_parameters())
    )
    assert mine.keys() == truth.keys()
    for name, gradient in mine.items():
        reference.close(gradient, truth[name], atol=1e-9, rtol=1e-8)


def test_equals_detectron2s_swin_in_float32():
    ours, theirs = pair(torch.float32, window_size=7)
    image = torch.randn(1, 3, 100, 130)
    for mine, yours in zip(ours(image).values(), theirs(image).values()):
        reference.close(mine, yours, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    "embed_dim, depths, heads", [(96, (2, 2, 6, 2), (3, 6, 12, 24)), (128, (2, 2, 18, 2), (4, 8, 16, 32))]
)
def test_published_sizes_have_the_parameters_of_detectron2s(embed_dim, depths, heads):
    with torch.device("meta"):
        ours = Swin(embed_dim=embed_dim, depths=depths, num_heads=heads)
    count = sum(p.numel() for p in ours.parameters())
    # Swin-T and Swin-B with a LayerNorm for each of the four outputs, as Detectron2 builds them.
    assert count == {96: 27_520_698, 128: 86_745_016}[embed_dim]


def test_stochastic_depth_grows_linearly_over_all_blocks():
    model = Swin(**{**SIZES, "drop_path_rate": 0.5})
    rates = [block.drop_path.rate for stage in model.layers for block in stage.blocks]
    assert rates == pytest.approx([0.0, 0.1, 0.2, 0.3, 0.4, 0.5])


def test_linear_layers_start_as_swins_do():
    model = Swin(embed_dim=32, depths=(2, 2, 2, 2), num_heads=(1, 2, 4, 8))
    weight = model.layers[2].blocks[0].mlp.fc1.weight
    assert weight.std().item() == pytest.approx(0.02, rel=0.05) and weight.abs().max() < 0.1
    assert (model.layers[2].blocks[0].mlp.fc1.bias == 0).all()
    assert model.layers[0].blocks[0].attn.relative_position_bias_table.std().item() == pytest.approx(0.02, rel=0.2)


@pytest.mark.parametrize("out_features", [("res2",), ("res5", "res3"), FEATURES])
def test_out_features_come_in_order_each_with_its_norm(out_features):
    model = nano_swin(out_features=out_features)
    names = [name for name in FEATURES if name in out_features]
    features = model(torch.randn(1, 3, 64, 64))
    assert list(features) == names == list(model.output_shape())
    assert [hasattr(model, f"norm{i}") for i in range(4)] == [name in out_features for name in FEATURES]


def test_fewer_stages_work():
    model = nano_swin(depths=(1, 1), num_heads=(1, 2), out_features=("res3",))
    assert model(torch.randn(1, 3, 16, 24))["res3"].shape == (1, 16, 2, 3)
    assert model.size_divisibility == 8


def test_evaluation_is_deterministic_whatever_is_dropped_in_training():
    noisy, plain = nano_swin(drop_rate=0.5, attn_drop_rate=0.5, drop_path_rate=0.5), nano_swin()
    plain.load_state_dict(noisy.state_dict())
    image = torch.randn(2, 3, 48, 40)
    assert not torch.equal(noisy(image)["res5"], noisy(image)["res5"])
    first, second, third = noisy.eval()(image), noisy(image), plain(image)
    for name in FEATURES:
        assert torch.equal(first[name], second[name]) and torch.equal(first[name], third[name])


@pytest.mark.parametrize("freeze_at, frozen_stages", [(0, 0), (1, 0), (2, 1), (3, 2), (5, 4)])
def test_frozen_modules_do_not_learn_and_stay_in_evaluation_mode(freeze_at, frozen_stages):
    model = nano_swin(freeze_at=freeze_at, drop_rate=0.5)
    for _ in range(2):
        frozen = [model.patch_embed] * (freeze_at > 0) + list(model.layers[:frozen_stages])
        learning = [*model.layers[frozen_stages:], model.norm3]
        assert all(not m.training and not p.requires_grad for m in frozen for p in m.parameters())
        assert all(m.training and p.requires_grad for m in learning for p in m.parameters())
        # And after training mode is set again, as every trainer does.
        model.train()
    model(torch.randn(1, 3, 32, 32))["res5"].sum().backward()
    assert all((p.grad is not None) == p.requires_grad for p in model.layers.parameters())


def test_recomputed_activations_give_the_same_gradients():
    image, gradients = torch.randn(2, 3, 48, 40, dtype=torch.float64), []
    for use_checkpoint in (False, True):
        model = nano_swin(use_checkpoint=use_checkpoint, drop_path_rate=0.5, drop_rate=0.2).double()
        torch.manual_seed(2)
        sum(f.square().sum() for f in model(image).values()).backward()
        gradients.append([p.grad for p in model.parameters()])
    for plain, recomputed in zip(*gradients):
        reference.close(recomputed, plain)


def test_a_dense_backbone_has_no_selections():
    model = nano_swin()
    image = torch.randn(1, 3, 32, 32)
    features, selections = model.forward_with_selections(image, [(30, 31)], {})
    assert selections == []
    assert all(torch.equal(features[name], value) for name, value in model(image).items())


@pytest.mark.parametrize(
    "values, message",
    [
        (
            {"depths": (2, 2, 2)},
            r"one depth and one number of heads for each of 1 to 4 stages.\n  depths   : \(2, 2, 2\)",
        ),
        ({"depths": (1,) * 5, "num_heads": (1,) * 5}, "one depth and one number of heads for each of 1 to 4 stages"),
        ({"out_features": ("p2",)}, r"out_features expects some of \('res2', 'res3', 'res4', 'res5'\). Got \('p2',\)"),
        ({"out_features": ()}, "out_features expects some of"),
        ({"freeze_at": 6}, "freeze_at expects 0 to 5. Got 6"),
        ({"drop_path_rate": 1.0}, "DropPath"),
    ],
)
def test_arguments_that_make_no_sense_are_errors(values, message):
    with pytest.raises(ValueError, match=message):
        Swin(**{**SIZES, **values})
