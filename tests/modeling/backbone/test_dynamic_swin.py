"""DynamicSwin: what it is beside Swin, what it decides of whole and of padded images, and what its losses do."""

import math

import pytest
import torch

from tests import reference
from tests.modeling.nano import FEATURES, images, nano_dynamic_swin, nano_swin

from spt_d2.modeling import DynamicSwin  # isort: skip

DEPTHS = (1, 1, 6, 1)


def keeps_all(**values) -> DynamicSwin:
    return nano_dynamic_swin(keep_ratio=1.0, predictor_blocks=(1,), **values)


def counts(selections) -> list[list[int]]:
    return [s.keep_mask.flatten(1).sum(dim=1).tolist() for s in selections]


# The anchor.


@pytest.mark.parametrize("height, width", [(64, 64), (70, 50)])
def test_at_ratio_1_it_is_swin_forward_and_backward(height, width):
    swin, model = nano_swin(depths=DEPTHS).double(), keeps_all().eval()
    missing, unexpected = model.load_state_dict(swin.state_dict(), strict=False)
    assert not unexpected and all(".fastmlp." in name or ".score_predictor." in name for name in missing)
    x = images(2, height, width).requires_grad_()
    actual, expected = model(x), swin(x)
    for name in FEATURES:
        reference.close(actual[name], expected[name])
    own = dict(model.named_parameters())
    shared = {n: p for n, p in swin.named_parameters() if not n.startswith("norm") or n.startswith("norm3")}
    truth = reference.gradients(expected["res5"], x=x, **shared)
    mine = reference.gradients(actual["res5"], x=x, **{n: own[n] for n in shared})
    for name, gradient in mine.items():
        reference.close(gradient, truth[name], atol=1e-9, rtol=1e-8)


# What it decides.


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("places", [(0,), (1, 2, 4), (0, 1, 5), (5,)], ids=str)
def test_every_block_after_a_predictor_reports_its_decision(places, training):
    model = nano_dynamic_swin(predictor_blocks=places).train(training)
    _, selections = model.forward_with_selections(images())
    assert [(s.stage, s.block, s.stride, s.leads) for s in selections] == [
        (3, block, 16, block in places) for block in range(places[0], 6)
    ]
    assert [s.target for s in selections if s.leads] == [0.7, 0.5, 0.3][: len(places)]
    assert all(s.score.shape == s.valid.shape == s.policy.shape == (2, 4, 4) for s in selections)


@pytest.mark.parametrize("sizes", [None, [(64, 64), (33, 17)], [(64, 64), (1, 1)], [(64, 64), (0, 0)]], ids=str)
def test_in_evaluation_each_image_keeps_its_share_of_its_own_tokens(sizes):
    model = nano_dynamic_swin().eval()
    _, selections = model.forward_with_selections(images(), sizes)
    totals = [math.ceil(h / 16) * math.ceil(w / 16) for h, w in sizes or [(64, 64)] * 2]
    ratios = [0.7, 0.5, 0.5, 0.3, 0.3]
    assert counts(selections) == [[math.ceil(ratio * total - 1e-9) for total in totals] for ratio in ratios]
    assert not any((s.keep_mask & ~s.valid).any() for s in selections)


def test_in_training_padding_is_never_kept():
    _, selections = nano_dynamic_swin().forward_with_selections(images(), [(64, 64), (33, 17)])
    assert all(s.valid[1].sum() == 6 and not s.keep_mask[~s.valid].any() for s in selections)
    assert any(s.keep_mask.any() for s in selections)


def test_an_image_never_sees_its_batch():
    """A batch of two, which the authors' code takes for the pair of results that it hands on in training."""
    model, x = nano_dynamic_swin().eval(), images(2)
    features, selections = model.forward_with_selections(x)
    for b in range(2):
        own_features, own = model.forward_with_selections(x[b : b + 1])
        for name in FEATURES:
            reference.close(features[name][b], own_features[name][0], atol=1e-9, rtol=1e-8)
        for mine, theirs in zip(own, selections):
            assert torch.equal(mine.keep_mask[0], theirs.keep_mask[b])


@pytest.mark.parametrize("height, width", [(1, 1), (5, 37), (70, 50)])
def test_images_of_any_size_work_in_both_modes(height, width):
    model, x = nano_dynamic_swin(), images(2, height, width)
    features, selections = model.forward_with_selections(x, [(height, width), (1, 1)])
    losses = [f.square().sum() for f in features.values()] + list(model.selection_losses(selections).values())
    sum(losses).backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in model.parameters())
    with torch.no_grad():
        shapes = {name: f.shape for name, f in model.eval()(x).items()}
    assert shapes == {name: (2, 8 * 2**i, -(-height // 2 ** (i + 2)), -(-width // 2 ** (i + 2)))
                      for i, name in enumerate(FEATURES)}  # fmt: skip


# Modes.


def test_evaluation_is_deterministic_whatever_is_dropped_in_training():
    noisy = nano_dynamic_swin(drop_rate=0.5, attn_drop_rate=0.5, drop_path_rate=0.5)
    plain, x = nano_dynamic_swin(), images()
    assert not torch.equal(noisy(x)["res5"], noisy(x)["res5"])
    first, again, other = (model.eval()(x) for model in (noisy, noisy, plain))
    assert all(torch.equal(first[n], again[n]) and torch.equal(first[n], other[n]) for n in FEATURES)


def test_training_samples_and_its_noise_is_all_that_differs():
    model, x = nano_dynamic_swin(), images()
    passes = []
    for seed in (0, 1, 0):
        torch.manual_seed(seed)
        passes.append(model.forward_with_selections(x)[1][0].keep_mask)
    assert torch.equal(passes[0], passes[2]) and not torch.equal(passes[0], passes[1])


def test_recomputing_activations_changes_nothing():
    results = []
    for use_checkpoint in (False, True):
        model = nano_dynamic_swin(use_checkpoint=use_checkpoint, drop_rate=0.2, drop_path_rate=0.3)
        torch.manual_seed(2)
        features, selections = model.forward_with_selections(images())
        loss = sum(f.square().mean() for f in features.values()) + model.selection_losses(selections)["loss_keep_ratio"]
        loss.backward()
        results.append([loss.detach(), *(p.grad for p in model.parameters())])
    for plain, recomputed in zip(*results):
        reference.close(recomputed, plain)


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_mixed_precision_gives_maps_of_swins_dtype(training):
    x = images(dtype=torch.float32)
    model, swin = nano_dynamic_swin(torch.float32).train(training), nano_swin(depths=DEPTHS).train(training)
    with torch.autocast("cpu", torch.bfloat16):
        features, expected = model(x), swin(x)
    assert {n: f.dtype for n, f in features.items()} == {n: f.dtype for n, f in expected.items()}
    assert all(torch.isfinite(f).all() for f in features.values())


def test_frozen_stages_take_no_gradient_and_rank():
    model = nano_dynamic_swin(freeze_at=4)
    features, selections = model.forward_with_selections(images())
    loss = sum(model.selection_losses(selections).values()) + features["res5"].square().sum()
    loss.backward()
    trained = {n for n, p in model.named_parameters() if p.grad is not None}
    assert not any(name.startswith(("layers.0", "layers.1", "layers.2", "patch")) for name in trained)
    assert any(name.startswith("layers.3") for name in trained)
    assert counts(selections)[0] == [12, 12]


def test_a_state_dict_comes_back_and_has_the_published_names():
    model, other = nano_dynamic_swin(), DynamicSwin(embed_dim=8, depths=DEPTHS, num_heads=(1, 2, 2, 4), window_size=4,
                                                    mlp_ratio=2.0, predictor_blocks=(1, 2, 4)).double()  # fmt: skip
    other.load_state_dict(model.state_dict(), strict=True)
    x = images()
    assert torch.equal(model.eval()(x)["res5"], other.eval()(x)["res5"])
    own = set(model.state_dict()) - set(nano_swin(depths=DEPTHS).state_dict())
    layers = ("in_conv.0", "in_conv.1", "out_conv.0", "out_conv.2", "out_conv.4")
    parts = [f"score_predictor.{i}.{layer}" for i in range(3) for layer in layers]
    parts += [f"blocks.{i}.fastmlp.fc1.{j}" for i in range(1, 6) for j in (0, 1)]
    assert own == {f"layers.2.{part}.{kind}" for part in parts for kind in ("weight", "bias")}


# Losses.


def test_the_ratio_loss_is_the_published_sum_over_decisions():
    model = nano_dynamic_swin(ratio_weight=10.0)
    _, selections = model.forward_with_selections(images(3), [(64, 64), (33, 17), (64, 64)])
    expected = 0.0
    for number, target in ((0, 0.7), (1, 0.5), (3, 0.3)):
        for b in range(3):
            kept = selections[number].keep_mask[b][selections[number].valid[b]].double().mean()
            expected += 10.0 / 3 * (kept - target) ** 2 / 3
    losses = model.selection_losses(selections)
    assert losses.keys() == {"loss_keep_ratio"}
    assert losses["loss_keep_ratio"].item() == pytest.approx(expected.item())


def test_the_ratio_loss_alone_brings_the_shares_to_their_ratios():
    model = nano_dynamic_swin(torch.float32)
    predictors = model.layers[2].score_predictor
    optimizer = torch.optim.Adam(predictors.parameters(), lr=0.02)
    stage, x = model.layers[2], torch.randn(2, 16, 16, 32)
    valid = torch.ones(2, 16, 16, dtype=torch.bool)
    for _ in range(40):
        optimizer.zero_grad()
        _, selections = stage(x, valid)
        model.selection_losses(selections)["loss_keep_ratio"].backward()
        optimizer.step()
    shares = [s.keep_mask.float().mean().item() for s in stage(x, valid)[1] if s.leads]
    assert shares == pytest.approx([0.7, 0.5, 0.3], abs=0.08)


def test_the_detectors_losses_reach_the_predictors():
    model = nano_dynamic_swin()
    model(images())["res5"].square().sum().backward()
    assert all(p.grad.abs().sum() > 0 for p in model.layers[2].score_predictor.parameters())


# What cannot be.


@pytest.mark.parametrize(
    "values, message",
    [
        ({"predictor_blocks": ()}, r"DynamicSwin\(predictor_blocks=\) expects ascending numbers"),
        ({"predictor_blocks": (2, 1)}, r"Got \(2, 1\) for depths \(1, 1, 6, 1\)"),
        ({"predictor_blocks": (1, 6)}, r"DynamicSwin\(predictor_blocks=\)"),
        ({"predictor_blocks": (-1, 2)}, r"DynamicSwin\(predictor_blocks=\)"),
        ({"depths": (1, 1), "num_heads": (1, 2)}, r"blocks of stage 3.*depths \(1, 1\)"),
        ({"keep_ratio": 0.4}, r"DynamicSwin\(keep_ratio=\) expects ratios in \(0, 1\], each 0.2 less"),
        ({"keep_ratio": 1.1}, r"DynamicSwin\(keep_ratio=\)"),
        ({"teacher_weights": "a.pth", "out_features": ("res4",)}, r"expects the map 'res5'.*Got out_features"),
    ],
)  # fmt: skip
def test_arguments_that_cannot_be_are_told(values, message):
    with pytest.raises(ValueError, match=message):
        nano_dynamic_swin(**values)
