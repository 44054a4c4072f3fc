"""Cases of a benchmark, timed in turns, and the rows that come of it."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from spt_d2.analysis.latency import Latency
from spt_d2.analysis.model_report import plain_keep_ratio
from spt_d2.benchmark.memory import peak_megabytes
from spt_d2.benchmark.record import Row
from spt_d2.benchmark.timing import Entry, Ratio, interleave


@dataclass(frozen=True)
class Case:
    """
    One thing to time, and what it is compared with.

    Attributes:
        entry: how to run it.
        name, keep_ratio, dtype, mode, batch, image_size: see :class:`~spt_d2.benchmark.record.Row`.
        is_peer: whether others are compared with it.
        group: cases are compared within one, and within one dtype, mode, batch and size.
        repeats: what a run does so many times over; its time is divided by it.
    """

    entry: Entry
    name: str
    mode: str
    batch: int
    image_size: tuple[int, int]
    keep_ratio: Any = None
    dtype: str = "float32"
    is_peer: bool = False
    group: str = ""
    repeats: int = 1
    comparable: tuple = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "comparable", (self.group, self.dtype, self.mode, self.batch, self.image_size))


def time_cases(
    cases: Sequence[Case], device: torch.device, *, rounds: int, warmup: int = 1, memory: bool = True
) -> list[Row]:
    """
    Time cases in turns; then run each once more for its memory.

    Args:
        cases: all of them are of one round, those that are compared best one after the other.
        device: that they run on.
        rounds: that are counted.
        warmup: rounds before them.
        memory: whether to measure it.

    Returns:
        one row for each case, in their order.
    """
    measured = interleave([case.entry for case in cases], device, rounds=rounds, warmup=warmup)
    seconds = [[value / case.repeats for value in values] for case, values in zip(cases, measured)]
    rows = []
    for i, case in enumerate(cases):
        latency = Latency.of_seconds(seconds[i])
        peers = [j for j, other in enumerate(cases) if other.is_peer and other.comparable == case.comparable]
        ratio = None
        if peers:
            fastest = min(peers, key=lambda j: Latency.of_seconds(seconds[j]).median_ms)
            ratio = Ratio.of_pairs(seconds[fastest], seconds[i])
        peak = None
        if memory:
            case.entry.prepare()
            peak = peak_megabytes(case.entry.run, device)
        rows.append(
            Row(
                name=case.name,
                keep_ratio=None if case.keep_ratio is None else plain_keep_ratio(case.keep_ratio),
                device=device.type,
                dtype=case.dtype,
                mode=case.mode,
                batch=case.batch,
                image_size=case.image_size,
                median_ms=latency.median_ms,
                spread_ms=latency.p75_ms - latency.p25_ms,
                peak_mb=peak,
                ratio_to_fastest_peer=None if ratio is None else ratio.median,
                ratio_quartiles=None if ratio is None else (ratio.p25, ratio.p75),
            )
        )
    return rows
