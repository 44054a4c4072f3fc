"""What is to be compared: data sets, variants, seeds, a budget."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from spt_d2.compare.overrides import Overrides

# Names become those of files and folders, and words of a table.
_NAME = re.compile(r"(?!.*__)[A-Za-z0-9][A-Za-z0-9_.+-]*$")


@dataclass(frozen=True)
class Budget:
    """
    How long a run trains. One of the two is set, or neither: then the config's own ``SOLVER.MAX_ITER`` stands.

    Attributes:
        max_iter: iterations; ``SOLVER.STEPS`` keep their places relative to the end.
        minutes: of training, turned into iterations by timing the first few.
    """

    max_iter: int | None = None
    minutes: float | None = None


@dataclass(frozen=True)
class DataSet:
    """
    A data set and what goes with it.

    Attributes:
        name: of the data set in tables and files.
        folder: for a set of one's own: it holds ``train.json``, ``val.json`` and ``images/``, COCO format. None where
            ``overrides`` name a registered one. May hold ``${VARIABLES}`` of the environment.
        overrides: of the config, by dotted key.
        weights: a checkpoint that all variants start from; None for the plan's.
        budget: None for the plan's.
    """

    name: str
    folder: str | None = None
    overrides: Overrides = field(default_factory=dict)
    weights: str | None = None
    budget: Budget | None = None


@dataclass(frozen=True)
class Variant:
    """
    One of the things compared.

    Attributes:
        name: in tables and files.
        config: a yaml file, from the working directory or below ``configs/``.
        overrides: of the config, by dotted key; they win over those of the data set.
        weights: a checkpoint to start from; "" for none; None for that of the data set.
        keep_ratio_of: another variant, whose measured keep ratio on the same data set and seed becomes
            ``MODEL.SPT.KEEP_RATIO``.
    """

    name: str
    config: str
    overrides: Overrides = field(default_factory=dict)
    weights: str | None = None
    keep_ratio_of: str | None = None


@dataclass(frozen=True)
class Run:
    """One run of a plan: a variant on a data set with a seed."""

    data_set: DataSet
    variant: Variant
    seed: int

    @property
    def key(self) -> tuple[str, str, int]:
        return self.data_set.name, self.variant.name, self.seed

    @property
    def title(self) -> str:
        return f"{self.data_set.name} / {self.variant.name} / seed {self.seed}"


@dataclass(frozen=True)
class Plan:
    """
    A comparison.

    Attributes:
        name: of the comparison.
        data_sets, variants, seeds: every one of each is combined with every one of the others.
        reference: the variant that differences are taken from, and whose initial weights all variants take over
            wherever names and shapes agree.
        overrides: of every config, by dotted key; those of data sets and variants win over them.
        weights: a checkpoint that every run starts from, perhaps with ``${VARIABLES}``; "" for none; None for the
            ``MODEL.WEIGHTS`` of the configs.
        budget: of a run.
        only: names of the variants to run; None for all.
        only_data_sets: names of the data sets to run them on; None for all.
    """

    name: str
    data_sets: tuple[DataSet, ...]
    variants: tuple[Variant, ...]
    seeds: tuple[int, ...]
    reference: str
    overrides: Overrides = field(default_factory=dict)
    weights: str | None = None
    budget: Budget = Budget()
    only: tuple[str, ...] | None = None
    only_data_sets: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        _check(self)

    def variant(self, name: str) -> Variant:
        """The variant of that name."""
        return next(variant for variant in self.variants if variant.name == name)

    def runs(self) -> Iterator[Run]:
        """Every run in the order of priority: the first variant on all data sets with all seeds, then the next."""
        for variant in self.variants:
            if self.only is not None and variant.name not in self.only:
                continue
            for data_set in self.data_sets:
                if self.only_data_sets is not None and data_set.name not in self.only_data_sets:
                    continue
                for seed in self.seeds:
                    yield Run(data_set, variant, seed)

    def budget_of(self, run: Run) -> Budget:
        return run.data_set.budget or self.budget

    def overrides_of(self, data_set: DataSet, variant: Variant) -> dict[str, Any]:
        """Those of the plan, then the data set's, then the variant's, as they are written in the plan."""
        return {**self.overrides, **data_set.overrides, **variant.overrides}

    def weights_of(self, data_set: DataSet, variant: Variant) -> str | None:
        """The checkpoint to start from, as the plan writes it: the variant's, else the data set's, else its own."""
        given = (variant.weights, data_set.weights, self.weights)
        return next((weights for weights in given if weights is not None), None)

    def with_places(self, folders: Mapping[str, str], weights: str | None) -> "Plan":
        """
        The plan with folders of data sets, by name, and the checkpoint that a command line gives.

        Raises:
            ValueError: a data set that the plan does not have.
        """
        unknown = sorted(set(folders) - {data_set.name for data_set in self.data_sets})
        if unknown:
            names = ", ".join(data_set.name for data_set in self.data_sets)
            raise ValueError(f"The plan '{self.name}' expects folders of its data sets ({names}). Got {unknown}.")
        data_sets = tuple(replace(d, folder=folders.get(d.name, d.folder)) for d in self.data_sets)
        return replace(self, data_sets=data_sets, weights=self.weights if weights is None else weights)

    def restricted(
        self,
        variants: Sequence[str] | None = None,
        seeds: Sequence[int] | None = None,
        budget: Budget | None = None,
        reference: str | None = None,
        overrides: Overrides | None = None,
        data_sets: Sequence[str] | None = None,
    ) -> "Plan":
        """
        A part of the plan, or with something else for every run; None leaves things as they are.

        Args:
            variants: names; the reference, and those that they take their keep ratio from, are run as well.
            data_sets: names.
            seeds, budget, reference: as in the plan.
            overrides: of every config; they win over all others.

        Raises:
            ValueError: a variant or a data set that the plan does not have.
        """
        own_sets = self.data_sets if budget is None else tuple(replace(d, budget=None) for d in self.data_sets)
        if data_sets is not None:
            _expect_some(self.name, "data sets", data_sets, [data_set.name for data_set in self.data_sets])
        reference = reference or self.reference
        only = self.only
        if variants is not None:
            names = [variant.name for variant in self.variants]
            _expect_some(self.name, "variants", variants, names)
            wanted = {reference, *variants}
            # Each takes its keep ratio from one before it.
            for variant in reversed(self.variants):
                if variant.name in wanted and variant.keep_ratio_of is not None:
                    wanted.add(variant.keep_ratio_of)
            only = tuple(name for name in names if name in wanted)
        return replace(
            self,
            data_sets=own_sets,
            variants=tuple(replace(v, overrides={**v.overrides, **(overrides or {})}) for v in self.variants),
            seeds=self.seeds if seeds is None else tuple(seeds),
            reference=reference,
            budget=self.budget if budget is None else budget,
            only=only,
            only_data_sets=self.only_data_sets if data_sets is None else tuple(data_sets),
        )


def _expect_some(plan: str, what: str, given: Sequence[str], names: Sequence[str]) -> None:
    unknown = sorted(set(given) - set(names))
    if unknown:
        raise ValueError(f"The plan '{plan}' expects some of its {what} {list(names)}. Got {unknown}.")


def _check(plan: Plan) -> None:
    for what, names in (
        ("name", [plan.name]),
        ("data_sets", [data_set.name for data_set in plan.data_sets]),
        ("variants", [variant.name for variant in plan.variants]),
    ):
        odd = [name for name in names if not (isinstance(name, str) and _NAME.match(name))]
        if odd or not names or len(set(names)) < len(names):
            raise ValueError(
                f"Plan({what}=) expects distinct names of letters, digits and any of '_.+-', no '__'. Got {names}."
            )
    seeds = plan.seeds
    if not seeds or len(set(seeds)) < len(seeds) or not all(isinstance(s, int) and s >= 0 for s in seeds):
        raise ValueError(f"Plan(seeds=) expects distinct whole numbers of at least 0. Got {list(seeds)}.")
    names = [variant.name for variant in plan.variants]
    if plan.reference not in names:
        raise ValueError(f"Plan(reference=) expects one of the variants {names}. Got {plan.reference!r}.")
    for i, variant in enumerate(plan.variants):
        # A later one would have to be waited for, out of the plan's order.
        if variant.keep_ratio_of is not None and variant.keep_ratio_of not in names[:i]:
            raise ValueError(
                f"Variant {variant.name!r} expects in keep_ratio_of one of the variants before it, {names[:i]}. "
                f"Got {variant.keep_ratio_of!r}."
            )
