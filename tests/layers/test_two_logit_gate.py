"""SViT's gate: one number for each token, of which the sign is the argmax of its two logits."""

import torch
import torch.nn.functional as F

from spt_d2.layers.two_logit_gate import TwoLogitGate
from tests import reference


def test_equals_the_layers_of_the_paper_written_out():
    gate = reference.randomise_(TwoLogitGate(12), scale=1.0).double()
    x = torch.randn(2, 3, 5, 12, dtype=torch.float64)
    parts = dict(gate.named_parameters())
    hidden = F.layer_norm(x, (12,), parts["norm.weight"], parts["norm.bias"])
    hidden = F.gelu(hidden @ parts["fc1.weight"].T + parts["fc1.bias"])
    log_probability = F.log_softmax(hidden @ parts["fc2.weight"].T + parts["fc2.bias"], dim=-1)
    score = gate(x)
    reference.close(score, log_probability[..., 0] - log_probability[..., 1])
    assert torch.equal(score > 0, log_probability.argmax(dim=-1) == 0)
    assert parts["fc1.weight"].shape == (3, 12) and 0 < (score > 0).sum() < score.numel()


def test_scores_are_float32_under_autocast_and_every_parameter_learns():
    gate = TwoLogitGate(8)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        score = gate(torch.randn(1, 4, 4, 8, dtype=torch.bfloat16))
    assert score.dtype == torch.float32
    score.square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in gate.parameters())
