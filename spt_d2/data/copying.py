"""Deep copies of dataset dicts, which hold thousands of numbers in lists."""

import copy
from typing import Any

_NUMBERS = frozenset((float, int))


class DatasetDict(dict):
    """
    A dict whose deep copy is a plain one, made in a third to a tenth of the time.

    :class:`detectron2.data.DatasetMapper` begins with ``copy.deepcopy``, which looks at every coordinate of every
    polygon; with many of them that takes longer than making their labels does. A list of numbers is copied as one.
    """

    def __deepcopy__(self, memo: dict[int, Any]) -> dict:
        return {key: _copy(value, memo) for key, value in self.items()}


def _copy(value: Any, memo: dict[int, Any]) -> Any:
    if type(value) is dict:
        return {key: _copy(part, memo) for key, part in value.items()}
    if type(value) is list:
        return value.copy() if _NUMBERS.issuperset(map(type, value)) else [_copy(part, memo) for part in value]
    return copy.deepcopy(value, memo)
