"""Every block keeps exactly the share that was planted, in blobs, by the code that users run."""

import numpy as np
import pytest
import torch

pytest.importorskip("detectron2", reason="detectron2 is not installed")

from spt_d2.benchmark.planting import PlantedGate, Planting, blob_field, planted_ranks, share
from spt_d2.layers.gate import SelectionGate
from spt_d2.ops.selection import select_tokens
from tests.modeling.nano import images, nano_spt


def border_length(mask: torch.Tensor) -> int:
    """Pairs of neighbours of which one is kept."""
    return int((mask[1:] != mask[:-1]).sum() + (mask[:, 1:] != mask[:, :-1]).sum())


def areas(mask: torch.Tensor) -> list[int]:
    """Of 4-connected components, by flooding."""
    left = {(int(y), int(x)) for y, x in mask.nonzero()}
    found = []
    while left:
        open_, size = [left.pop()], 0
        while open_:
            y, x = open_.pop()
            size += 1
            near = {(y + 1, x), (y - 1, x), (y, x + 1), (y, x - 1)} & left
            left -= near
            open_ += near
        found.append(size)
    return found


@pytest.mark.parametrize("seed", range(3))
def test_kept_tokens_are_clustered_in_blobs_of_several_sizes(seed):
    kept = planted_ranks((800, 1280), {3: 0.23}, seed)[3] > 0
    shuffled = kept.flatten()[torch.randperm(kept.numel())].view_as(kept)
    assert border_length(kept) < border_length(shuffled) / 5
    found = areas(kept)
    assert 3 <= len(found) <= 8
    assert max(found) > 3 * min(found)


def test_blobs_do_not_depend_on_the_grid():
    fine, coarse = blob_field((64, 96), 0), blob_field((32, 48), 0)
    pooled = fine.view(32, 2, 48, 2).mean(dim=(1, 3))
    np.testing.assert_allclose(pooled, coarse, atol=0.03)
    assert not torch.equal(coarse, blob_field((32, 48), 1))


@pytest.mark.parametrize("keep_ratio", (0.0, 0.09, 0.23, 0.5, 1.0))
@pytest.mark.parametrize("tokens", (1, 600, 4000))
def test_the_number_of_tokens_is_that_of_topk(keep_ratio, tokens):
    assert share(keep_ratio, tokens) == -(-round(keep_ratio * 100) * tokens // 100)
    if keep_ratio > 0:
        valid = torch.ones(1, 1, tokens, dtype=torch.bool)
        keep, _ = select_tokens(torch.randn(1, 1, tokens), valid, select="topk", keep_ratio=keep_ratio)
        assert share(keep_ratio, tokens) == int(keep.sum())


def test_a_stage_keeps_within_the_cells_that_the_next_one_keeps():
    ratios = {2: 0.25, 3: 0.25, 4: 0.3}
    ranks = planted_ranks((320, 448), ratios, seed=1)
    for stage, rank in ranks.items():
        assert rank.shape == (320 // 2 ** (stage + 1), 448 // 2 ** (stage + 1))
        assert int((rank > 0).sum()) == share(ratios[stage], rank.numel())
        # An order of all tokens, without ties.
        assert rank.unique().numel() == rank.numel() and rank.abs().max() <= 1 and rank.abs().min() > 0
    for stage in (2, 3):
        pooled = torch.nn.functional.max_pool2d(ranks[stage][None], 2)[0]
        assert not ((pooled > 0) & (ranks[stage + 1] < 0)).any()


def test_shares_that_eq_4_does_not_allow_are_an_error_unless_stages_do_not_see_each_other():
    with pytest.raises(ValueError, match="Stage 3 cannot keep 0.5 of its tokens where stage 4 keeps 0.25"):
        planted_ranks((320, 448), {3: 0.5, 4: 0.25}, seed=0)
    ranks = planted_ranks((320, 448), {3: 0.5, 4: 0.25}, seed=0, nested=False)
    assert [round(float((rank > 0).double().mean()), 3) for rank in ranks.values()] == [0.25, 0.5]
    with pytest.raises(ValueError, match=r"multiple of 32 pixels. Got \(320, 440\)"):
        planted_ranks((320, 440), {4: 0.5}, seed=0)


MODELS = {
    "default": ({}, 0.23),
    "a share each": ({}, {3: 0.2, 4: 0.5}),
    "nothing": ({}, 0.0),
    "everything": ({}, 1.0),
    "one decision per stage": ({"gate": "per_stage"}, 0.23),
    "without eq. 4": ({"multi_scale": False}, {3: 0.9, 4: 0.1}),
    "all stages": ({"spa_stages": (1, 2, 3, 4)}, 0.05),
    "stages apart": ({"spa_stages": (1, 3)}, 0.4),
    "other rule": ({"threshold": 0.01, "tau": 2.0, "gating": "sigmoid"}, 0.3),
    "ffn selected": ({"ffn_tokens": "selected"}, 0.23),
}


@pytest.mark.parametrize("training", (False, True))
@pytest.mark.parametrize("options, keep_ratio", MODELS.values(), ids=MODELS.keys())
def test_every_block_keeps_exactly_the_share(options, keep_ratio, training):
    model = nano_spt(torch.float32, **options).train(training)
    planting = Planting(model)
    planting.use(keep_ratio, 2, (128, 192))
    selections = model.forward_with_selections(images(2, 128, 192, torch.float32))[1]
    planting.check(selections, keep_ratio)
    ratios = planting.ratios(keep_ratio)
    blocks = [selection for selection in selections if selection.keep_mask is not None]
    assert {selection.stage for selection in blocks} == set(ratios)
    for selection in blocks:
        tokens = selection.keep_mask[0].numel()
        assert list(selection.layout.counts) == [share(ratios[selection.stage], tokens)] * 2
        if 0 < ratios[selection.stage] < 1:
            assert not torch.equal(selection.keep_mask[0], selection.keep_mask[1])


def test_a_budget_cuts_what_is_planted_at_inference():
    model = nano_spt(torch.float32, token_budget=10).eval()
    planting = Planting(model)
    planting.use(0.23, 2, (128, 192))
    selections = model.forward_with_selections(images(2, 128, 192, torch.float32))[1]
    planting.check(selections, 0.23)
    # 96 tokens in stage 3, and 24 in stage 4.
    assert {s.stage: s.layout.counts for s in selections if s.keep_mask is not None} == {3: (10, 10), 4: (6, 6)}


@pytest.mark.parametrize("keep_ratio", (-0.5, 23.0, float("nan")))
def test_shares_out_of_range_are_refused(keep_ratio):
    with pytest.raises(ValueError, match=r"planted_ranks\(keep_ratios=\) expects shares in \[0, 1\]"):
        planted_ranks((64, 64), {4: keep_ratio}, 0)


def test_a_share_can_be_changed_and_another_one_is_noticed():
    model = nano_spt(torch.float32).eval()
    planting = Planting(model)
    x = images(1, 64, 64, torch.float32)
    for keep_ratio in (0.5, 0.25, 0.5):
        planting.use(keep_ratio, 1, (64, 64))
        planting.check(model.forward_with_selections(x)[1], keep_ratio)
    with pytest.raises(RuntimeError, match=r"Stage 3, block 0 was to keep 4 tokens of each image. It kept \[8\]"):
        planting.check(model.forward_with_selections(x)[1], 0.25)
    with pytest.raises(ValueError, match=r"expects a map of shape \(2, 8, 8\). Got \(1, 8, 8\)"):
        model.forward_with_selections(images(2, 64, 64, torch.float32))
    with pytest.raises(ValueError, match=r"one share for each of stages \[3, 4\]. Got {3: 0.2}"):
        planting.use({3: 0.2}, 1, (64, 64))


def test_the_gates_own_product_is_computed_and_trained(monkeypatch):
    model = nano_spt(torch.float32).train()
    gates = sum(isinstance(module, SelectionGate) for module in model.modules())
    planting = Planting(model)
    assert sum(isinstance(module, PlantedGate) for module in model.modules()) == gates == 5
    calls = []
    forward = SelectionGate.forward
    monkeypatch.setattr(
        SelectionGate, "forward", lambda self, x, *made_of: calls.append(x.shape) or forward(self, x, *made_of)
    )
    planting.use(0.5, 1, (64, 64))
    features, _ = model.forward_with_selections(images(1, 64, 64, torch.float32))
    assert len(calls) == gates
    sum(value.square().sum() for value in features.values()).backward()
    deciding = [block.gate.proj.weight.grad for layer in model.layers[2:] for block in layer.blocks]
    assert all(grad is not None and grad.abs().sum() > 0 for grad in deciding)


@pytest.mark.parametrize("options", ({"noise": "logistic"}, {"threshold": 0.0}, {"select": "topk"}))
def test_a_rule_that_scores_alone_do_not_decide_is_refused(options):
    with pytest.raises(ValueError, match="gates that decide by their scores"):
        Planting(nano_spt(torch.float32, **options))
