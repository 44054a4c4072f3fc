"""Read a plan from a yaml file, or make one of what a command line says."""

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import yaml

from spt_d2.compare.overrides import Overrides, flatten
from spt_d2.compare.plan import Budget, DataSet, Plan, Variant

_PLAN_KEYS = {"name", "reference", "seeds", "overrides", "weights", "data_sets", "variants", "max_iter", "minutes"}
_DATA_KEYS = {"name", "folder", "overrides", "weights", "max_iter", "minutes"}
_VARIANT_KEYS = {"name", "config", "overrides", "weights", "keep_ratio_of"}


def read_plan(path: str | os.PathLike[str]) -> Plan:
    """
    Read a plan from a yaml file; ``projects/SPT/plans`` has examples.

    Raises:
        ValueError: a key not known or missing, a name twice or not fit for a file, a reference that is no variant.
    """
    with open(path, encoding="utf-8") as file:
        content = yaml.safe_load(file)
    where = f"The plan {os.fspath(path)}"
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
    if len(given) > 1 or any(value <= 0 for value in given):
        raise ValueError(f"{where} expects max_iter or minutes, not both, above 0. Got {asdict(budget)}.")
    return budget


def _expect_keys(content: Any, known: set[str], needed: set[str], where: str) -> None:
    if not isinstance(content, Mapping) or not needed <= content.keys() <= known:
        got = sorted(content) if isinstance(content, Mapping) else content
        raise ValueError(f"{where} expects the keys {sorted(needed)}, and of {sorted(known - needed)}. Got {got}.")


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
