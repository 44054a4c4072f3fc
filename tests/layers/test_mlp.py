"""The feed-forward network."""

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


def test_dropout_acts_in_training_only():
    mlp, x = Mlp(8, 16, drop=0.5), torch.randn(4, 8)
    plain = Mlp(8, 16)
    plain.load_state_dict(mlp.state_dict())
    assert not torch.equal(mlp(x), mlp(x))
    assert torch.equal(mlp.eval()(x), plain(x))
    assert isinstance(mlp.drop, nn.Dropout)
