"""A block with a budget of tokens, against the slow block over what a loop leaves; training has no budget."""

import pytest
import torch

from spt_d2.layers.select_pack_attention import SelectPackOptions
from tests import reference
from tests.layers.test_block import DIM, make_block, slow_block, slow_decision
from tests.ops.test_token_budget import within_budget


@pytest.mark.parametrize("budget", (1, 5, 1000))
@pytest.mark.parametrize("ffn_tokens", ("all", "selected", "light"))
def test_block_equals_the_slow_truth_forward_and_backward(budget, ffn_tokens):
    block = make_block(token_budget=budget, ffn_tokens=ffn_tokens, gating="sigmoid", position="conv").eval()
    x = torch.randn(2, 5, 6, DIM, dtype=torch.float64, requires_grad=True)
    valid = torch.ones(2, 5, 6, dtype=torch.bool)
    valid[1, 3:] = False
    out, decision, layout = block(x, valid)
    score, soft, unlimited = slow_decision(block, x, valid, None)
    keep = within_budget(unlimited, score.detach(), budget)
    assert torch.equal(decision.keep_mask, keep)
    assert layout.counts == tuple(min(int(n), budget) for n in unlimited.flatten(1).sum(1))
    expected = slow_block(block, x, keep, score, soft)
    reference.close(out, expected)
    inputs = {"x": x, **dict(block.named_parameters())}
    # Of the two kinds of tokens one may be empty; what reads it then has no gradient in the slow truth.
    fast = torch.autograd.grad((out * out.detach().cos()).sum(), list(inputs.values()), allow_unused=True)
    slow = torch.autograd.grad((expected * out.detach().cos()).sum(), list(inputs.values()), allow_unused=True)
    for name, a, b in zip(inputs, fast, slow):
        zero = torch.zeros_like(inputs[name])
        reference.close(zero if a is None else a, zero if b is None else b)


def test_training_has_no_budget():
    limited, free = (make_block(token_budget=budget, noise="logistic").train() for budget in (2, 0))
    x, valid = torch.randn(2, 5, 6, DIM, dtype=torch.float64), torch.ones(2, 5, 6, dtype=torch.bool)
    results = []
    for block in (limited, free):
        torch.manual_seed(0)
        results.append(block(x, valid))
    assert torch.equal(results[0][0], results[1][0])
    assert min(results[0][2].counts) > 2


def test_a_negative_budget_is_an_error():
    with pytest.raises(ValueError, match=r"token_budget expects 0 \(no limit\) or more tokens. Got -3"):
        SelectPackOptions(token_budget=-3)
