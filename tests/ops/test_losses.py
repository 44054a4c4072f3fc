"""Selection loss and counts against loops over tokens."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from spt_d2.ops.losses import selection_counts, selection_loss
from tests import reference


def slow_loss(score, label, valid, reduction, pos_weight):
    total = score.new_zeros(())
    for image in range(score.shape[0]):
        terms = []
        for i in range(score.shape[1]):
            for j in range(score.shape[2]):
                if not valid[image, i, j] or label[image, i, j] == 255:
                    continue
                probability = 1 / (1 + torch.exp(-score[image, i, j]))
                if label[image, i, j] == 1:
                    terms.append(-pos_weight * torch.log(probability))
                else:
                    terms.append(-torch.log(1 - probability))
        if terms:
            total = total + (sum(terms) if reduction == "sum" else sum(terms) / len(terms))
    return total / score.shape[0]


def a_case(batch: int = 3):
    score = torch.randn(batch, 4, 5)
    label = torch.tensor([0, 1, 255], dtype=torch.uint8)[torch.randint(3, (batch, 4, 5))]
    valid = torch.zeros(batch, 4, 5, dtype=torch.bool)
    for image in range(batch):
        valid[image, : 4 - image % 3, : 5 - image % 2] = True
    return score, label, valid


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("pos_weight", [1.0, 5.0])
def test_loss_and_gradient_equal_the_loop(reduction, pos_weight):
    score, label, valid = a_case()
    fast, slow = score.clone().requires_grad_(), score.double().requires_grad_()
    loss = selection_loss(fast, label, valid, reduction=reduction, pos_weight=pos_weight)
    expected = slow_loss(slow, label, valid, reduction, pos_weight)
    loss.backward()
    expected.backward()
    reference.close(loss.detach(), expected.detach().float())
    reference.close(fast.grad, slow.grad.float())
    assert loss.dtype == torch.float32


def test_ignored_and_padded_tokens_have_no_loss_and_no_gradient():
    score, label, valid = a_case()
    out = ~valid | (label == 255)
    score.requires_grad_()
    loss = selection_loss(score, label, valid)
    loss.backward()
    assert (score.grad[out] == 0).all() and (score.grad[~out] != 0).all()
    wild = torch.where(out, torch.randn_like(score) * 100, score).detach()
    assert torch.equal(selection_loss(wild, label, valid), loss.detach())


@given(st.integers(1, 4), st.integers(1, 3), st.sampled_from(["mean", "sum"]))
def test_loss_is_invariant_to_how_a_batch_is_split(parts, size, reduction):
    score, label, valid = a_case(parts * size)
    whole = selection_loss(score, label, valid, reduction=reduction)
    split = [
        selection_loss(*chunk, reduction=reduction) for chunk in zip(*(t.split(size) for t in (score, label, valid)))
    ]
    reference.close(torch.stack(split).mean(), whole)


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_nothing_counted_gives_zero_that_still_has_a_graph(reduction):
    score, label, valid = a_case()
    score.requires_grad_()
    for labels, valids in ((torch.full_like(label, 255), valid), (label, torch.zeros_like(valid))):
        loss = selection_loss(score, labels, valids, reduction=reduction)
        assert loss.item() == 0.0
        (gradient,) = torch.autograd.grad(loss, score)
        assert (gradient == 0).all()


def test_extreme_logits_stay_finite():
    score = torch.tensor([[[-1e4, 1e4, 1e4, -1e4]]], requires_grad=True)
    label = torch.tensor([[[1, 0, 1, 0]]], dtype=torch.uint8)
    loss = selection_loss(score, label, torch.ones_like(label, dtype=torch.bool))
    loss.backward()
    assert loss.item() == pytest.approx(5000.0) and torch.isfinite(score.grad).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_autocast_and_half_scores_still_give_float32(dtype):
    score, label, valid = a_case()
    expected = selection_loss(score.to(dtype).float(), label, valid)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = selection_loss(score.to(dtype), label, valid)
    assert loss.dtype == torch.float32
    reference.close(loss, expected)


def test_counts_equal_the_loop():
    _, label, valid = a_case()
    keep = (torch.rand(label.shape) < 0.5) & valid
    counts = selection_counts(keep, label, valid)
    expected = dict.fromkeys(("tokens", "kept", "objects", "kept_objects", "judged"), 0)
    for k, y, v in zip(keep.flatten().tolist(), label.flatten().tolist(), valid.flatten().tolist()):
        expected["tokens"] += v
        expected["kept"] += k
        expected["objects"] += v and y == 1
        expected["kept_objects"] += k and y == 1
        expected["judged"] += k and y != 255
    assert {name: getattr(counts, name).item() for name in expected} == expected


def test_object_labels_in_padding_are_not_counted():
    label, valid = torch.ones(1, 2, 2, dtype=torch.uint8), torch.tensor([[[True, False], [False, False]]])
    counts = selection_counts(valid, label, valid)
    assert (counts.tokens.item(), counts.objects.item(), counts.kept_objects.item()) == (1, 1, 1)


def test_a_worked_example():
    """One image, two counted tokens: an object at logit 0 and background at logit 0."""
    score = torch.zeros(1, 1, 3)
    label = torch.tensor([[[1, 0, 255]]], dtype=torch.uint8)
    valid = torch.ones(1, 1, 3, dtype=torch.bool)
    assert selection_loss(score, label, valid).item() == pytest.approx(math.log(2))
    assert selection_loss(score, label, valid, reduction="sum").item() == pytest.approx(2 * math.log(2))
    assert selection_loss(score, label, valid, pos_weight=5.0).item() == pytest.approx(3 * math.log(2))


def test_unknown_reduction_is_an_error():
    score, label, valid = a_case()
    with pytest.raises(
        ValueError, match=r"selection_loss\(reduction=\) expects one of \('mean', 'sum'\)\. Got 'median'"
    ):
        selection_loss(score, label, valid, reduction="median")


@pytest.mark.parametrize("which", [1, 2])
def test_shapes_that_differ_are_an_error(which):
    case = list(a_case())
    case[which] = case[which][:, :2]
    with pytest.raises(
        ValueError, match=r"score, label and valid of one shape \(B, H, W\).\n  score.shape: \(3, 4, 5\)\n"
    ):
        selection_loss(*case)
