"""Rows of the benchmark as text, and where they come from."""

from spt_d2.benchmark.record import Record, Row

HEADER = ("", "keep", "mode", "dtype", "batch", "size", "ms", "IQR, ms", "peak MB", "x fastest peer", "quartiles")


def cells(row: Row) -> list[str]:
    """One cell for each column of :data:`HEADER`."""
    kept = row.keep_ratio
    if kept is not None:
        values = kept.values() if isinstance(kept, dict) else kept if isinstance(kept, list) else [kept]
        kept = ", ".join(f"{value:g}" for value in values)
    return [
        row.name,
        kept or "-",
        row.mode,
        row.dtype,
        str(row.batch),
        f"{row.image_size[0]}x{row.image_size[1]}",
        _digits(row.median_ms),
        _digits(row.spread_ms),
        "-" if row.peak_mb is None else f"{row.peak_mb:.0f}",
        "-" if row.ratio_to_fastest_peer is None else f"{row.ratio_to_fastest_peer:.2f}",
        "-" if row.ratio_quartiles is None else "{:.2f} to {:.2f}".format(*row.ratio_quartiles),
    ]


def _digits(milliseconds: float) -> str:
    return f"{milliseconds:.1f}" if milliseconds >= 10 else f"{milliseconds:.3f}"


def origin(record: Record) -> str:
    """What was run, where, and from which commit; one line."""
    machine = record.machine
    where = f"{machine['processor']}, {machine['threads']} of {machine['cores']} cores, torch {machine['torch']}"
    if machine["device"] != "cpu":
        where = f"{machine['device']}, {where}"
    commit = record.commit or "outside of a repository"
    missing = f"; not installed: {', '.join(record.missing)}" if record.missing else ""
    return f"`tools/benchmark.py {record.command}`: {record.rounds} rounds; {where}; commit {commit}{missing}"
