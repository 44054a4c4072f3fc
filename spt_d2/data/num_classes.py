"""The number of classes, from the training json into the model's config, and what must agree with it."""

import logging
from collections.abc import Iterator, Sequence
from typing import Any

from detectron2.config import CfgNode
from omegaconf import DictConfig, ListConfig, OmegaConf

from spt_d2.data.datasets import Categories, dataset_categories, register_custom_datasets

logger = logging.getLogger(__name__)

_YACS_KEYS = ("MODEL.ROI_HEADS.NUM_CLASSES", "MODEL.RETINANET.NUM_CLASSES", "MODEL.MULTI_LABEL.NUM_CLASSES")

# Parts of a model whose classes are not those of the detector.
_NOT_THINGS = ("sem_seg_head", "backbone")


def setup_datasets(cfg: CfgNode, opts: Sequence[str]) -> None:
    """
    Register ``DATASETS.CUSTOM`` and set ``NUM_CLASSES`` from the training json, where the training set is one of them.

    Call it after file and command line are merged, before the config is frozen.

    Args:
        cfg: changed in place.
        opts: command-line overrides, ``KEY VALUE KEY VALUE ...``. A number of classes among them has to be that of the
            json.

    Raises:
        ValueError: classes of training and validation sets, or of a command-line override, disagree; and what
            :func:`register_custom_datasets` raises.
    """
    custom = register_custom_datasets(cfg.DATASETS.CUSTOM)
    categories = agreed_categories(cfg.DATASETS.TRAIN, cfg.DATASETS.TEST, custom)
    if categories is None:
        return
    count = len(categories.names)
    for key in _YACS_KEYS:
        *path, leaf = key.split(".")
        node = cfg
        for part in path:
            node = node[part]
        if key in opts[0::2]:
            _check_override(key, node[leaf], count, categories)
        node[leaf] = count
    logger.info(f"{count} classes from {categories.source}: {', '.join(_YACS_KEYS)} set.")


def setup_lazy_datasets(cfg: DictConfig, overrides: Sequence[str]) -> None:
    """
    What :func:`setup_datasets` does, for a LazyConfig.

    Data sets are ``cfg.datasets.custom``; names are read from ``cfg.dataloader.{train,test}.dataset.names``. Every
    ``num_classes`` under ``cfg.model`` that is a number (not a reference to another) is set, but those of the
    backbone and of semantic segmentation.

    Args:
        cfg: changed in place; overrides applied.
        overrides: the command line, ``path.key=value`` each.

    Raises:
        as :func:`setup_datasets`.
    """
    entries: Any = OmegaConf.select(cfg, "datasets.custom")
    custom = register_custom_datasets([entry if isinstance(entry, str) else list(entry) for entry in entries or ()])
    categories = agreed_categories(lazy_names(cfg, "train"), lazy_names(cfg, "test"), custom)
    if categories is None:
        return
    count = len(categories.names)
    explicit = {override.split("=", 1)[0].lstrip("+~") for override in overrides}
    changed = []
    for node, key, path in _class_counts(cfg.model, "model"):
        if path in explicit:
            _check_override(path, node[key], count, categories)
        node[key] = count
        changed.append(path)
    logger.info(f"{count} classes from {categories.source}: {', '.join(changed) or 'nothing'} set.")


def _class_counts(node: Any, path: str) -> Iterator[tuple[DictConfig, str, str]]:
    """Every ``num_classes`` that is a number: its node, its key, its path."""
    for key in range(len(node)) if isinstance(node, ListConfig) else list(node):
        if key in _NOT_THINGS or OmegaConf.is_interpolation(node, key) or OmegaConf.is_missing(node, key):
            continue
        child = node[key]
        if key == "num_classes" and isinstance(child, int):
            yield node, key, f"{path}.{key}"
        elif isinstance(child, (DictConfig, ListConfig)):
            yield from _class_counts(child, f"{path}.{key}")


def lazy_names(cfg: DictConfig, split: str) -> list[str]:
    """
    Names of a LazyConfig's data sets; none where its loader has data of another kind.

    Args:
        cfg: with ``dataloader.train`` and ``dataloader.test``.
        split: ``train`` or ``test``.
    """
    data_set = OmegaConf.select(cfg, f"dataloader.{split}.dataset")
    names: Any = data_set.get("names") if isinstance(data_set, DictConfig) else None
    if isinstance(names, str):
        return [names]
    return [name for name in names if isinstance(name, str)] if isinstance(names, ListConfig) else []


def agreed_categories(train: Sequence[str], test: Sequence[str], custom: Sequence[str]) -> Categories | None:
    """
    The categories that the data sets of a run have in common.

    Data sets that no entry registered are asked for theirs only where they stand beside one that an entry did.

    Args:
        train, test: names of data sets.
        custom: those that entries registered.

    Returns:
        the categories, or None where no training set is one of one's own: then the config's number stands.

    Raises:
        ValueError: two of them disagree.
    """
    own = {*custom, "shapes_train", "shapes_val"}
    if own.isdisjoint([*train, *test]):
        return None
    asked = {name: dataset_categories(name) for name in (*train, *test)}
    known = {name: categories for name, categories in asked.items() if categories is not None}
    reference = next((name for name in train if name in known), None)
    if reference is None:
        return None
    for name, categories in known.items():
        _check_agreement(reference, known[reference], name, categories)
    return None if own.isdisjoint(train) else known[reference]


def _check_agreement(first: str, wanted: Categories, second: str, got: Categories) -> None:
    if wanted.names == got.names:
        if wanted.ids and got.ids and wanted.ids != got.ids:
            logger.info(f"'{first}' and '{second}' number the same classes differently; classes go by their order.")
        return
    only_wanted = [name for name in wanted.names if name not in got.names]
    only_got = [name for name in got.names if name not in wanted.names]
    different = f"\n  only in '{first}': {only_wanted}\n  only in '{second}': {only_got}"
    if not only_wanted and not only_got:
        different = f"\n  order of '{first}': {list(wanted.names)}\n  order of '{second}': {list(got.names)}"
    raise ValueError(
        "Data sets of one run expect the same classes in the same order of ids.\n"
        f"  '{first}': {len(wanted.names)} classes, {wanted.source}\n"
        f"  '{second}': {len(got.names)} classes, {got.source}{different}"
    )


def _check_override(key: str, value: int, count: int, categories: Categories) -> None:
    if value != count:
        raise ValueError(
            f"{key} is {value} on the command line, but the training set has {count} classes.\n"
            f"  {categories.source}: {list(categories.names)}\n"
            "HINT: leave the override out; the number is set from the json."
        )
