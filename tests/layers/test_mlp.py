"""The feed-forward network."""

import pytest
import torch
from torch import nn

from spt_d2.layers.mlp import Mlp
from tests import reference


def test_mlp_is_two_linear_layers_with_gelu_between():
    mlp = reference.randomise_(Mlp(3, 5)).double()
    x = torch.randn(2, 4, 3, dtype=torch.float64)
    hidden = x @ mlp.fc1.weight.T + mlp.fc1.bias
    hidden = hidden * 0.5 * (1 + torch.erf(hidden / 2**0.5))
    reference.close(mlp(x), hidden @ mlp.fc2.weight.T + mlp.fc2.bias)


@pytest.mark.parametrize(
    "change", ("nothing", "hook", "layer", "second layer", "patch", "activation", "tanh", "no bias")
)
def test_inference_in_float32_is_the_same_whoever_looks_or_has_changed_what(change):
    mlp, x, seen = reference.randomise_(Mlp(24, 48)).eval(), torch.randn(2, 5, 24), []
    expected = mlp(x).detach()
    if change == "hook":
        mlp.fc1.register_forward_hook(lambda module, inputs, output: seen.append(output))
    if change == "layer":
        mlp.fc1 = nn.Sequential(mlp.fc1)
    if change == "second layer":
        mlp.fc2 = nn.Sequential(mlp.fc2)
    if change == "patch":
        forward = mlp.fc1.forward
        mlp.fc1.forward = lambda x: 2 * forward(x)
        expected = mlp(x).detach()
    if change == "tanh":
        mlp.act = nn.GELU(approximate="tanh")
        expected = mlp(x).detach()
    if change == "activation":
        mlp.act = nn.ReLU()
        expected = mlp.fc2(mlp.fc1(x).relu()).detach()
    if change == "no bias":
        mlp.fc1.bias = None
        expected = mlp(x).detach()
    with torch.no_grad():
        # Far closer than the two kinds of GELU are to each other.
        torch.testing.assert_close(mlp(x), expected, rtol=1e-6, atol=2e-6)
    assert len(seen) == (change == "hook")


def test_dropout_acts_in_training_only():
    mlp, x = Mlp(8, 16, drop=0.5), torch.randn(4, 8)
    plain = Mlp(8, 16)
    plain.load_state_dict(mlp.state_dict())
    assert not torch.equal(mlp(x), mlp(x))
    assert torch.equal(mlp.eval()(x), plain(x))
    assert isinstance(mlp.drop, nn.Dropout)


def test_it_compiles_as_one_graph_of_public_operators():
    graphs = []
    mlp = reference.randomise_(Mlp(8, 16)).eval()
    compiled = torch.compile(mlp, backend=lambda module, _: graphs.append(str(module.graph)) or module, fullgraph=True)
    x = torch.randn(3, 8)
    with torch.no_grad():
        torch.testing.assert_close(compiled(x), mlp(x))
    assert len(graphs) == 1 and "mkldnn" not in graphs[0]
