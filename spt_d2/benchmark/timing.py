"""Times taken in turns, so that a machine that slows down slows everything that is compared."""

import gc
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from spt_d2.analysis.latency import wait_for


@dataclass(frozen=True)
class Entry:
    """
    One of the things that are compared.

    Attributes:
        run: what is timed.
        prepare: what has to happen before each run, and is not timed.
    """

    run: Callable[[], object]
    prepare: Callable[[], object] = lambda: None


def interleave(
    entries: Sequence[Entry],
    device: torch.device,
    *,
    rounds: int,
    warmup: int = 1,
    clock: Callable[[], float] = time.perf_counter,
) -> list[list[float]]:
    """
    Time entries in turns: every round runs each of them once, and every second round in reverse order.

    The device is waited for before and after each run. Python's collector of cycles rests meanwhile, as in ``timeit``.

    Args:
        entries: to be compared.
        device: that they run on.
        rounds: that are counted, at least 1.
        warmup: rounds before them.
        clock: seconds.

    Returns:
        seconds of each entry, one for each round, in the order of the rounds: values of one round belong together.

    Raises:
        ValueError: nothing to time.
    """
    if not entries or rounds < 1:
        raise ValueError(f"interleave expects at least one entry and one round. Got {len(entries)} and {rounds}.")
    seconds: list[list[float]] = [[] for _ in entries]
    collects = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        for number in range(-warmup, rounds):
            order = range(len(entries)) if number % 2 == 0 else reversed(range(len(entries)))
            for i in order:
                entries[i].prepare()
                wait_for(device)
                begin = clock()
                entries[i].run()
                wait_for(device)
                if number >= 0:
                    seconds[i].append(clock() - begin)
    finally:
        if collects:
            gc.enable()
    return seconds


@dataclass(frozen=True)
class Ratio:
    """
    How many times as fast as another, from pairs of one round each.

    Attributes:
        median, p25, p75: over the rounds.
    """

    median: float
    p25: float
    p75: float

    @classmethod
    def of_pairs(cls, other: Sequence[float], own: Sequence[float]) -> "Ratio":
        """
        Args:
            other: seconds of the other, one for each round.
            own: seconds in the same rounds; a ratio above 1 says that this one is faster.
        """
        ratios = [a / b for a, b in zip(other, own, strict=True)]
        if len(ratios) == 1:
            return cls(ratios[0], ratios[0], ratios[0])
        quartiles = statistics.quantiles(ratios, n=4, method="inclusive")
        return cls(statistics.median(ratios), quartiles[0], quartiles[2])
