"""The peak is that of tensors held at the same time, beyond what there was before."""

import torch

from spt_d2.benchmark.memory import peak_megabytes

MEGABYTE = 2**20


def megabytes(number: int, device: torch.device) -> torch.Tensor:
    return torch.empty(number * MEGABYTE, dtype=torch.uint8, device=device)


def test_the_peak_counts_what_is_held_together_and_not_what_was_released(device):
    kept = []

    def run():
        first = megabytes(8, device)
        second = megabytes(4, device)
        del first
        third = megabytes(6, device)
        kept.append(second)
        del third

    assert peak_megabytes(run, device) == 12
    # Kept since, it is no part of the next measure.
    assert peak_megabytes(run, device) == 12


def test_released_memory_from_before_does_not_lower_the_peak(device):
    held = [megabytes(16, device)]

    def run():
        return megabytes(4, device)

    assert peak_megabytes(run, device) == 4
    del held


def test_the_backward_pass_counts(device):
    weight = megabytes(1, device).view(torch.float32).zero_().requires_grad_()

    def forward():
        return weight.exp().exp().exp().sum()

    def both():
        weight.grad = None
        forward().backward()

    with torch.no_grad():
        alone = peak_megabytes(forward, device)
    # A value and the next one; and with a gradient all three, and the gradient of one.
    assert 2 <= alone < 2.1
    assert 4 <= peak_megabytes(both, device) < 5.1
