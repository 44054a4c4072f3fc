"""Milliseconds of a backbone at several operating points, side by side."""

import functools
import statistics
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch
from torch import nn

from spt_d2.analysis.model_report import bottom_up
from spt_d2.analysis.operating_point import OperatingPoint, operating_point


@dataclass(frozen=True)
class Latency:
    """
    Times of one operating point.

    Attributes:
        median_ms, p25_ms, p75_ms: of one forward pass, in milliseconds.
        passes: number of them.
    """

    median_ms: float
    p25_ms: float
    p75_ms: float
    passes: int

    @classmethod
    def of_seconds(cls, seconds: Sequence[float]) -> "Latency":
        """At least one pass."""
        milliseconds = [1000 * value for value in seconds]
        quartiles = statistics.quantiles(milliseconds, n=4, method="inclusive") if len(milliseconds) > 1 else None
        median = statistics.median(milliseconds)
        return cls(median, quartiles[0] if quartiles else median, quartiles[2] if quartiles else median, len(seconds))


def time_backbone(
    model: nn.Module,
    points: Sequence[OperatingPoint],
    inputs: Sequence[dict],
    *,
    rounds: int = 10,
    warmup: int = 2,
    clock: Callable[[], float] = time.perf_counter,
) -> list[Latency]:
    """
    :func:`time_settings` of operating points.

    Args:
        model: a meta-architecture whose backbone, SPT or ViT, has Select and Pack blocks; in evaluation mode.
        points: to be compared.
        inputs, rounds, warmup, clock: see there.

    Raises:
        ValueError: no image or no round; ``SELECT oracle``, whose labels a backbone alone does not have.
    """
    settings = [functools.partial(operating_point, model, point) for point in points]
    return time_settings(model, settings, inputs, rounds=rounds, warmup=warmup, clock=clock)


@torch.inference_mode()
def time_settings(
    model: nn.Module,
    settings: Sequence[Callable[[], AbstractContextManager[None]]],
    inputs: Sequence[dict],
    *,
    rounds: int = 10,
    warmup: int = 2,
    clock: Callable[[], float] = time.perf_counter,
) -> list[Latency]:
    """
    Time the forward pass of the backbone, without a pyramid on it, on single images.

    Settings are interleaved: every round runs each image at every setting, one after the other, and every second round
    in reverse order, so that a machine that slows down slows all of them. The first rounds are not counted.

    Args:
        model: a meta-architecture in evaluation mode.
        settings: each gives a context in which the model is set as it is to be timed.
        inputs: of the model; each is prepared and padded once, beforehand.
        rounds: that are counted, at least 1.
        warmup: rounds before them.
        clock: seconds.

    Raises:
        ValueError: no image or no round.
    """
    if not inputs or rounds < 1:
        raise ValueError(f"time_settings expects at least one image and one round. Got {len(inputs)} and {rounds}.")
    network = bottom_up(model)
    prepared = [model.preprocess_image([given]) for given in inputs]
    seconds: list[list[float]] = [[] for _ in settings]
    for number in range(-warmup, rounds):
        order = range(len(settings)) if number % 2 == 0 else reversed(range(len(settings)))
        for i in order:
            with settings[i]():
                for images in prepared:
                    wait_for(images.tensor.device)
                    begin = clock()
                    network.forward_with_selections(images.tensor, images.image_sizes)
                    wait_for(images.tensor.device)
                    if number >= 0:
                        seconds[i].append(clock() - begin)
    return [Latency.of_seconds(values) for values in seconds]


def wait_for(device: torch.device) -> None:
    """Wait for work that a GPU was given and has not finished."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
