"""Pooling over valid tokens and the loss of classes, against loops."""

import math

import pytest
import torch

from spt_d2.ops.multi_label import multi_label_loss, pool_valid_tokens
from tests import reference


def pooled_by_loops(features, valid):
    rows = []
    for image, mask in zip(features, valid):
        tokens = [image[:, i, j] for i in range(mask.shape[0]) for j in range(mask.shape[1]) if mask[i, j]]
        rows.append(sum(tokens) / len(tokens) if tokens else torch.zeros_like(image[:, 0, 0]))
    return torch.stack(rows)


def random_mask():
    valid = torch.rand(4, 3, 5) < 0.5
    valid[1], valid[2] = True, False
    valid[3] = False
    valid[3, 2, 4] = True
    return valid


def test_pooling_is_the_mean_of_valid_tokens_forward_and_backward(device):
    """Some tokens, all, none, one."""
    features = torch.randn(4, 6, 3, 5, dtype=torch.float64, device=device, requires_grad=True)
    other = features.detach().clone().requires_grad_()
    valid = random_mask().to(device)
    actual, expected = pool_valid_tokens(features, valid), pooled_by_loops(other, valid)
    reference.close(actual, expected)
    weight = torch.randn_like(actual)
    (actual * weight).sum().backward()
    (expected * weight).sum().backward()
    reference.close(features.grad, other.grad)


def test_what_padding_holds_never_counts():
    valid = random_mask()
    clean = torch.randn(4, 6, 3, 5)
    spoilt = clean.masked_fill(~valid[:, None], math.nan).requires_grad_()
    pooled = pool_valid_tokens(spoilt, valid)
    assert torch.equal(pooled, pool_valid_tokens(clean, valid))
    pooled.sum().backward()
    assert (spoilt.grad.masked_select(~valid[:, None]) == 0).all() and torch.isfinite(spoilt.grad).all()


def test_large_maps_do_not_overflow_half_precision():
    features = torch.full((1, 1, 40, 40), 100.0, dtype=torch.float16)
    pooled = pool_valid_tokens(features, torch.ones(1, 40, 40, dtype=torch.bool))
    assert pooled.dtype == torch.float32 and pooled.item() == 100


def loss_by_loops(logits, labels, ignored):
    images = []
    for row, wanted, skipped in zip(logits.double(), labels, ignored):
        terms = [
            -(math.log(torch.sigmoid(x)) if y else math.log(torch.sigmoid(-x)))
            for x, y, skip in zip(row, wanted, skipped)
            if not skip
        ]
        images.append(sum(terms) / len(terms) if terms else 0.0)
    return sum(images) / len(images)


def random_classes():
    logits, labels, ignored = torch.randn(5, 7) * 3, (torch.rand(5, 7) < 0.4).float(), torch.rand(5, 7) < 0.3
    ignored[1], ignored[2] = True, False
    return logits, labels, ignored


def test_the_loss_is_the_mean_over_counted_classes_then_over_images():
    logits, labels, ignored = random_classes()
    assert multi_label_loss(logits, labels, ignored).item() == pytest.approx(loss_by_loops(logits, labels, ignored))


def test_ignored_classes_have_no_gradient_and_others_that_of_a_sigmoid():
    logits, labels, ignored = random_classes()
    logits.requires_grad_()
    multi_label_loss(logits, labels, ignored).backward()
    counted = (~ignored).sum(dim=1, keepdim=True).clamp(min=1)
    expected = (torch.sigmoid(logits) - labels) / counted / len(logits) * ~ignored
    reference.close(logits.grad, expected.detach(), atol=1e-7, rtol=1e-5)
    assert (logits.grad[1] == 0).all() and (logits.grad[2] != 0).all()


def test_the_loss_does_not_depend_on_how_a_batch_is_split():
    logits, labels, ignored = random_classes()
    parts = [multi_label_loss(logits[i : i + 1], labels[i : i + 1], ignored[i : i + 1]) for i in range(len(logits))]
    reference.close(multi_label_loss(logits, labels, ignored), torch.stack(parts).mean(), atol=1e-6, rtol=1e-6)


def test_under_autocast_the_loss_is_float32():
    logits, labels, ignored = random_classes()
    with torch.autocast("cpu", torch.bfloat16):
        loss = multi_label_loss(logits, labels, ignored)
    assert loss.dtype == torch.float32 and torch.equal(loss, multi_label_loss(logits, labels, ignored))


def test_of_logits_in_half_precision_the_loss_is_float32():
    logits, labels, ignored = random_classes()
    half = logits.bfloat16()
    loss = multi_label_loss(half, labels, ignored)
    assert loss.dtype == torch.float32 and torch.equal(loss, multi_label_loss(half.float(), labels, ignored))


def test_shapes_that_do_not_fit_are_named():
    with pytest.raises(ValueError, match=r"features.shape: \(2, 3, 4, 5\)\n  valid.shape   : \(2, 4, 4\)"):
        pool_valid_tokens(torch.zeros(2, 3, 4, 5), torch.ones(2, 4, 4, dtype=torch.bool))
    with pytest.raises(ValueError, match=r"labels.shape : \(2, 4\)"):
        multi_label_loss(torch.zeros(2, 3), torch.zeros(2, 4), torch.zeros(2, 3, dtype=torch.bool))
