"""Put a generated table into a page, between its markers, so that no number is typed."""

import os
import re
from collections.abc import Sequence
from pathlib import Path

from spt_d2.compare.report import report_rows
from spt_d2.compare.results import Result
from spt_d2.compare.table import brief_table, comparison_table, provenance


def markers(name: str, program: str = "tools/compare.py") -> tuple[str, str]:
    """The lines between which the table of a plan stands; comments, that a reader of the page does not see."""
    return f"<!-- table of {name}: made by {program}, do not edit -->", f"<!-- end of the table of {name} -->"


def report_text(results: Sequence[Result], reference: str, figure: str, brief: bool = False) -> str:
    """
    Table, provenance and figure, in markdown; a brief one has few columns, and no provenance.

    Args:
        results: of one plan.
        reference: the variant that differences are taken from.
        figure: its path, seen from the page.
        brief: for a page that has no place for all columns.
    """
    rows = report_rows(results, reference)
    parts = [brief_table(rows)] if brief else [comparison_table(rows), provenance(results)]
    return "\n\n".join([*parts, f"![Box AP against executed multiply-adds]({figure})"])


def insert_report(
    path: str | os.PathLike[str],
    results: Sequence[Result],
    reference: str,
    figure: str | os.PathLike[str],
    brief: bool = False,
) -> None:
    """
    Put the report on results into a page, between the markers of their plan.

    Args:
        path: of the page.
        results: of one plan.
        reference: the variant that differences are taken from.
        figure: the picture's file.
        brief: see :func:`report_text`.

    Raises:
        ValueError: as :func:`insert_between`.
    """
    seen_from_page = Path(os.path.relpath(figure, Path(path).resolve().parent)).as_posix()
    insert_between(path, results[0]["plan"], report_text(results, reference, seen_from_page, brief))


def insert_between(path: str | os.PathLike[str], name: str, text: str, program: str = "tools/compare.py") -> None:
    """
    Replace what stands between the markers of a plan.

    Args:
        path: of the page.
        name: of the plan.
        text: to stand there.
        program: that makes it.

    Raises:
        ValueError: the page does not have the two markers once each, in their order.
    """
    content, found = between_markers(path, name, program)
    begin, end = markers(name, program)
    Path(path).write_text(content.replace(found, f"{begin}\n\n{text.strip()}\n\n{end}"), encoding="utf-8")


def between_markers(path: str | os.PathLike[str], name: str, program: str) -> tuple[str, str]:
    """
    The text of a page, and what of it stands between the markers of a plan, these included.

    Raises:
        ValueError: as :func:`insert_between`.
    """
    content = Path(path).read_text(encoding="utf-8")
    begin, end = markers(name, program)
    found = re.findall(f"{re.escape(begin)}.*?{re.escape(end)}", content, flags=re.DOTALL)
    if len(found) != 1 or content.count(begin) != 1 or content.count(end) != 1:
        raise ValueError(f"{os.fspath(path)} expects these two lines once each, in this order:\n{begin}\n{end}")
    return content, found[0]
