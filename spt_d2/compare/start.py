"""The checkpoint that a run starts from: where it is, and what it holds."""

import os

from detectron2.utils.file_io import PathManager

from spt_d2.compare.overrides import Overrides, expand, find_config
from spt_d2.engine.setup import read_config
from spt_d2.provenance import file_digest

KEY = "MODEL.WEIGHTS"


def checkpoint(config: str, overrides: Overrides, given: str | None = None) -> str:
    """
    Where the checkpoint is that a run starts from, as ``MODEL.WEIGHTS`` takes it.

    Args:
        config: a yaml file, as a plan names it.
        overrides: of the config, by dotted key. A checkpoint among them wins over all others.
        given: what the plan names, with ``~`` and ``${VARIABLES}`` perhaps; None for what the config names.

    Returns:
        an absolute path or an address; "" where the run starts from scratch.

    Raises:
        ValueError: a variable of the environment that is not set; a checkpoint among the overrides that is no text.
        FileNotFoundError: no such config.
    """
    own = overrides.get(KEY)
    if own is not None and not isinstance(own, str):
        raise ValueError(f'{KEY} expects a path, an address, or "" to start from scratch. Got {own!r}.')
    found = given if own is None else own
    if found is None:
        found = read_config(find_config(config)).MODEL.WEIGHTS
    found = os.path.expanduser(expand(found))
    return os.path.abspath(found) if found and "://" not in found else found


def checkpoint_digest(place: str) -> str:
    """
    The SHA-256 of what is at a place that :func:`checkpoint` gives; "" for none. An address is downloaded, once.

    Raises:
        OSError: there is no such file.
    """
    # What follows a question mark tells Detectron2 how to read the file.
    return file_digest(PathManager.get_local_path(place.partition("?")[0])) if place else ""
