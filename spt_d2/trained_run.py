"""A trained run without its data: the config that it left, and the names and ids of its classes."""

import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from detectron2.config import CfgNode
from omegaconf import DictConfig, OmegaConf
from torch import nn

from spt_d2.config import validate_spt_config
from spt_d2.data import setup_datasets, setup_lazy_datasets
from spt_d2.data.datasets import Categories, dataset_categories, dataset_root, read_categories
from spt_d2.data.num_classes import lazy_names
from spt_d2.engine.evaluation_file import read_evaluation
from spt_d2.engine.lazy import load_lazy
from spt_d2.engine.setup import read_config

logger = logging.getLogger(__name__)

# Nodes of MODEL with a NUM_CLASSES that follows the training set.
_HEADS = ("ROI_HEADS", "RETINANET", "MULTI_LABEL")


def load_trained_config(config_file: str, device: str | None = None) -> CfgNode | DictConfig:
    """
    Read a config for prediction: neither images nor json files have to be there.

    Where the file itself states numbers of classes, as the ``config.yaml`` of a run does, they stand. Else the training
    json's is taken, as in training, or the config's where there is no json.

    Args:
        config_file: a yaml config, a LazyConfig, or what a run of either left in its folder.
        device: in place of the config's.

    Raises:
        FileNotFoundError: no such file.
        ValueError: values that cannot be.
    """
    if not os.path.isfile(config_file):
        raise FileNotFoundError(f"load_trained_config(config_file=) expects a config. There is no file {config_file}.")
    stated = {} if config_file.endswith(".py") else _stated(config_file)
    # Keys of the other kind are upper-case.
    is_lazy = config_file.endswith(".py") or "model" in stated
    cfg = load_lazy(config_file) if is_lazy else read_config(config_file)
    try:
        if not isinstance(cfg, CfgNode):
            if config_file.endswith(".py"):
                setup_lazy_datasets(cfg, [])
        elif not any("NUM_CLASSES" in (node or {}) for node in map(stated.get("MODEL", {}).get, _HEADS)):
            setup_datasets(cfg, [])
    except FileNotFoundError as error:
        logger.warning("The number of classes is that of %s, for the data is not there. %s", config_file, error)
    if isinstance(cfg, CfgNode):
        validate_spt_config(cfg)
    if device is not None and isinstance(cfg, CfgNode):
        cfg.MODEL.DEVICE = device
    elif device is not None:
        cfg.train.device = device
    return cfg


def _stated(config_file: str) -> dict[str, Any]:
    """What a yaml file says itself, without its bases; read as Detectron2 reads it."""
    try:
        content = yaml.unsafe_load(Path(config_file).read_text(encoding="utf-8"))
    except yaml.YAMLError:
        # Which read_config reports.
        return {}
    return content if isinstance(content, dict) else {}


def trained_categories(
    cfg: CfgNode | DictConfig, model: nn.Module, folders: Sequence[str | os.PathLike[str]]
) -> Categories:
    """
    Names of a model's classes: of a json of its data sets, else of the evaluation that its run left, else "class 3".

    Args:
        cfg: as :func:`load_trained_config` returns it.
        model: a detector, whose number of classes the names have to have.
        folders: that may be the run's.

    Returns:
        as many names as the model has classes; ids where a data set says them.
    """
    count: Any = getattr(model, "roi_heads", model).num_classes
    for name, categories in _of_data_sets(cfg):
        if len(categories.names) == count:
            return categories
        logger.warning(
            "The data set '%s' has %d classes, and the model has %d: its names are not used.",
            name, len(categories.names), count,
        )  # fmt: skip
    for folder in folders:
        names = _of_evaluation(folder)
        if len(names) == count:
            return Categories(f"the evaluation in {os.fspath(folder)}", names)
    return Categories("numbers from 0", tuple(f"class {index}" for index in range(count)))


def _of_data_sets(cfg: CfgNode | DictConfig) -> list[tuple[str, Categories]]:
    """Of those that are evaluated, then of those trained on; files that cannot be read are passed over."""
    if isinstance(cfg, CfgNode):
        names, entries = [*cfg.DATASETS.TEST, *cfg.DATASETS.TRAIN], cfg.DATASETS.CUSTOM
    else:
        names = [*lazy_names(cfg, "test"), *lazy_names(cfg, "train")]
        entries = OmegaConf.select(cfg, "datasets.custom") or []
    own = {name: os.path.expanduser(json_file) for name, json_file, _ in entries}
    found = []
    for name in dict.fromkeys(names):
        # As when training: from the working directory, else from the folder of data sets.
        paths = [path for path in (own.get(name, ""), os.path.join(dataset_root(), own.get(name, ""))) if name in own]
        file = next(filter(os.path.isfile, paths), None)
        try:
            categories = read_categories(file) if file else dataset_categories(name)
        except (OSError, ValueError) as error:
            logger.warning("Class names are not read from the data set '%s': %s", name, error)
            continue
        if categories is not None:
            found.append((name, categories))
    return found


def _of_evaluation(folder: str | os.PathLike[str]) -> tuple[str, ...]:
    """Of a run's ``evaluation.json``, which names more than one class in their order; empty if there is none."""
    try:
        results = read_evaluation(folder)["test"][0]["results"]["bbox"]
    except (ValueError, KeyError, IndexError, TypeError):
        return ()
    return tuple(key.removeprefix("AP-") for key in results if key.startswith("AP-"))
