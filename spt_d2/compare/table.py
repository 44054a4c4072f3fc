"""A comparison as a table in markdown."""

from collections.abc import Callable, Sequence

from spt_d2.compare.front import pareto_front
from spt_d2.compare.report import POOLED, Row
from spt_d2.compare.results import Result
from spt_d2.compare.statistics import Estimate, PairedDifference

_HEADINGS = (
    "data", "variant", "seeds", "box AP", "paired difference", "p", "verdict", "front", "AP50", "AP75",
    "APs / APm / APl", "mask AP", "paired difference", "mask AP50", "mask APs / APm / APl", "keep ratio", "retention",
    "density", "executed GMACs", "useful", "dense", "times the reference", "parameters, M: backbone / model",
    "s per iteration", "training, min", "forward, ms", "memory, MB",
)  # fmt: skip


def comparison_table(rows: Sequence[Row]) -> str:
    """
    One line per data set and variant, and the pooled ones.

    Columns of which no row knows anything are left out, such as those of masks where there are none.

    Args:
        rows: of :func:`spt_d2.compare.report.report_rows`.
    """
    front = pareto_front(rows)
    cells = [_cells(row, (row.data_set, row.variant) in front) for row in rows]
    shown = [i for i in range(len(_HEADINGS)) if any(line[i] for line in cells)]
    lines = [_line([_HEADINGS[i] for i in shown]), _line(["---" if i < 2 else "---:" for i in shown])]
    lines += [_line([line[i] or "-" for i in shown]) for line in cells]
    return "\n".join(lines)


def brief_table(rows: Sequence[Row]) -> str:
    """
    One line per variant and a column per data set: the paired difference in box AP, the seeds behind it, and executed
    multiply-adds over the reference's; of the reference its box AP. Empty where nothing was run.

    Args:
        rows: of :func:`spt_d2.compare.report.report_rows`.
    """
    data_sets = list(dict.fromkeys(row.data_set for row in rows if row.data_set != POOLED))
    cells = {(row.variant, row.data_set): _brief(row) for row in rows}
    lines = [_line(["", *data_sets]), _line(["---"] * (len(data_sets) + 1))]
    for variant in dict.fromkeys(row.variant for row in rows):
        lines.append(_line([variant, *(cells.get((variant, data_set), "") for data_set in data_sets)]))
    return "\n".join(lines)


def _brief(row: Row) -> str:
    seeds = f"{len(row.seeds)} seed{'s' * (len(row.seeds) != 1)}"
    if row.box is None:
        found = row.figures.get("box_AP")
        return "" if found is None else f"{_estimate(found, 1, 1.0, True)} AP; {seeds}"
    cost = "" if row.cost is None else f"; {row.cost:.2f} x MACs"
    return f"{_difference(row.box)}{cost}; {seeds}"


def provenance(results: Sequence[Result]) -> str:
    """One paragraph that says where the numbers come from: commits, machines, dates, iterations, checkpoints."""
    commits = _distinct(results, lambda r: (r["commit"] or "unknown commit")[:7] + _dirty(r["commit"]))
    machines = _distinct(results, lambda r: _machine(r["machine"]))
    iterations = _distinct(results, lambda r: f"{r['iterations']} on {r['data_set']}")
    weights = _starts(results)
    dates = sorted(r["date"][:10] for r in results)
    days = dates[0] if dates[0] == dates[-1] else f"{dates[0]} to {dates[-1]}"
    return (
        f"{len(results)} runs, {days}; commit {commits}; {machines}; iterations: {iterations}; "
        f"started from (SHA-256 of the checkpoint): {weights}."
    )


def _cells(row: Row, on_front: bool) -> list[str]:
    def one(name: str, digits: int, unit: float = 1.0, error: bool = False) -> str:
        found = row.figures.get(name)
        return "" if found is None else _estimate(found, digits, unit, error)

    def several(names: Sequence[str], digits: int, unit: float = 1.0) -> str:
        parts = [one(name, digits, unit) for name in names]
        return " / ".join(part or "-" for part in parts) if any(parts) else ""

    sizes = ("APs", "APm", "APl")
    return [
        # A variant that lacks a set is no match for the others, but for its paired differences.
        f"pooled, {row.sets} set{'s' * (row.sets != 1)}" if row.data_set == POOLED else row.data_set,
        row.variant,
        str(len(row.seeds)),
        one("box_AP", 1, error=True),
        _difference(row.box) + _pairs(row, row.box),
        _p_value(row.box),
        row.verdict,
        "yes" if on_front else "",
        one("box_AP50", 1),
        one("box_AP75", 1),
        several([f"box_{size}" for size in sizes], 1),
        one("segm_AP", 1, error=True),
        _difference(row.segm) + _pairs(row, row.segm),
        one("segm_AP50", 1),
        several([f"segm_{size}" for size in sizes], 1),
        one("keep_ratio", 2, error=True),
        one("retention", 2, error=True),
        one("density", 2, error=True),
        *(one(f"{name}_macs_g", 3, error=True) for name in ("executed", "useful", "dense")),
        "" if row.cost is None else f"{row.cost:.2f}",
        several(["backbone_parameters", "model_parameters"], 2, 1e-6),
        one("seconds_per_iteration", 2, error=True),
        one("train_seconds", 1, 1 / 60),
        one("forward_ms", 0, error=True),
        one("peak_memory_mb", 0, error=True),
    ]


def _estimate(found: Estimate, digits: int, unit: float, error: bool) -> str:
    text = f"{found.mean * unit:.{digits}f}"
    # What does not differ from seed to seed, such as a dense model's cost, says so by having no error.
    return text if not error or not found.error else f"{text} ± {found.error * unit:.{digits}f}"


def _difference(found: PairedDifference | None) -> str:
    if found is None:
        return ""
    return f"{found.mean:+.2f}" if found.error is None else f"{found.mean:+.2f} ± {found.error:.2f}"


def _pairs(row: Row, found: PairedDifference | None) -> str:
    """How many pairs a pooled difference is of: where seeds lack data sets, more than seeds times sets would say."""
    if row.data_set != POOLED or found is None:
        return ""
    return f" ({found.number} pair{'s' * (found.number != 1)})"


def _p_value(found: PairedDifference | None) -> str:
    if found is None or found.p is None:
        return ""
    return "< 0.001" if found.p < 0.001 else f"{found.p:.3f}"


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _distinct(results: Sequence[Result], say: Callable[[Result], str]) -> str:
    return ", ".join(dict.fromkeys(say(result) for result in results))


def _starts(results: Sequence[Result]) -> str:
    """The checkpoints, with their data sets where these have others."""
    by_set: dict[str, set[str]] = {}
    for result in results:
        by_set.setdefault(result["data_set"], set()).add(_start(result["weights"]))
    if all(starts == set.union(*by_set.values()) for starts in by_set.values()):
        return _distinct(results, lambda r: _start(r["weights"]))
    return _distinct(results, lambda r: f"{_start(r['weights'])} on {r['data_set']}")


def _start(weights: str | None) -> str:
    if weights is None:
        # Of a results file of an earlier version.
        return "what the configs name, not recorded"
    return weights[:12] or "from scratch"


def _dirty(commit: str | None) -> str:
    return " with changes" if commit and commit.endswith("-dirty") else ""


def _machine(machine: dict) -> str:
    device = "" if machine["device"] == "cpu" else f"{machine['device']}, "
    runs = "1 run" if machine["concurrent_runs"] == 1 else f"{machine['concurrent_runs']} runs"
    return (
        f"{device}{machine['processor']}, {machine['threads']} of {machine['cores']} cores a run, "
        f"{runs} at a time, torch {machine['torch']}"
    )
