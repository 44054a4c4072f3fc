"""The gate: one logit per token, everything kept at the start."""

import itertools

import pytest
import torch
import torch.nn.functional as F

from spt_d2.layers.gate import OutputGate, SelectionGate, initial_gate_bias
from spt_d2.ops.selection import GATINGS, select_tokens
from tests import reference


def test_gate_is_linear_per_token():
    gate = reference.randomise_(SelectionGate(5, 0.0)).double()
    x = torch.randn(2, 3, 4, 5, dtype=torch.float64)
    expected = (x * gate.proj.weight[0]).sum(-1) + gate.proj.bias
    reference.close(gate(x), expected)


def test_output_gate_normalises_first():
    gate = reference.randomise_(OutputGate(5, 0.0)).double()
    x = torch.randn(2, 3, 4, 5, dtype=torch.float64)
    normed = F.layer_norm(x, (5,), gate.norm.weight, gate.norm.bias)
    reference.close(gate(x), (normed * gate.gate.proj.weight[0]).sum(-1) + gate.gate.proj.bias)


def test_gates_start_at_their_bias_for_every_token_and_can_be_reset():
    gate = SelectionGate(5, -1.5)
    x = torch.randn(1, 2, 2, 5)
    assert (gate(x) == -1.5).all()
    reference.randomise_(gate).reset_parameters()
    assert (gate(x) == -1.5).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_logits_of_half_tokens_are_float32(dtype):
    assert SelectionGate(4, 0.0).to(dtype)(torch.randn(1, 2, 2, 4, dtype=dtype)).dtype == torch.float32
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert SelectionGate(4, 0.0)(torch.randn(1, 2, 2, 4)).dtype == torch.float32


@pytest.mark.parametrize("gating", GATINGS)
def test_an_untrained_gate_keeps_everything(gating):
    valid = torch.ones(1, 2, 2, dtype=torch.bool)
    for threshold, tau, prior in itertools.product([0.01, 0.05, 0.5, 0.9, 0.999], [0.1, 1.0, 5.0], [0.01, 0.1, 0.9]):
        gate = SelectionGate(4, initial_gate_bias(gating, threshold, tau, prior))
        keep, _ = select_tokens(gate(torch.randn(1, 2, 2, 4)), valid, threshold=threshold, tau=tau)
        assert keep.all(), (threshold, tau, prior)


def test_gates_start_at_the_prior_where_the_border_allows_it():
    assert torch.sigmoid(torch.tensor(initial_gate_bias("none", 0.05, 1.0, 0.1))).item() == pytest.approx(0.1)
    assert torch.sigmoid(torch.tensor(initial_gate_bias("none", 0.0, 1.0, 0.1))).item() == pytest.approx(0.1)
    assert torch.sigmoid(torch.tensor(initial_gate_bias("sigmoid", 0.01, 1.0, 0.1))).item() == pytest.approx(
        0.9933, abs=1e-4
    )
