"""The budget of SViT's gates: whose tokens it counts, and which gate it asks for how many."""

import pytest
import torch

from spt_d2.ops.budget import BudgetSelection, budget_loss, shared_targets
from tests import reference


def decision(policy: torch.Tensor, target: float, valid: torch.Tensor | None = None) -> BudgetSelection:
    valid = torch.ones_like(policy, dtype=torch.bool) if valid is None else valid
    return BudgetSelection(
        stage=3,
        block=0,
        stride=16,
        score=policy,
        keep_mask=policy > 0,
        valid=valid,
        layout=None,
        policy=policy,
        target=target,
    )


def test_is_the_mean_over_gates_of_the_squared_distance_of_the_batchs_share():
    first = torch.zeros(2, 2, 5, dtype=torch.float64)
    first[0, 0, :4] = 1.0  # 4 of 20
    second = torch.ones(2, 1, 5, dtype=torch.float64)  # all of 10
    loss = budget_loss([decision(first, 0.7), decision(second, 0.343)])
    reference.close(loss, torch.tensor(((0.2 - 0.7) ** 2 + (1.0 - 0.343) ** 2) / 2, dtype=torch.float64))


def test_images_that_make_up_for_each_other_cost_nothing():
    policy = torch.zeros(2, 2, 5)
    policy[0] = 1.0
    assert budget_loss([decision(policy, 0.5)]) == 0


def test_padding_does_not_count():
    policy, valid = torch.zeros(2, 2, 5), torch.zeros(2, 2, 5, dtype=torch.bool)
    valid[0], valid[1, :1, :2] = True, True
    policy[0, 0], policy[1, 0, 0] = 1.0, 1.0
    reference.close(budget_loss([decision(policy, 0.25, valid)]), torch.tensor((6 / 12 - 0.25) ** 2))


def test_the_gradient_draws_every_token_towards_the_target():
    policy = torch.ones(1, 2, 5, requires_grad=True)
    for target, sign in ((0.4, 1), (1.0, 0)):
        (gradient,) = torch.autograd.grad(budget_loss([decision(policy, target)]), policy)
        assert (gradient.sign() == sign).all()


def test_a_batch_without_valid_tokens_gives_no_nan():
    policy = torch.zeros(1, 2, 2)
    assert budget_loss([decision(policy, 0.5, torch.zeros(1, 2, 2, dtype=torch.bool))]) == 0.25


@pytest.mark.parametrize(
    "gates, ratios, expected",
    [
        (9, (0.7, 0.49, 0.343), [0.7] * 3 + [0.49] * 3 + [0.343] * 3),
        (3, (0.7, 0.49, 0.343), [0.7, 0.49, 0.343]),
        (4, (0.7, 0.49, 0.343), [0.7, 0.7, 0.49, 0.343]),
        (5, (0.7, 0.49, 0.343), [0.7, 0.7, 0.49, 0.49, 0.343]),
        (2, (0.5,), [0.5, 0.5]),
    ],
)
def test_targets_are_shared_out_in_order(gates, ratios, expected):
    assert shared_targets(gates, ratios) == expected
