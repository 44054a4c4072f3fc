"""A step runs in its mode and precision, from a clean start."""

import pytest
import torch
from torch import nn

from spt_d2.benchmark.steps import step, total_mean


def seen_by(network: nn.Module, device: torch.device, **options) -> dict:
    seen = {}

    def outputs():
        x = torch.ones(2, 4, device=device)
        out = network(x)
        seen.update(
            dtype=out.dtype, training=network.training, inference=torch.is_inference(out), grad=out.requires_grad
        )
        return {"out": out}

    entry = step(network, outputs, device, **options)
    entry.prepare()
    entry.run()
    return seen


@pytest.mark.parametrize("dtype", ("float32", "bfloat16", "float16"))
def test_inference_is_in_inference_mode_and_of_the_dtype(dtype, device):
    seen = seen_by(nn.Linear(4, 3).to(device), device, dtype=dtype)
    assert seen == {"dtype": getattr(torch, dtype), "training": False, "inference": True, "grad": False}


@pytest.mark.parametrize("dtype", ("float32", "bfloat16"))
def test_training_goes_backward_and_starts_without_gradients(dtype, device):
    network = nn.Linear(4, 3).to(device)
    for _ in range(2):
        seen = seen_by(network, device, dtype=dtype, training=True)
        # The mean over 2 x 3 outputs of ones: not the sum over rounds.
        torch.testing.assert_close(network.bias.grad, torch.full_like(network.bias, 1 / 3), rtol=1e-2, atol=0)
    assert seen == {"dtype": getattr(torch, dtype), "training": True, "inference": False, "grad": True}
    assert network.weight.dtype == torch.float32


def test_every_output_counts():
    values = {"a": torch.tensor([1.0, 3.0], requires_grad=True), "b": torch.tensor(5.0, requires_grad=True)}
    total = total_mean(values)
    total.backward()
    assert total.item() == 7.0
    assert values["a"].grad.tolist() == [0.5, 0.5] and values["b"].grad.item() == 1.0
