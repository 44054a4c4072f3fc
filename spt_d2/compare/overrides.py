"""Overrides of configs: by dotted key, with variables of the environment in them."""

import os
import re
from collections.abc import Mapping
from typing import Any

from spt_d2 import get_config_file

Overrides = Mapping[str, Any]
_VARIABLE = re.compile(r"\$\{(\w+)\}")


def flatten(overrides: Mapping[str, Any] | None, prefix: str = "") -> dict[str, Any]:
    """
    Overrides by dotted key, from nested ones as in a config file, dotted ones, or both.

    Example:
        >>> flatten({"MODEL": {"SPT": {"TAU": 0.5}}, "SEED": 1})
        {'MODEL.SPT.TAU': 0.5, 'SEED': 1}
    """
    found: dict[str, Any] = {}
    for key, value in (overrides or {}).items():
        if isinstance(value, Mapping):
            found.update(flatten(value, f"{prefix}{key}."))
        else:
            found[f"{prefix}{key}"] = value
    return found


def as_options(overrides: Mapping[str, Any]) -> list[Any]:
    """Keys and values in turn, with variables filled in: what a config merges."""
    return [item for key, value in overrides.items() for item in (key, expand(value))]


def expand(value: Any) -> Any:
    """
    Fill in ``${VARIABLES}`` of the environment, in texts and lists of texts.

    Raises:
        ValueError: a variable that is not set.
    """
    if isinstance(value, (list, tuple)):
        return [expand(inner) for inner in value]
    if not isinstance(value, str):
        return value
    missing = [name for name in _VARIABLE.findall(value) if name not in os.environ]
    if missing:
        raise ValueError(
            f"{value!r} expects the environment variable {missing[0]}. It is not set.\n"
            "HINT: set it, or give --data NAME=FOLDER or --weights FILE."
        )
    return _VARIABLE.sub(lambda match: os.environ[match[1]], value)


def find_config(name: str) -> str:
    """The path of a variant's config: from the working directory, else below ``configs/``."""
    return os.path.abspath(name) if os.path.isfile(name) else get_config_file(name)


def plain(value: Any) -> Any:
    """As JSON gives it back: lists for tuples."""
    if isinstance(value, Mapping):
        return {key: plain(inner) for key, inner in value.items()}
    return [plain(inner) for inner in value] if isinstance(value, (list, tuple)) else value
