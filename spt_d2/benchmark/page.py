"""Results files put into a page of documentation, so that no number is typed."""

import os
from collections.abc import Sequence

from spt_d2.benchmark.record import Record
from spt_d2.benchmark.table import HEADER, cells, origin
from spt_d2.compare.document import insert_between

PROGRAM = "tools/benchmark.py"


def record_text(record: Record) -> str:
    """Table, notes and origin of one run, in markdown."""
    lines = [list(HEADER), ["---", *["---:"] * (len(HEADER) - 1)], *(cells(row) for row in record.rows)]
    table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    notes = "\n".join(f"* {note}" for note in record.notes)
    return "\n\n".join(part for part in (table, notes, origin(record)) if part)


def insert_records(path: str | os.PathLike[str], records: Sequence[Record]) -> None:
    """
    Put runs into a page, those of each benchmark between its markers, in the order given.

    Args:
        path: of the page.
        records: at least one.

    Raises:
        ValueError: the page lacks the markers of a benchmark.
    """
    for benchmark in dict.fromkeys(record.benchmark for record in records):
        runs = [record_text(record) for record in records if record.benchmark == benchmark]
        insert_between(path, benchmark, "\n\n".join(runs), PROGRAM)
