"""Swin with SViT's gates: dense Swin where all is kept, the budget, padded batches, and what trainers ask of it."""

import logging
from dataclasses import replace

import pytest
import torch

from tests import reference
from tests.modeling.nano import FEATURES, images, nano_svit_gated_swin, nano_swin

from spt_d2.modeling import SvitGatedSwin  # isort: skip
from spt_d2.modeling.backbone.spt import warn_unsupervised  # isort: skip
from spt_d2.ops.budget import budget_loss  # isort: skip
from spt_d2.weights.fit import fit_to_model  # isort: skip


def force(model: SvitGatedSwin, score: float) -> SvitGatedSwin:
    """Let every gate give every token the same log-odds."""
    for name, parameter in model.named_parameters():
        if ".gate.fc2" in name:
            parameter.data.zero_()
            if name.endswith("bias"):
                parameter.data[0] = score
    return model


def stacked(features: dict[str, torch.Tensor]) -> torch.Tensor:
    return torch.cat([features[name].flatten() for name in FEATURES])


@pytest.mark.parametrize(
    "depths, expected",
    [
        ((2, 2, 6, 2), {3: (None, None, 0.7, 0.7, 0.49, 0.49), 4: (0.343, 0.343)}),
        ((2, 2, 18, 2), {3: (None,) * 2 + (0.7,) * 6 + (0.49,) * 6 + (0.343,) * 4, 4: (0.343, 0.343)}),
    ],
)
def test_thirds_of_the_gates_have_the_published_targets(depths, expected):
    with torch.device("meta"):
        model = SvitGatedSwin(depths=depths)
    assert model.targets == expected
    assert [getattr(stage, "targets", None) for stage in model.layers] == [None, None, expected[3], expected[4]]


@pytest.mark.parametrize("depths, dense, gates", [((2, 2, 6, 2), 27_520_698, 6), ((2, 2, 18, 2), 48_838_602, 18)])
def test_published_sizes_are_swins_and_the_gates(depths, dense, gates):
    with torch.device("meta"):
        model = SvitGatedSwin(depths=depths)
    # LayerNorm, C to C / 4, C / 4 to 2.
    added = [2 * c + (c + 1) * (c // 4) + (c // 4 + 1) * 2 for c in (384, 768)]
    assert sum(p.numel() for p in model.parameters()) == dense + (gates - 2) * added[0] + 2 * added[1]


@pytest.mark.parametrize("training", [True, False])
def test_everything_kept_is_dense_swin_forward_and_backward(training):
    model = force(nano_svit_gated_swin(), 60.0).train(training)
    dense = nano_swin(depths=(1, 1, 3, 2)).double().train(training)
    dense.load_state_dict({name: value for name, value in model.state_dict().items() if ".gate." not in name})
    # Maps of 8 x 16 and 4 x 8 tokens: whole windows of 4.
    image = images(2, 128, 256).requires_grad_()
    actual, selections = model.forward_with_selections(image)
    assert all(selection.keep_mask.all() for selection in selections)
    expected = dense(image)
    for name in FEATURES:
        reference.close(actual[name], expected[name])
    shared = [name for name, _ in dense.named_parameters()]
    mine, truth = (
        reference.gradients(stacked(f), image=image, **{name: dict(m.named_parameters())[name] for name in shared})
        for f, m in ((actual, model), (expected, dense))
    )
    for name, gradient in truth.items():
        reference.close(mine[name], gradient, atol=1e-9, rtol=1e-8)


def test_images_of_a_batch_keep_as_many_tokens_as_their_gates_say():
    model, image = nano_svit_gated_swin().eval(), images(4)
    _, selections = model.forward_with_selections(image)
    assert [(s.stage, s.block) for s in selections] == [(3, 1), (3, 2), (4, 0), (4, 1)]
    counts = [selection.layout.counts for selection in selections]
    assert any(len(set(count)) > 1 for count in counts)
    for i in range(4):
        _, own = model.forward_with_selections(image[i : i + 1])
        assert [selection.layout.counts[0] for selection in own] == [count[i] for count in counts]


def test_an_image_gets_in_a_batch_of_equal_sizes_what_it_gets_alone():
    model, image = nano_svit_gated_swin().eval(), images(3, 70, 90)
    together = model(image)
    for i in range(3):
        for name, alone in model(image[i : i + 1]).items():
            reference.close(together[name][i : i + 1], alone)


@pytest.mark.parametrize("training", [True, False])
def test_padding_is_never_kept_and_not_counted(training):
    model = force(nano_svit_gated_swin(), 60.0).train(training)
    _, selections = model.forward_with_selections(images(2, 64, 96), [(64, 96), (33, 40)])
    for selection in selections:
        side = {3: (3, 3), 4: (2, 2)}[selection.stage]
        expected = torch.zeros_like(selection.keep_mask)
        expected[0], expected[1, : side[0], : side[1]] = True, True
        assert torch.equal(selection.keep_mask, expected) and torch.equal(selection.valid, expected)
    reference.close(
        model.selection_losses(selections)["loss_budget"],
        torch.tensor(4.0 * sum((1 - t) ** 2 for t in (0.7, 0.7, 0.49, 0.343)) / 4, dtype=torch.float64),
    )


def test_the_loss_is_the_weighted_budget_loss_and_reaches_the_gates():
    model = nano_svit_gated_swin(budget_weight=3.0)
    _, selections = model.forward_with_selections(images())
    losses = model.selection_losses(selections)
    assert losses.keys() == {"loss_budget"}
    reference.close(losses["loss_budget"], 3.0 * budget_loss(selections))
    losses["loss_budget"].backward()
    for name, parameter in model.named_parameters():
        if ".gate." in name:
            assert parameter.grad.abs().sum() > 0, name


def test_gates_that_keep_everything_learn_their_budget_from_the_loss_alone():
    model, image = force(nano_svit_gated_swin(torch.float32), 3.0), images(2, dtype=torch.float32)
    gates = [parameter for name, parameter in model.named_parameters() if ".gate." in name]
    optimizer = torch.optim.Adam(gates, lr=0.05)

    def expected_loss() -> float:
        _, selections = model.forward_with_selections(image)
        return budget_loss([replace(s, policy=torch.sigmoid(s.score)) for s in selections]).item()

    before = expected_loss()
    for _ in range(30):
        optimizer.zero_grad()
        model.selection_losses(model.forward_with_selections(image)[1])["loss_budget"].backward()
        optimizer.step()
    assert before > 0.15 and expected_loss() < 0.05


@pytest.mark.parametrize("size", [(64, 64), (50, 77), (3, 5)])
@pytest.mark.parametrize("score", [None, -60.0, 60.0])
def test_every_parameter_has_a_finite_gradient_at_any_size_whatever_is_kept(size, score):
    model = nano_svit_gated_swin(torch.float32)
    if score is not None:
        force(model, score)
    features, selections = model.forward_with_selections(images(2, *size, torch.float32))
    (stacked(features).square().mean() + model.selection_losses(selections)["loss_budget"]).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and torch.isfinite(parameter.grad).all(), name


def test_evaluation_is_deterministic_whatever_is_dropped_in_training():
    noisy = nano_svit_gated_swin(drop_rate=0.5, attn_drop_rate=0.5, drop_path_rate=0.5)
    plain, image = nano_svit_gated_swin(), images()
    plain.load_state_dict(noisy.state_dict(), strict=True)
    assert not torch.equal(noisy(image)["res5"], noisy(image)["res5"])
    first, second, third = noisy.eval()(image), noisy(image), plain.eval()(image)
    for name in FEATURES:
        assert torch.equal(first[name], second[name]) and torch.equal(first[name], third[name])


@pytest.mark.parametrize("freeze_at", [2, 4, 5])
def test_frozen_gates_decide_without_noise_and_learn_nothing(freeze_at):
    model, image = nano_svit_gated_swin(freeze_at=freeze_at), images()
    model.train()
    (first, chosen), (_, again) = (model.forward_with_selections(image) for _ in range(2))
    for one, other in zip(chosen, again):
        # Stages 1 to freeze_at - 1 are frozen.
        assert torch.equal(one.keep_mask, other.keep_mask) == (one.stage < freeze_at)
        assert one.policy.requires_grad == (one.stage >= freeze_at)
    (stacked(first).sum() + model.selection_losses(chosen)["loss_budget"]).backward()
    assert all((p.grad is not None) == p.requires_grad for p in model.parameters())


def test_recomputed_activations_give_the_same_gradients():
    results, image = [], images()
    for use_checkpoint in (False, True):
        model = nano_svit_gated_swin(use_checkpoint=use_checkpoint, drop_path_rate=0.5)
        torch.manual_seed(2)
        features, selections = model.forward_with_selections(image)
        (stacked(features).square().sum() + model.selection_losses(selections)["loss_budget"]).backward()
        results.append([parameter.grad for parameter in model.parameters()])
    for plain, again in zip(*results):
        reference.close(again, plain)


@pytest.mark.parametrize("training", [True, False])
def test_bfloat16_autocast_runs_and_decides_in_float32(training):
    model, image = nano_svit_gated_swin(torch.float32).train(training), images(dtype=torch.float32)
    dense = nano_swin(depths=(1, 1, 3, 2)).train(training)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        features, selections = model.forward_with_selections(image)
        losses, expected = model.selection_losses(selections), dense(image)
    for name in FEATURES:
        assert features[name].dtype == expected[name].dtype and torch.isfinite(features[name]).all()
    assert all(s.score.dtype == s.policy.dtype == torch.float32 for s in selections)
    assert losses["loss_budget"].dtype == torch.float32


def test_without_a_meta_architecture_that_holds_the_budget_it_warns_once(caplog):
    warn_unsupervised.cache_clear()
    model = nano_svit_gated_swin()
    with caplog.at_level(logging.WARNING):
        model(images()), model(images()), model.eval()(images())
    assert (
        sum("The SvitGatedSwin backbone is trained through its plain forward" in text for text in caplog.messages) == 1
    )


def test_a_dense_swin_loads_and_only_the_gates_are_new():
    dense, model = nano_swin(depths=(1, 1, 3, 2)).double(), nano_svit_gated_swin()
    prefixed = {f"backbone.bottom_up.{name}": value for name, value in model.state_dict().items()}
    weights, report = fit_to_model(dense.state_dict(), prefixed)
    new = {entry.name for entry in report.entries if entry.action == "new"}
    assert new == {name for name in model.state_dict() if ".gate." in name}
    assert not any(entry.loud for entry in report.entries)
    model.load_state_dict({name.removeprefix("backbone.bottom_up."): v for name, v in weights.items()}, strict=False)
    for name, value in dense.state_dict().items():
        assert torch.equal(model.state_dict()[name], value)


@pytest.mark.parametrize(
    "values, message",
    [
        ({"gated_stages": ()}, r"SvitGatedSwin\(gated_stages=\) expects some of 1 to 4. Got \(\)(.|\n)*HINT"),
        ({"gated_stages": (3, 5)}, r"SvitGatedSwin\(gated_stages=\)"),
        ({"dense_blocks": 3}, r"SvitGatedSwin\(dense_blocks=\) expects 0 to 2, for stage 3 has gates. Got 3"),
        ({"dense_blocks": -1}, r"SvitGatedSwin\(dense_blocks=\)"),
        ({"keep_ratios": ()}, r"SvitGatedSwin\(keep_ratios=\) expects 1 to 4 fractions in \(0, 1\], for 4 gates"),
        ({"keep_ratios": (0.5, 1.2)}, r"SvitGatedSwin\(keep_ratios=\)"),
        ({"keep_ratios": (0.5,) * 5}, r"SvitGatedSwin\(keep_ratios=\)"),
    ],
)  # fmt: skip
def test_arguments_that_cannot_be_are_told(values, message):
    with pytest.raises(ValueError, match=message):
        nano_svit_gated_swin(**values)


def test_any_stage_may_have_gates():
    model = nano_svit_gated_swin(gated_stages=(1, 2, 3, 4), dense_blocks=0).eval()
    _, selections = model.forward_with_selections(images())
    assert [(s.stage, s.stride) for s in selections] == [(1, 4), (2, 8), (3, 16), (3, 16), (3, 16), (4, 32), (4, 32)]
