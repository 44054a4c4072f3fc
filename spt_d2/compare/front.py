"""The Pareto front of a comparison: who has the accuracy that its cost can buy."""

from collections.abc import Sequence

from spt_d2.compare.report import Row


def pareto_front(rows: Sequence[Row]) -> set[tuple[str, str]]:
    """
    Variants that no other one beats: with at least their box AP at no more executed multiply-adds, and one of the two
    strictly better.

    Both are taken against the reference, paired by seed, for variants may have other seeds. A variant that selects by
    the ground truth beats none of those that have to find it, and is on no front; nor, of the pooled rows, is one that
    lacks data sets.

    Args:
        rows: of :func:`spt_d2.compare.report.report_rows`.

    Returns:
        ``(data set, variant)`` of the rows on the front of their data set, or of the pooled ones.
    """
    found = set()
    for data_set in {row.data_set for row in rows}:
        own = [row for row in rows if row.data_set == data_set]
        sets = max(row.sets for row in own)
        points = {row.variant: point for row in own if row.sets == sets and (point := _point(row)) is not None}
        for variant, (cost, difference) in points.items():
            others = [other for name, other in points.items() if name != variant]
            if not any(_beats(other, (cost, difference)) for other in others):
                found.add((data_set, variant))
    return found


def _point(row: Row) -> tuple[float, float] | None:
    """Multiply-adds over those of the reference, and the difference in AP from it; None where one is not known."""
    if row.cost is None or _is_oracle(row):
        return None
    if row.box is None:
        # The reference itself, if it has an accuracy.
        return (row.cost, 0.0) if "box_AP" in row.figures else None
    return row.cost, row.box.mean


def _is_oracle(row: Row) -> bool:
    """Whether it keeps every object token and no other, which no gate does over a whole data set."""
    return all(name in row.figures and row.figures[name].mean == 1.0 for name in ("retention", "density"))


def _beats(one: tuple[float, float], other: tuple[float, float]) -> bool:
    return one != other and one[0] <= other[0] and one[1] >= other[1]
