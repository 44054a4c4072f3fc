"""Put a generated table into a page, between its markers, so that no number is typed."""

import os
import re
from pathlib import Path


def markers(name: str) -> tuple[str, str]:
    """The lines between which the table of a plan stands; comments, that a reader of the page does not see."""
    return f"<!-- table of {name}: made by tools/compare.py, do not edit -->", f"<!-- end of the table of {name} -->"


def insert_between(path: str | os.PathLike[str], name: str, text: str) -> None:
    """
    Replace what stands between the markers of a plan.

    Args:
        path: of the page.
        name: of the plan.
        text: to stand there.

    Raises:
        ValueError: the page does not have the two markers once each, in their order.
    """
    page = Path(path)
    content = page.read_text(encoding="utf-8")
    begin, end = markers(name)
    found = re.findall(f"{re.escape(begin)}.*?{re.escape(end)}", content, flags=re.DOTALL)
    if len(found) != 1 or content.count(begin) != 1 or content.count(end) != 1:
        raise ValueError(f"{page} expects these two lines once each, in this order:\n{begin}\n{end}")
    page.write_text(content.replace(found[0], f"{begin}\n\n{text.strip()}\n\n{end}"), encoding="utf-8")
