"""Progress over a long loop: the library says where it is, the program decides whether anybody sees it."""

import sys
from collections.abc import Callable, Iterable
from typing import Any

from tqdm import tqdm

# Takes items, how many there are, and what is done with them; returns the items.
Progress = Callable[[Iterable[Any], int, str], Iterable[Any]]


def no_progress(items: Iterable[Any], total: int, what: str) -> Iterable[Any]:
    """The items as they are."""
    return items


def terminal_progress(items: Iterable[Any], total: int, what: str) -> Iterable[Any]:
    """The items, with a line on the standard error that counts them; nothing where that is no terminal."""
    return tqdm(items, total=total, desc=what, unit_scale=True, leave=False, disable=None, file=sys.stderr)
