"""The hard Gumbel-Softmax over two classes against torch's, in distribution, value and gradient."""

import pytest
import torch
import torch.nn.functional as F

from spt_d2.ops import selection
from spt_d2.ops.gumbel import hard_gumbel
from tests import reference


@pytest.fixture
def noise(monkeypatch: pytest.MonkeyPatch) -> torch.Tensor:
    """Gumbel samples of the two classes, (2, 3, 4, 2), of which the decision sees the difference."""
    samples = -torch.empty(2, 3, 4, 2, dtype=torch.float64).exponential_().log()
    monkeypatch.setattr(selection, "selection_noise", lambda score, kind: samples[..., 0] - samples[..., 1])
    return samples


def test_equals_torchs_gumbel_softmax_of_the_two_classes(noise, monkeypatch):
    logits = torch.randn(2, 3, 4, 2, dtype=torch.float64, requires_grad=True)
    keep_mask, policy = hard_gumbel(logits[..., 0] - logits[..., 1], torch.ones(2, 3, 4, dtype=torch.bool))
    # Torch draws its samples from an exponential distribution.
    monkeypatch.setattr(torch.Tensor, "exponential_", lambda _: (-noise).exp())
    truth = F.gumbel_softmax(F.log_softmax(logits, dim=-1), hard=True)[..., 0]
    reference.close(policy, truth)
    assert torch.equal(keep_mask, truth > 0.5) and 0 < keep_mask.sum() < keep_mask.numel()
    reference.close(*(reference.gradients(out, x=logits)["x"] for out in (policy, truth)))


def test_values_are_exactly_zero_and_one():
    score = torch.randn(2, 20, 20, requires_grad=True)
    keep_mask, policy = hard_gumbel(score, torch.ones(2, 20, 20, dtype=torch.bool))
    assert torch.equal(policy.detach(), keep_mask.float())


def test_a_token_is_kept_with_the_probability_that_its_score_says():
    score = torch.full((1, 200, 200), 0.8)
    keep_mask, _ = hard_gumbel(score, torch.ones_like(score, dtype=torch.bool))
    assert keep_mask.float().mean().item() == pytest.approx(torch.sigmoid(score[0, 0, 0]).item(), abs=0.01)


def test_padding_is_never_kept_and_gives_no_gradient():
    score = torch.full((1, 4, 6), 50.0, requires_grad=True)
    valid = torch.zeros(1, 4, 6, dtype=torch.bool)
    valid[:, :2, :3] = True
    keep_mask, policy = hard_gumbel(score - 50.0, valid)
    assert not keep_mask[~valid].any()
    (gradient,) = torch.autograd.grad(policy.sum(), score)
    assert (gradient[valid] > 0).all() and (gradient[~valid] == 0).all()
