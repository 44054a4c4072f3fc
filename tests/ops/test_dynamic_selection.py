"""DynamicSwin's decisions and losses, against loops and against torch's Gumbel-Softmax."""

import pytest
import torch
import torch.nn.functional as F

from spt_d2.ops.dynamic_selection import keep_ratio_loss, map_distance
from spt_d2.ops.gumbel import hard_gumbel
from tests import reference


def some_valid(batch: int = 3) -> torch.Tensor:
    valid = torch.ones(batch, 5, 4, dtype=torch.bool)
    valid[1, 3:] = valid[1, :, 2:] = False
    return valid


def test_a_policy_is_exactly_the_decision_and_padding_is_never_kept(device):
    score, valid = torch.randn(3, 5, 4, device=device, requires_grad=True), some_valid().to(device)
    keep, policy = hard_gumbel(score, valid)
    assert torch.equal(policy, keep.to(policy.dtype)) and keep.dtype == torch.bool
    assert keep.any() and not keep[valid].all() and not keep[~valid].any()
    policy.sum().backward()
    assert (score.grad[valid] > 0).all() and not score.grad[~valid].any()


@pytest.mark.parametrize("logit", [-2.0, 0.0, 1.5])
def test_decisions_are_those_of_torchs_gumbel_softmax(logit):
    """Shares kept, and the slope where kept and where not, over enough samples."""
    number, valid = 40_000, torch.ones(1, 200, 200, dtype=torch.bool)
    score = torch.full((1, 200, 200), logit, requires_grad=True)
    keep, policy = hard_gumbel(score, valid)
    policy.sum().backward()
    both = torch.stack((torch.full((number,), logit), torch.zeros(number)), dim=1).requires_grad_()
    theirs = F.gumbel_softmax(both.log_softmax(dim=1), hard=True, dim=1)[:, 0]
    theirs.sum().backward()
    assert keep.float().mean().item() == pytest.approx(theirs.detach().mean().item(), abs=0.01)
    for kept in (True, False):
        mine = score.grad[keep == kept].mean().item()
        assert mine == pytest.approx(both.grad[(theirs > 0.5) == kept, 0].mean().item(), abs=0.003)


def test_the_slope_is_that_of_the_relaxed_decision_at_the_sampled_noise():
    score, valid = torch.randn(2, 5, 4, dtype=torch.float64, requires_grad=True), some_valid(2)
    torch.manual_seed(3)
    _, policy = hard_gumbel(score, valid)
    policy.sum().backward()
    torch.manual_seed(3)
    noise = torch.logit(torch.rand(2, 5, 4).clamp(1e-6, 1 - 1e-6)).double()
    soft = torch.sigmoid(score.detach() + noise)
    reference.close(score.grad, soft * (1 - soft) * valid)


def test_the_ratio_loss_is_a_loop_over_images(device):
    policy = (torch.rand(3, 5, 4, dtype=torch.float64, device=device) < 0.5).double().requires_grad_()
    valid = some_valid().to(device)
    loss = keep_ratio_loss(policy, valid, 0.3)
    own = policy.detach().clone().requires_grad_()
    truth = sum((own[i][valid[i]].mean() - 0.3) ** 2 for i in range(3)) / 3
    reference.close(loss, truth)
    for mine, theirs in zip(torch.autograd.grad(loss, policy), torch.autograd.grad(truth, own)):
        reference.close(mine, theirs)


def test_the_distance_of_maps_is_a_loop_over_images(device):
    own, other = (torch.randn(3, 6, 5, 4, dtype=torch.float64, device=device) for _ in range(2))
    valid = some_valid().to(device)
    truth = sum(((own[i] - other[i])[:, valid[i]] ** 2).mean() for i in range(3)) / 3
    reference.close(map_distance(own, other, valid), truth)
    assert map_distance(own.half(), other.half(), valid).dtype == torch.float32


def test_an_image_of_padding_alone_leaves_the_losses_finite():
    valid = some_valid()
    valid[0] = False
    policy = torch.ones(3, 5, 4, requires_grad=True)
    maps = torch.randn(2, 3, 6, 5, 4)
    loss = keep_ratio_loss(policy, valid, 0.5) + map_distance(maps[0], maps[1], valid)
    loss.backward()
    assert torch.isfinite(loss) and torch.isfinite(policy.grad).all()
