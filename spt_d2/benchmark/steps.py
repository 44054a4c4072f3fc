"""What is timed of a network: a pass forward, or a pass forward and backward."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from spt_d2.benchmark.timing import Entry

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
MODES = ("inference", "training")


def step(
    network: nn.Module,
    outputs: Callable[[], Any],
    device: torch.device,
    *,
    dtype: str = "float32",
    training: bool = False,
    prepare: Callable[[], object] = lambda: None,
) -> Entry:
    """
    A step of a network, as an entry of a benchmark.

    Args:
        network: put into the mode of the step before each run, and rid of its gradients.
        outputs: calls the network, and returns a mapping of its outputs: maps, or losses in training.
        device: of the network.
        dtype: one of :data:`DTYPES`; the lower two through autocast, as Detectron2's mixed precision does it. Weights
            stay in float32.
        training: whether to go backward too, from the sum of the outputs' means; else in inference mode.
        prepare: what else has to happen before each run.
    """
    reduced = torch.autocast(device.type, dtype=DTYPES[dtype], enabled=dtype != "float32")

    def infer() -> None:
        with torch.inference_mode(), reduced:
            outputs()

    def train() -> None:
        with reduced:
            values = outputs()
        total_mean(values).backward()

    def ready() -> None:
        prepare()
        network.train(training)
        for parameter in network.parameters():
            parameter.grad = None

    return Entry(train if training else infer, ready)


def total_mean(values: dict[str, Tensor]) -> Tensor:
    """A scalar that every output has a gradient from."""
    return torch.stack([value.float().mean() for value in values.values()]).sum()
