"""A stage of DynamicSwin: who decides, for whom, and by what rule."""

import math

import pytest
import torch
from torch import Tensor

from spt_d2.layers.block import SwinBlock
from spt_d2.layers.dynamic_block import DynamicBlock
from spt_d2.layers.dynamic_stage import DynamicStage
from tests import reference
from tests.layers.test_dynamic_block import per_token

DIM, HEADS, WINDOW = 8, 2, 3
PLACES, RATIOS = (1, 2, 4), (0.7, 0.5, 0.3)


def make_stage(use_checkpoint: bool = False, **values) -> DynamicStage:
    stage = DynamicStage(
        dim=DIM, depth=6, num_heads=HEADS, window_size=WINDOW, drop_path=[0.0] * 6, downsample=True, stage=3,
        predictor_blocks=PLACES, keep_ratios=RATIOS, use_checkpoint=use_checkpoint, **values,
    )  # fmt: skip
    return reference.randomise_(stage).double()


def some_input() -> tuple[Tensor, Tensor]:
    valid = torch.ones(2, 6, 5, dtype=torch.bool)
    valid[-1, :, 3:] = False
    return torch.randn(2, 6, 5, DIM, dtype=torch.float64, requires_grad=True), valid


def test_blocks_from_the_first_predictor_on_have_two_ffns_and_every_second_is_shifted():
    stage = make_stage()
    assert [type(block) for block in stage.blocks] == [SwinBlock] + [DynamicBlock] * 5
    assert [block.attn.shift_size for block in stage.blocks] == [0, 1] * 3
    assert [stage.keep_ratio_of(i) for i in range(6)] == [None, 0.7, 0.5, 0.5, 0.3, 0.3]


def test_evaluation_keeps_the_highest_scores_of_each_image_and_decides_anew_among_all():
    stage = make_stage().eval()
    x, valid = some_input()
    out, selections = stage(x, valid)
    expected = stage.blocks[0](x)
    found = iter(selections)
    for i in range(1, 6):
        if i in PLACES:
            number = PLACES.index(i)
            score = stage.score_predictor[number](expected, valid)
            mask = torch.zeros_like(valid)
            for b in range(2):
                places = [(s, t) for s in range(6) for t in range(5) if valid[b, s, t]]
                places.sort(key=lambda place: -score[(b, *place)].item())
                for place in places[: math.ceil(RATIOS[number] * len(places) - 1e-9)]:
                    mask[(b, *place)] = True
        expected = per_token(stage.blocks[i], expected, mask)
        selection = next(found)
        assert (selection.stage, selection.block, selection.stride) == (3, i, 16)
        assert (selection.target, selection.leads) == (stage.keep_ratio_of(i), i in PLACES)
        assert torch.equal(selection.keep_mask, mask) and selection.layout is None and selection.valid is valid
        assert torch.equal(selection.policy, mask.double())
        reference.close(selection.score, score)
    assert next(found, None) is None
    reference.close(out, expected)
    # Not nested: some token is skipped by a predictor and kept by a later one.
    first, second, third = (s.keep_mask for s in selections if s.leads)
    assert (second & ~first).any() or (third & ~second).any()


def slow_training(stage: DynamicStage, x: Tensor, valid: Tensor) -> tuple[Tensor, list[Tensor]]:
    """As the method's description reads: both results of every token, chosen by hard masks with a soft slope."""
    x = stage.blocks[0](x)
    results = [x, x]
    policies: list[Tensor] = []
    for i in range(1, 6):
        if i in PLACES:
            seen = x if not policies else results[0] * policies[-1] + results[1] * (1 - policies[-1])
            score = stage.score_predictor[PLACES.index(i)](seen, valid)
            noise = torch.logit(torch.rand(score.shape).clamp(1e-6, 1 - 1e-6)).double()
            two = torch.stack((score + noise, torch.zeros_like(score)), dim=-1).softmax(dim=-1)[..., 0]
            hard = (two > 0.5) & valid
            policies.append((hard + torch.where(valid, two - two.detach(), 0))[..., None])
        mask, block = policies[-1], stage.blocks[i]
        merged = results[0] * mask + results[1] * (1 - mask)
        merged = merged + block.attn(block.norm1(merged))
        inputs = merged * mask + results[0] * (1 - mask), merged * (1 - mask) + results[1] * mask
        results = [merged + block.mlp(block.norm2(inputs[0])), merged + block.fastmlp(inputs[1])]
    return results[0] * policies[-1] + results[1] * (1 - policies[-1]), policies


@pytest.mark.parametrize("use_checkpoint", [False, True])
def test_training_equals_the_description_forward_and_backward(use_checkpoint):
    stage = make_stage(use_checkpoint)
    x, valid = some_input()
    torch.manual_seed(5)
    actual, selections = stage(x, valid)
    torch.manual_seed(5)
    expected, policies = slow_training(stage, x, valid)
    reference.close(actual, expected)
    for selection, policy in zip([s for s in selections if s.leads], policies, strict=True):
        assert torch.equal(selection.policy, policy.squeeze(-1).detach()) and not selection.keep_mask[~valid].any()
        assert torch.equal(selection.keep_mask, selection.policy.bool())
    inputs = {n.replace(".", "_"): p for n, p in stage.named_parameters() if not n.startswith("downsample")}
    # The distance from the ratios learns through the policies, too.
    own = torch.cat((actual.flatten(), *(s.policy.flatten() for s in selections if s.leads)))
    truth = reference.gradients(torch.cat((expected.flatten(), *(p.flatten() for p in policies))), x=x, **inputs)
    for name, gradient in reference.gradients(own, x=x, **inputs).items():
        reference.close(gradient, truth[name], atol=1e-9, rtol=1e-8)
    assert all(truth[name].abs().sum() > 0 for name in inputs)


@pytest.mark.parametrize("bias", [-60.0, 60.0], ids=["nothing_kept", "everything_kept"])
def test_decisions_that_leave_one_ffn_empty_train_all_parameters(bias):
    stage = make_stage(drop=0.1, attn_drop=0.1)
    for predictor in stage.score_predictor:
        torch.nn.init.zeros_(predictor.out_conv[4].weight)
        predictor.out_conv[4].bias.data = torch.tensor([bias, 0.0], dtype=torch.float64)
    x, valid = some_input()
    out, selections = stage(x, valid)
    assert all(torch.equal(s.keep_mask, valid & (bias > 0)) for s in selections)
    out.square().sum().backward()
    named = [(n, p) for n, p in stage.named_parameters() if not n.startswith("downsample")]
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for _, p in named)


def test_a_stage_that_is_frozen_ranks_while_others_train():
    stage = make_stage().eval().requires_grad_(False)
    x, valid = some_input()
    out, selections = stage(x, valid)
    assert torch.equal(out, stage(x, valid)[0]) and out.requires_grad
    assert [int(s.keep_mask[0].sum()) for s in selections] == [21, 15, 15, 9, 9]


def test_a_block_that_was_put_in_the_place_of_one_behind_a_predictor_is_an_error_at_inference():
    stage = make_stage().eval()
    stage.blocks[-1] = torch.nn.Sequential(stage.blocks[-1])
    with torch.no_grad(), pytest.raises(TypeError, match=r"\n  block 5: Sequential \(expected DynamicBlock\)"):
        stage(*some_input())
