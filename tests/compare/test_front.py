"""The Pareto front against a loop over all pairs, and what is left out of it."""

import pytest

pytest.importorskip("detectron2", reason="detectron2 is not installed")

from spt_d2.compare import figure
from spt_d2.compare.front import pareto_front
from spt_d2.compare.report import report_rows
from spt_d2.compare.table import comparison_table

from .synthetic import result


def variant(name, box, executed, **changes):
    macs = {"executed": executed, "useful": executed, "dense": 2.0}
    return result(variant=name, box=box, macs_g=macs, **changes)


def on_front(*results):
    return {name for _, name in pareto_front(report_rows(results))}


def test_who_is_beaten_in_one_and_not_better_in_the_other_is_not_on_it():
    dense = variant("dense", 40.0, 2.0)
    assert on_front(dense, variant("spt", 41.0, 1.5)) == {"spt"}
    assert on_front(dense, variant("spt", 39.0, 1.5)) == {"dense", "spt"}
    # The same accuracy for less.
    assert on_front(dense, variant("spt", 40.0, 1.5)) == {"spt"}
    # As accurate and as dear: neither beats the other.
    assert on_front(dense, variant("spt", 40.0, 2.0)) == {"dense", "spt"}
    three = (dense, variant("spt", 39.0, 1.5), variant("third", 38.0, 1.75))
    assert on_front(*three) == {"dense", "spt"}


def test_differences_are_paired_for_variants_have_other_seeds():
    """The third variant was run with the better of two seeds only."""
    runs = [variant("dense", box, 2.0, seed=seed) for seed, box in ((0, 30.0), (1, 50.0))]
    runs += [variant("spt", box, 1.5, seed=seed) for seed, box in ((0, 30.5), (1, 50.5))]
    runs.append(variant("third", 50.0, 1.75, seed=1))
    assert on_front(*runs) == {"spt"}


def test_the_ground_truth_is_no_competitor():
    perfect = {"keep_ratio": 0.1, "retention": 1.0, "density": 1.0, "by_stage": {}}
    dense, spt = variant("dense", 40.0, 2.0), variant("spt", 39.0, 1.5)
    assert on_front(dense, spt, variant("oracle", 45.0, 1.0, selection=perfect)) == {"dense", "spt"}
    everything = {**perfect, "density": 0.1}
    assert on_front(dense, spt, variant("all", 45.0, 1.0, selection=everything)) == {"all"}


def test_each_data_set_has_its_own_and_the_table_says_so():
    runs = [variant("dense", 40.0, 2.0), variant("spt", 41.0, 1.5)]
    runs += [variant("dense", 40.0, 2.0, data_set="plates"), variant("spt", 30.0, 1.5, data_set="plates")]
    rows = report_rows(runs)
    assert pareto_front(rows) == {
        ("shapes", "spt"), ("plates", "dense"), ("plates", "spt"), ("all", "dense"), ("all", "spt"),
    }  # fmt: skip
    # One that lacks a data set is compared on the other alone.
    more = report_rows([*runs, variant("third", 42.0, 1.0)])
    assert pareto_front(more) == {("shapes", "third"), *(each for each in pareto_front(rows) if each[0] != "shapes")}
    header, _, *lines = [[cell.strip() for cell in line.split("|")] for line in comparison_table(rows).splitlines()]
    place = header.index("front")
    assert [line[place] for line in lines] == ["-", "yes", "yes", "yes", "yes", "yes"]


def test_the_figure_rings_each_where_it_is_drawn(monkeypatch):
    """In a panel of a data set at its cost and accuracy, in the pooled one at its ratio and difference."""
    ringed = []
    monkeypatch.setattr(figure, "_ring", lambda axis, x, y: ringed.append((axis.get_subplotspec().num1, x, y)))
    runs = [variant("dense", 40.0, 2.0), variant("spt", 41.0, 1.5)]
    runs += [variant("dense", 40.0, 2.0, data_set="plates"), variant("spt", 30.0, 1.5, data_set="plates")]
    figure.draw_comparison(report_rows(runs), "dense")
    assert sorted(ringed) == [
        (0, 1.5, 41.0), (1, 1.5, 30.0), (1, 2.0, 40.0), (2, 0.75, -4.5), (2, 1.0, 0.0),
    ]  # fmt: skip


def test_variants_of_different_seeds_are_drawn_by_their_differences(monkeypatch):
    """The second seed is of a better start, which is no merit of the variant that has it alone."""
    drawn = {}
    draw = figure._draw
    monkeypatch.setattr(
        figure, "_draw", lambda axis, x, y, *more: (drawn.update({more[1]: (x, y)}), draw(axis, x, y, *more))
    )
    runs = [variant("dense", 40.0, 2.0, seed=0), variant("dense", 50.0, 2.0, seed=1), variant("spt", 41.0, 1.5, seed=0)]
    figure.draw_comparison(report_rows([*runs, variant("third", 49.0, 1.0, seed=1)]), "dense")
    assert drawn == {"dense": (1.0, 0.0), "spt": (0.75, 1.0), "third": (0.5, -1.0)}
    # With a variant that has no pair there is nothing but AP to show of it.
    figure.draw_comparison(report_rows([*runs, variant("third", 49.0, 1.0, seed=2)]), "dense")
    assert drawn["third"] == (1.0, 49.0) and drawn["dense"] == (2.0, 45.0)
