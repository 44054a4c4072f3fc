"""What a run of the benchmark leaves: rows, and where they come from."""

import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from spt_d2 import provenance


@dataclass(frozen=True)
class Row:
    """
    One thing that was timed.

    Attributes:
        name: of it.
        keep_ratio: a share, ``{"stage3": share, ...}``, or None where nothing is selected.
        device: ``cpu`` or ``cuda``.
        dtype: of the matrix products.
        mode: ``inference`` or ``training``; what data is timed has modes of its own.
        batch: images.
        image_size: (height, width) in pixels.
        median_ms: over the rounds, in milliseconds.
        spread_ms: between the quartiles.
        peak_mb: the most memory held at a time, in 2^20 bytes, without weights
            (:func:`spt_d2.benchmark.memory.peak_megabytes`); None where it was not measured.
        ratio_to_fastest_peer: how many times as fast as the peer with the smallest median: the median over rounds of
            the peer's time over this one's. None without a peer.
        ratio_quartiles: of the same ratios.
    """

    name: str
    keep_ratio: Any
    device: str
    dtype: str
    mode: str
    batch: int
    image_size: tuple[int, int]
    median_ms: float
    spread_ms: float
    peak_mb: float | None = None
    ratio_to_fastest_peer: float | None = None
    ratio_quartiles: tuple[float, float] | None = None


@dataclass(frozen=True)
class Record:
    """
    A run of the benchmark.

    Attributes:
        benchmark: which one, such as ``backbone``.
        command: arguments of the program that made it.
        rounds: that were timed.
        machine: :func:`spt_d2.provenance.machine`.
        commit: :func:`spt_d2.provenance.code_commit`.
        missing: peers whose package was not installed.
        notes: lines that belong to the rows, such as exponents.
        rows: what was timed.
    """

    benchmark: str
    command: str
    rounds: int
    machine: dict[str, Any]
    commit: str | None
    missing: tuple[str, ...]
    notes: tuple[str, ...]
    rows: tuple[Row, ...]


def new_record(
    benchmark: str,
    command: str,
    rounds: int,
    device: str,
    rows: Sequence[Row],
    missing: Sequence[str] = (),
    notes: Sequence[str] = (),
) -> Record:
    """A :class:`Record` of this machine and commit."""
    return Record(
        benchmark=benchmark,
        command=command,
        rounds=rounds,
        machine=provenance.machine(device),
        commit=provenance.code_commit(),
        missing=tuple(missing),
        notes=tuple(notes),
        rows=tuple(rows),
    )


def write_record(record: Record, path: str | os.PathLike[str]) -> None:
    """Write a record as JSON, whole or not at all; numbers have four significant digits."""
    data = asdict(record)
    for row in data["rows"]:
        for key, value in row.items():
            if isinstance(value, float) and key != "keep_ratio":
                row[key] = float(f"{value:.4g}")
            elif key == "ratio_quartiles" and value is not None:
                row[key] = [float(f"{number:.4g}") for number in value]
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    unfinished = target.with_name(target.name + ".unfinished")
    unfinished.write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")
    os.replace(unfinished, target)


def read_record(path: str | os.PathLike[str]) -> Record:
    """
    Read what :func:`write_record` wrote.

    Raises:
        ValueError: another file.
    """
    try:
        data = json.loads(Path(path).read_text(encoding="utf-8"))
        rows = tuple(Row(**{**row, "image_size": tuple(row["image_size"])}) for row in data.pop("rows"))
        return Record(rows=rows, missing=tuple(data.pop("missing")), notes=tuple(data.pop("notes")), **data)
    except (KeyError, TypeError, AttributeError, json.JSONDecodeError) as error:
        raise ValueError(f"read_record(path=) expects a results file of tools/benchmark.py. Got {path}.") from error
