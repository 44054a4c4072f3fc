"""Read a plan from a yaml file, or make one of what a command line says."""

import math
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import yaml

from spt_d2.compare.overrides import Overrides, flatten
from spt_d2.compare.plan import Budget, DataSet, Plan, Variant

_PLAN_KEYS = {"name", "reference", "seeds", "overrides", "weights", "data_sets", "variants", "max_iter", "minutes"}
_DATA_KEYS = {"name", "folder", "overrides", "weights", "max_iter", "minutes"}
_VARIANT_KEYS = {"name", "config", "overrides", "weights", "keep_ratio_of"}
# What a value is, in words and as a check. Of keys not named here: a text.
_TEXT = "a text", lambda value: isinstance(value, str)
_TEXT_OR_NOTHING = "a text", lambda value: value is None or isinstance(value, str)
_LIST = "a list", lambda value: isinstance(value, list)
_VALUES: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "seeds": ("a list of whole numbers", lambda value: isinstance(value, list) and all(type(s) is int for s in value)),
    "max_iter": ("a whole number above 0", lambda value: value is None or (type(value) is int and value > 0)),
    "minutes": (
        "a number above 0", lambda value: value is None or (type(value) in (int, float) and 0 < value < math.inf),
    ),
    "overrides": ("keys of the config with values", lambda value: value is None or isinstance(value, Mapping)),
    "data_sets": _LIST,
    "variants": _LIST,
    "folder": _TEXT_OR_NOTHING,
    "weights": _TEXT_OR_NOTHING,
    "keep_ratio_of": _TEXT_OR_NOTHING,
}  # fmt: skip


def read_plan(path: str | os.PathLike[str]) -> Plan:
    """
    Read a plan from a yaml file; ``projects/SPT/plans`` has examples.

    Raises:
        ValueError: no yaml; a key not known or missing, or a value that it cannot have; a name twice or not fit for a
            file; a reference that is no variant.
    """
    where = f"The plan {os.fspath(path)}"
    with open(path, encoding="utf-8") as file:
        try:
            content = yaml.safe_load(file)
        except yaml.YAMLError as error:
            raise ValueError(f"{where} expects yaml. {error}") from error
    _expect_keys(content, _PLAN_KEYS, {"name", "data_sets", "variants"}, where)
    data_sets, variants = [], []
    for entry in content["data_sets"]:
        _expect_keys(entry, _DATA_KEYS, {"name"}, f"{where}, a data set")
        rest = {key: entry.get(key) for key in ("name", "folder", "weights")}
        budget = _budget(entry, where) if {"max_iter", "minutes"} & entry.keys() else None
        data_sets.append(DataSet(**rest, overrides=flatten(entry.get("overrides")), budget=budget))
    for entry in content["variants"]:
        _expect_keys(entry, _VARIANT_KEYS, {"name", "config"}, f"{where}, a variant")
        variants.append(Variant(**{**entry, "overrides": flatten(entry.get("overrides"))}))
    return Plan(
        name=content["name"],
        data_sets=tuple(data_sets),
        variants=tuple(variants),
        seeds=tuple(content.get("seeds", (0,))),
        reference=content.get("reference", variants[0].name if variants else ""),
        overrides=flatten(content.get("overrides")),
        weights=content.get("weights"),
        budget=_budget(content, where),
    )


def _budget(content: Mapping[str, Any], where: str) -> Budget:
    budget = Budget(content.get("max_iter"), content.get("minutes"))
    given = [value for value in (budget.max_iter, budget.minutes) if value is not None]
    if len(given) > 1:
        raise ValueError(f"{where} expects max_iter or minutes, not both. Got {asdict(budget)}.")
    return budget


def _expect_keys(content: Any, known: set[str], needed: set[str], where: str) -> None:
    if not isinstance(content, Mapping) or not needed <= content.keys() <= known:
        got = list(content) if isinstance(content, Mapping) else content
        raise ValueError(f"{where} expects the keys {sorted(needed)}, and of {sorted(known - needed)}. Got {got}.")
    for key, value in content.items():
        what, allows = _VALUES.get(key, _TEXT)
        if not allows(value):
            raise ValueError(f"{where} expects in '{key}' {what}. Got {value!r}.")


def plan_of_configs(
    configs: Sequence[str],
    data_sets: Sequence[str],
    *,
    name: str = "comparison",
    seeds: Iterable[int] = (0,),
    reference: str | None = None,
    overrides: Overrides | None = None,
    weights: str | None = None,
    budget: Budget | None = None,
) -> Plan:
    """
    A plan without a file.

    Args:
        configs: yaml files; a variant is named as its file.
        data_sets: each ``NAME`` of a registered pair ``NAME_train`` and ``NAME_val``, or ``NAME=FOLDER``.
        name: of the comparison.
        seeds, reference, overrides, weights, budget: as those of :class:`Plan`; the first config is the reference.
    """
    variants = tuple(Variant(os.path.splitext(os.path.basename(config))[0], config) for config in configs)
    sets = []
    for given in data_sets:
        title, _, folder = given.partition("=")
        registered = {"DATASETS.TRAIN": [f"{title}_train"], "DATASETS.TEST": [f"{title}_val"]}
        sets.append(DataSet(title, folder or None, {} if folder else registered))
    first = reference or (variants[0].name if variants else "")
    return Plan(name, tuple(sets), variants, tuple(seeds), first, dict(overrides or {}), weights, budget or Budget())
