"""Find and load the configs that come with the project, from a source tree and from an installed wheel alike."""

from __future__ import annotations

import difflib
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from detectron2.config import CfgNode
    from omegaconf import DictConfig

_PACKAGE = Path(__file__).resolve().parent
# A wheel carries the configs inside the package; in a source tree they stand beside it.
_ROOTS = (_PACKAGE / "configs", _PACKAGE.parent / "configs")
_SUFFIXES = (".yaml", ".py")


def _config_root() -> Path:
    """The folder that holds the configs."""
    for root in _ROOTS:
        if root.is_dir():
            return root
    raise FileNotFoundError(
        "spt_d2 expects its configs in one of two folders. Found neither.\n"
        f"  of a wheel      : {_ROOTS[0]}\n"
        f"  of a source tree: {_ROOTS[1]}\n"
        "HINT: install the project again (see INSTALL.md)."
    )


def get_config_file(name: str) -> str:
    """
    Give the path of a config file of this project.

    Args:
        name: path below ``configs/`` with forward slashes, suffix included, such as
            ``"Shapes-InstanceSegmentation/mask_rcnn_spt_nano_fpn_demo.yaml"``.

    Returns:
        The absolute path of an existing file.

    Raises:
        KeyError: no config has that name; the message lists those most like it.
        FileNotFoundError: the project was installed without its configs.
    """
    root = _config_root()
    names = sorted(path.relative_to(root).as_posix() for path in root.rglob("*") if path.suffix in _SUFFIXES)
    wanted = PurePosixPath(name).as_posix()
    if wanted in names:
        return str(root / wanted)
    # A wrong folder is as likely as a wrong file name, so compare both the whole path and its last part.
    by_file = [other for other in names if PurePosixPath(other).stem == PurePosixPath(wanted).stem]
    close = dict.fromkeys(by_file + difflib.get_close_matches(wanted, names, n=5, cutoff=0.5))
    listed = f"Close to it: {', '.join(close)}." if close else f"There are: {', '.join(names) or 'none'}."
    # One line: Python shows a KeyError as a quoted string, in which line breaks would not be broken.
    raise KeyError(f"get_config_file(name=) expects the path of a file below configs/. Got {name!r}. {listed}")


def get_config(name: str) -> CfgNode | DictConfig:
    """
    Load a config of this project. It does what detectron2's model zoo does for detectron2's own configs.

    Args:
        name: as for :func:`get_config_file`.

    Returns:
        For a ``.yaml`` a CfgNode with detectron2's keys and this project's, not frozen.
        For a ``.py`` (LazyConfig) a DictConfig of the config objects that the file defines.

    Raises:
        KeyError: no config has that name; the message lists those most like it.
        ImportError: detectron2 is not installed.
    """
    path = get_config_file(name)
    try:
        from detectron2.config import LazyConfig, get_cfg
    except ImportError as error:
        raise ImportError(
            f"get_config(name={name!r}) needs detectron2, which could not be imported ({error}).\n"
            "HINT: see INSTALL.md; get_config_file() gives the path without it."
        ) from error
    if path.endswith(".py"):
        return LazyConfig.load(path)

    from spt_d2.config import add_spt_config

    cfg = get_cfg()
    add_spt_config(cfg)
    cfg.merge_from_file(path)
    return cfg
