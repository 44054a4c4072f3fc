"""A linear layer is called by its weights only where it is one, and nobody looks or has changed it."""

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize

from spt_d2.layers import linear as module
from spt_d2.layers.linear import apply_linear, apply_linear_gelu
from tests import reference

CHANGES = ("nothing", "no bias", "hook", "pre-hook", "global hook", "layer", "class", "patch", "parametrization")


class Doubled(nn.Linear):
    """Somebody's own linear layer."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 2 * super().forward(x)


class Half(nn.Module):
    """Somebody's parametrization of a weight."""

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        return weight / 2


def changed(layer: nn.Linear, change: str, seen: list) -> nn.Module:
    """A linear layer as somebody else may have left it."""
    if change == "no bias":
        layer.bias = None
    elif change == "hook":
        layer.register_forward_hook(lambda *arguments: seen.append(arguments))
    elif change == "pre-hook":
        layer.register_forward_pre_hook(lambda *arguments: seen.append(arguments))
    elif change == "layer":
        return nn.Sequential(layer, nn.ReLU())
    elif change == "class":
        layer.__class__ = Doubled
    elif change == "patch":
        forward = layer.forward
        layer.forward = lambda x: 2 * forward(x)
    elif change == "parametrization":
        parametrize.register_parametrization(layer, "weight", Half())
    return layer


@pytest.fixture
def by_weights(monkeypatch) -> list[str]:
    """Which function was given a layer's weights."""
    calls: list[str] = []
    for name in ("linear", "linear_gelu"):
        function = getattr(module, name)
        monkeypatch.setattr(module, name, lambda *a, name=name, function=function: calls.append(name) or function(*a))
    return calls


@pytest.mark.parametrize("change", CHANGES)
def test_it_is_the_layer_whoever_looks_or_has_changed_what(change, by_weights):
    seen: list = []
    layer, x = changed(reference.randomise_(nn.Linear(24, 40)), change, seen), torch.randn(2, 5, 24)
    expected = layer(x).detach()
    seen.clear()
    if change == "global hook":
        handle = nn.modules.module.register_module_forward_hook(lambda *arguments: seen.append(arguments))
    try:
        with torch.no_grad():
            found = apply_linear(layer, x)
    finally:
        if change == "global hook":
            handle.remove()
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    assert len(seen) == ("hook" in change)
    assert by_weights == (["linear"] if change in ("nothing", "no bias") else [])


@pytest.mark.parametrize("act", [nn.GELU(), nn.GELU(approximate="tanh"), nn.ReLU(), nn.Sequential(nn.GELU())])
@pytest.mark.parametrize("change", ("nothing", "no bias", "hook", "patch"))
def test_so_it_is_with_an_activation_behind(act, change, by_weights):
    layer, x = changed(reference.randomise_(nn.Linear(24, 40)), change, []), torch.randn(2, 5, 24)
    expected = act(layer(x)).detach()
    with torch.no_grad():
        # Far closer than the two kinds of GELU are to each other.
        torch.testing.assert_close(apply_linear_gelu(layer, act, x), expected, rtol=1e-6, atol=2e-6)
    exact = type(act) is nn.GELU and act.approximate == "none"
    assert by_weights == (["linear_gelu"] if exact and change in ("nothing", "no bias") else [])


def test_a_hook_on_the_activation_sees_what_it_is_given(by_weights):
    layer, act, seen = nn.Linear(24, 40), nn.GELU(), []
    act.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0]))
    x = torch.randn(5, 24)
    with torch.no_grad():
        apply_linear_gelu(layer, act, x)
        torch.testing.assert_close(seen[0], layer(x))
    assert not by_weights


def test_training_calls_the_layer(by_weights):
    layer, x = nn.Linear(24, 40), torch.randn(5, 24)
    apply_linear_gelu(layer, nn.GELU(), apply_linear(nn.Linear(24, 24), x)).sum().backward()
    assert layer.weight.grad is not None and not by_weights
