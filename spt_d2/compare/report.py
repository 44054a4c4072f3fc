"""From results files to the rows of a table: means over seeds, and differences paired by data set and seed."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from spt_d2.compare.results import Result
from spt_d2.compare.statistics import Estimate, PairedDifference, estimate, paired_difference

# In AP. A standard error above it tells nothing; a difference up to it counts as none.
MARGIN = 0.5

# Of the paired t-test.
SIGNIFICANT = 0.05
POOLED = "all"


def figure(result: Result, *path: str) -> float | None:
    """A number in a results file, such as ``figure(result, "box", "AP")``; None where it is not known."""
    value: Any = result
    for key in path:
        value = value.get(key) if isinstance(value, Mapping) else None
    return value


_SIZES = ("AP", "AP50", "AP75", "APs", "APm", "APl")
_TIMES = ("seconds_per_iteration", "train_seconds", "forward_ms", "peak_memory_mb")
# What a row knows of its runs, by name: where it is in a results file.
FIGURES: dict[str, tuple[str, ...]] = {
    **{f"{task}_{name}": (task, name) for task in ("box", "segm") for name in _SIZES},
    **{name: ("selection", name) for name in ("keep_ratio", "retention", "density")},
    **{f"{name}_macs_g": ("macs_g", name) for name in ("executed", "useful", "dense")},
    **{f"{name}_parameters": ("parameters", name) for name in ("backbone", "model")},
    **{name: (name,) for name in _TIMES},
}


@dataclass(frozen=True)
class Row:
    """
    A variant on a data set, or pooled over those on which it can be paired with the reference.

    Attributes:
        data_set: ``all`` where pooled.
        variant: its name.
        seeds: of its runs; where pooled, those that have all its data sets.
        sets: number of data sets.
        figures: by the names of :data:`FIGURES`; those are left out that no run knows. Where pooled, means over data
            sets of each seed, then over seeds.
        box, segm: difference in AP from the reference, paired; None for the reference and where nothing can be paired.
        cost: executed multiply-adds over those of the reference; the mean over pairs of a data set, then over data
            sets.
    """

    data_set: str
    variant: str
    seeds: tuple[int, ...]
    sets: int
    figures: dict[str, Estimate]
    box: PairedDifference | None
    segm: PairedDifference | None
    cost: float | None

    @property
    def verdict(self) -> str:
        return verdict(self.box)


def verdict(difference: PairedDifference | None) -> str:
    """
    What paired differences say of a variant.

    Returns:
        ``cannot tell`` where the standard error is above 0.5 AP or not known. Else ``within 0.5``, of a mean of at most
        that; beyond it ``better`` or ``worse``, at p < 0.05. What has no such p is ``within 0.5 or better`` above the
        reference, and ``cannot tell`` below it.
    """
    if difference is None:
        return ""
    if difference.error is None or difference.error > MARGIN:
        return "cannot tell"
    if abs(difference.mean) <= MARGIN:
        return f"within {MARGIN}"
    significant = difference.p is not None and difference.p < SIGNIFICANT
    if difference.mean > 0:
        return "better" if significant else f"within {MARGIN} or better"
    return "worse" if significant else "cannot tell"


def report_rows(results: Sequence[Result], reference: str | None = None) -> list[Row]:
    """
    Rows by data set and variant, in the order of the results; then, with several data sets, pooled ones.

    Args:
        results: of one plan.
        reference: the variant that differences are taken from; the plan's by default.

    Raises:
        ValueError: a reference without results.
    """
    reference = reference or results[0]["reference"]
    variants = list(dict.fromkeys(r["variant"] for r in sorted(results, key=lambda r: r["order"][1])))
    if reference not in variants:
        raise ValueError(
            f"A report expects a reference among the variants with results, {variants}. Got {reference!r}."
        )
    data_sets = list(dict.fromkeys(r["data_set"] for r in sorted(results, key=lambda r: r["order"][0])))
    by_key = {(r["data_set"], r["variant"], r["seed"]): r for r in results}
    rows = []
    for data_set in data_sets:
        for variant in variants:
            own = [r for r in results if (r["data_set"], r["variant"]) == (data_set, variant)]
            if own:
                pairs = _pairs(own, by_key, reference)
                rows.append(_row(data_set, variant, own, {n: _values(own, f) for n, f in FIGURES.items()}, pairs))
    if len(data_sets) > 1:
        for variant in variants:
            pairs = _pairs([r for r in results if r["variant"] == variant], by_key, reference)
            own = [r for r, _ in pairs]
            if own:
                rows.append(_row(POOLED, variant, own, {n: _seed_means(own, f) for n, f in FIGURES.items()}, pairs))
    return rows


def _pairs(
    own: Iterable[Result], by_key: dict[tuple[str, str, int], Result], reference: str
) -> list[tuple[Result, Result]]:
    """Each run with that of the reference on the same data set and seed, where there is one."""
    found = ((r, by_key.get((r["data_set"], reference, r["seed"]))) for r in own)
    return [(result, other) for result, other in found if other is not None]


def _row(
    data_set: str,
    variant: str,
    own: Sequence[Result],
    values: dict[str, list[float]],
    pairs: Sequence[tuple[Result, Result]],
) -> Row:
    is_reference = any(result is other for result, other in pairs)
    data_sets = {result["data_set"] for result in own}
    ratios: dict[str, list[float]] = {}
    for result, other in pairs:
        costs = [each["macs_g"]["executed"] for each in (result, other)]
        if all(costs):
            ratios.setdefault(result["data_set"], []).append(costs[0] / costs[1])
    return Row(
        data_set=data_set,
        variant=variant,
        seeds=tuple(_whole_seeds(own)),
        sets=len(data_sets),
        figures={name: estimate(numbers) for name, numbers in values.items() if numbers},
        box=None if is_reference else _difference(pairs, "box"),
        segm=None if is_reference else _difference(pairs, "segm"),
        cost=estimate([estimate(each).mean for each in ratios.values()]).mean if ratios else None,
    )


def _difference(pairs: Sequence[tuple[Result, Result]], task: str) -> PairedDifference | None:
    differences = []
    for result, other in pairs:
        own, reference = figure(result, task, "AP"), figure(other, task, "AP")
        if own is not None and reference is not None:
            differences.append(own - reference)
    return paired_difference(differences) if differences else None


def _values(results: Iterable[Result], path: Sequence[str]) -> list[float]:
    return [value for result in results if (value := figure(result, *path)) is not None]


def _seed_means(results: Sequence[Result], path: Sequence[str]) -> list[float]:
    """By seed the mean over data sets, of the seeds that have all of them; data sets differ more than seeds do."""
    means = []
    for of_seed in _whole_seeds(results).values():
        values = _values(of_seed, path)
        if len(values) == len(of_seed):
            means.append(sum(values) / len(values))
    return means


def _whole_seeds(results: Sequence[Result]) -> dict[int, list[Result]]:
    """The results of each seed that has all data sets, by seed."""
    data_sets = {result["data_set"] for result in results}
    by_seed = {seed: [r for r in results if r["seed"] == seed] for seed in sorted({r["seed"] for r in results})}
    return {seed: own for seed, own in by_seed.items() if {result["data_set"] for result in own} == data_sets}
