"""The gate: one logit per token, everything kept at the start."""

import itertools

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from spt_d2.layers.gate import OutputGate, SelectionGate, initial_gate_bias
from spt_d2.ops.gating import GATINGS
from spt_d2.ops.selection import select_tokens
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


def gate_and_norm() -> tuple[SelectionGate, nn.LayerNorm]:
    return reference.randomise_(SelectionGate(5, 0.0)).double(), reference.randomise_(nn.LayerNorm(5)).double()


@pytest.mark.parametrize("frozen", ("nothing", "gate", "norm", "tokens"))
def test_logits_and_gradients_are_the_same_where_the_normalised_map_is_made_anew(frozen):
    gate, norm = gate_and_norm()
    x = torch.randn(2, 3, 4, 5, dtype=torch.float64, requires_grad=frozen != "tokens")
    for module, name in ((gate, "gate"), (norm, "norm")):
        module.requires_grad_(frozen != name)
    wanted = [each for each in (x, *gate.parameters(), *norm.parameters()) if each.requires_grad]
    outward = torch.randn(2, 3, 4, dtype=torch.float64)
    results = []
    for sources in ((), (x, norm)):
        logits = gate(norm(x), *sources)
        results.append([logits, *torch.autograd.grad(logits, wanted, outward)])
    torch.testing.assert_close(*results, rtol=1e-13, atol=1e-13)
    assert len(results[0]) == 1 + len(wanted)


def test_gradients_through_what_is_made_anew_are_those_of_finite_differences():
    gate, norm = gate_and_norm()
    x = torch.randn(1, 2, 2, 5, dtype=torch.float64, requires_grad=True)
    inputs = (x, *gate.parameters(), *norm.parameters())
    assert torch.autograd.gradcheck(lambda x, *_: gate(norm(x), x, norm), inputs)
    # Those of gradient penalties.
    assert torch.autograd.gradgradcheck(lambda x, *_: gate(norm(x), x, norm), inputs)
    per_parameter = torch.func.grad(lambda parameters: _sum_of_squares(gate, parameters, x, norm))
    found = per_parameter(dict(gate.named_parameters()))
    gate(norm(x)).square().sum().backward()
    for name, parameter in gate.named_parameters():
        torch.testing.assert_close(found[name], parameter.grad)


def _sum_of_squares(gate: SelectionGate, parameters: dict, x: torch.Tensor, norm: nn.LayerNorm) -> torch.Tensor:
    return torch.func.functional_call(gate, parameters, (norm(x), x, norm)).square().sum()


@pytest.mark.parametrize("how", ("hook", "patch"))
def test_a_norm_whose_result_somebody_changes_is_not_made_anew(how):
    gate, norm = gate_and_norm()
    if how == "hook":
        norm.register_forward_hook(lambda module, inputs, output: 2 * output)
    else:
        forward = norm.forward
        norm.forward = lambda x: 2 * forward(x)
    x = torch.randn(2, 3, 4, 5, dtype=torch.float64)
    normed = norm(x)
    results = []
    for logits in (gate(normed), gate(normed, x, norm)):
        results.append(torch.autograd.grad(logits.sum(), gate.proj.weight, retain_graph=True)[0])
    torch.testing.assert_close(*results)


def test_no_normalised_map_is_kept_for_the_backward_pass():
    gate, norm = gate_and_norm()
    x = torch.randn(2, 3, 4, 5, dtype=torch.float64, requires_grad=True)
    for sources, maps in (((), 1), ((x, norm), 0)):
        normed, kept = norm(x), []
        with torch.autograd.graph.saved_tensors_hooks(lambda t, kept=kept: kept.append(t) or t, lambda t: t):
            gate(normed, *sources)
        others = [t for t in kept if t.data_ptr() != x.data_ptr() and t.numel() == x.numel()]
        assert len(others) == maps
    output_gate, kept = reference.randomise_(OutputGate(5, 0.0)).double(), []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        output_gate(x)
    assert not [t for t in kept if t.data_ptr() != x.data_ptr() and t.numel() == x.numel()]


@pytest.mark.parametrize("other", (nn.Identity(), nn.LayerNorm(5, elementwise_affine=False), nn.GroupNorm(1, 4)))
def test_another_norm_is_taken_as_it_is(other):
    gate, _ = gate_and_norm()
    x = torch.randn(2, 3, 4, 5, dtype=torch.float64)
    reference.close(gate(x * 2, x, other), gate(x * 2))


def test_gradients_of_half_tokens_are_half():
    gate, norm = SelectionGate(4, 0.0).bfloat16(), nn.LayerNorm(4).bfloat16()
    nn.init.normal_(gate.proj.weight)
    x = torch.randn(1, 2, 2, 4, dtype=torch.bfloat16, requires_grad=True)
    gate(norm(x), x, norm).sum().backward()
    assert x.grad.dtype == gate.proj.weight.grad.dtype == norm.weight.grad.dtype == torch.bfloat16
    assert gate.proj.weight.grad.abs().sum() > 0 and gate.proj.bias.grad.item() == 4


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
