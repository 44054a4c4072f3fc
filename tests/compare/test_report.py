"""Tables and figures from results files alone."""

import json
import math
from pathlib import Path

import numpy as np
import pytest

from spt_d2.compare.document import insert_between, insert_report, markers, report_text
from spt_d2.compare.figure import draw_comparison
from spt_d2.compare.report import POOLED, report_rows, verdict
from spt_d2.compare.results import read_result, read_results, result_path
from spt_d2.compare.statistics import PairedDifference
from spt_d2.compare.table import comparison_table, provenance

from .synthetic import result, write

ROOT = Path(__file__).resolve().parents[2]

# Differences of SPT on shapes: 1, 2, 3; on plates: 0, 0, 0. Seeds themselves are far apart.
DENSE = {"shapes": (30.0, 40.0, 50.0), "plates": (10.0, 20.0, 60.0)}
SPT = {"shapes": (31.0, 42.0, 53.0), "plates": (10.0, 20.0, 60.0)}


def three_seeds():
    return [
        result(data_set, variant, seed, box=table[data_set][seed])
        for data_set in DENSE
        for variant, table in (("dense", DENSE), ("spt", SPT))
        for seed in range(3)
    ]


def row_of(rows, data_set, variant):
    (found,) = [row for row in rows if (row.data_set, row.variant) == (data_set, variant)]
    return found


def test_means_are_over_seeds_and_differences_are_paired_by_seed():
    row = row_of(report_rows(three_seeds()), "shapes", "spt")
    assert row.figures["box_AP"].mean == 42.0
    assert row.figures["box_AP"].error == pytest.approx(math.sqrt(121 / 3))
    # Paired, the spread of the seeds is gone: see the worked example of the t-test.
    assert (row.box.mean, row.box.number) == (2.0, 3)
    assert row.box.error == pytest.approx(1 / math.sqrt(3))
    assert row.box.p == pytest.approx(1 - math.sqrt(6 / 7))
    assert row.cost == 0.75


def test_pooled_differences_are_over_all_pairs_of_data_set_and_seed():
    """1, 2, 3, 0, 0, 0: mean 1, squares 0 + 1 + 4 + 3 = 8, variance 8 / 5, error sqrt(8 / 30)."""
    rows = report_rows(three_seeds())
    row = row_of(rows, POOLED, "spt")
    assert (row.box.mean, row.box.number) == (1.0, 6)
    assert row.box.error == pytest.approx(math.sqrt(8 / 30))
    # The accuracy's own error is over seeds: means of the two sets 20.5, 31, 56.5.
    assert row.figures["box_AP"].mean == pytest.approx(36.0)
    assert row.figures["box_AP"].error == pytest.approx(math.sqrt((15.5**2 + 5**2 + 20.5**2) / 2 / 3))
    assert row_of(rows, POOLED, "dense").box is None


def test_pooled_figures_are_of_the_seeds_that_have_all_sets_and_cost_is_a_mean_over_sets():
    """Where two seeds of plates are missing, differences are over four pairs, and AP and cost lean to neither set."""
    results = [r for r in three_seeds() if r["data_set"] == "shapes" or r["seed"] == 0]
    for one in results:
        if (one["data_set"], one["variant"]) == ("plates", "spt"):
            one["macs_g"] = {**one["macs_g"], "executed": 2.0 * one["macs_g"]["executed"]}
    row, shapes, plates = (row_of(report_rows(results), name, "spt") for name in (POOLED, "shapes", "plates"))
    assert row.seeds == (0,) and row.box.number == 4 and row.figures["box_AP"].number == 1
    assert row.cost == pytest.approx((shapes.cost + plates.cost) / 2) and shapes.cost != plates.cost
    (line,) = [line for line in comparison_table(report_rows(results)).splitlines() if "| pooled, 2 sets | spt" in line]
    assert "(4 pairs)" in line and cells(line)[2] == "1"


def test_a_run_whose_partner_is_missing_counts_for_the_mean_and_not_for_the_difference():
    results = [r for r in three_seeds() if (r["data_set"], r["variant"], r["seed"]) != ("shapes", "dense", 1)]
    row = row_of(report_rows(results), "shapes", "spt")
    assert row.seeds == (0, 1, 2)
    assert (row.box.mean, row.box.number) == (2.0, 2)
    assert row.figures["box_AP"].number == 3


def test_a_single_data_set_is_not_pooled():
    rows = report_rows([r for r in three_seeds() if r["data_set"] == "shapes"])
    assert [(row.data_set, row.variant) for row in rows] == [("shapes", "dense"), ("shapes", "spt")]


def test_another_reference_turns_the_differences_round():
    row = row_of(report_rows(three_seeds(), reference="spt"), "shapes", "dense")
    assert row.box.mean == -2.0
    assert row.cost == pytest.approx(4 / 3)
    with pytest.raises(ValueError, match="reference among the variants"):
        report_rows(three_seeds(), reference="dat")


@pytest.mark.parametrize(
    "mean, error, p, expected",
    [
        (5.0, 0.51, 0.001, "cannot tell"),
        (-5.0, None, None, "cannot tell"),
        (1.8, 0.3, 0.049, "better"),
        (-1.8, 0.3, 0.049, "worse"),
        (0.6, 0.46, 0.32, "within 0.5 or better"),
        (-0.6, 0.46, 0.32, "cannot tell"),
        (-1.8, 0.5, 0.05, "cannot tell"),
        (0.5, 0.5, 0.4, "within 0.5"),
        (-0.5, 0.0, 0.0, "within 0.5"),
    ],
)
def test_the_verdict_follows_the_standard_error_and_then_the_test(mean, error, p, expected):
    assert verdict(PairedDifference(mean, error, 3, p)) == expected
    assert verdict(None) == ""


def cells(line):
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_the_table_says_what_the_results_say():
    lines = comparison_table(report_rows(three_seeds())).splitlines()
    header, dense, spt = cells(lines[0]), cells(lines[2]), cells(lines[3])
    assert len({len(cells(line)) for line in lines}) == 1
    found = dict(zip(header, spt))
    assert found["box AP"] == "42.0 ± 6.4"
    assert found["paired difference"] == "+2.00 ± 0.58"
    assert found["p"] == "0.074"
    assert found["verdict"] == "cannot tell"
    assert found["APs / APm / APl"] == "32.0 / 42.0 / -"
    # The same in every seed.
    assert (found["keep ratio"], found["executed GMACs"], found["times the reference"]) == ("0.25", "1.500", "0.75")
    assert found["parameters, M: backbone / model"] == "3.10 / 4.30"
    assert dict(zip(header, dense))["paired difference"] == "-"
    # Nothing is known of masks in any row.
    assert not [heading for heading in header if "mask" in heading]
    assert [cells(line)[0] for line in lines[2:]] == ["shapes"] * 2 + ["plates"] * 2 + ["pooled, 2 sets"] * 2


def test_one_set_is_pooled_as_one_set():
    results = [result(), result("plates"), result("plates", "spt")]
    lines = comparison_table(report_rows(results)).splitlines()
    assert [cells(line)[0] for line in lines[2:]][-2:] == ["pooled, 2 sets", "pooled, 1 set"]


def test_columns_of_masks_are_there_where_one_row_has_them():
    results = [result(segm=30.0), result(variant="spt", segm=31.0), result("plates")]
    header, _, *lines = comparison_table(report_rows(results)).splitlines()
    values = [cells(line)[cells(header).index("mask AP")] for line in lines]
    assert values[:3] == ["30.0", "31.0", "-"]


def test_provenance_names_commits_machines_and_checkpoints():
    results = [result(), result(variant="spt", commit="fedcba9876-dirty", weights="ab" * 32)]
    text = provenance(results)
    for words in (
        "2 runs",
        "2026-01-02",
        "0123456, fedcba9 with changes",
        "A Processor",
        "100 on shapes",
        "abababababab",
    ):
        assert words in text


def test_provenance_counts_one_run_as_one():
    alone = result()
    alone["machine"]["concurrent_runs"] = 1
    assert ", 1 run at a time, " in provenance([alone])
    alone["machine"]["concurrent_runs"] = 2
    assert ", 2 runs at a time, " in provenance([alone])


@pytest.mark.parametrize(
    "weights, words", [("", "from scratch"), (None, "what the configs name, not recorded"), ("ab" * 32, "ab" * 6)]
)
def test_provenance_says_from_scratch_only_where_that_is_known(weights, words):
    assert provenance([result(weights=weights)]).endswith(f"started from (SHA-256 of the checkpoint): {words}.")


def test_provenance_says_what_each_data_set_started_from_where_they_differ():
    first, second = result("shapes", weights="ab" * 32), result("plates", weights="cd" * 32)
    assert provenance([first, second]).endswith(f": {'ab' * 6} on shapes, {'cd' * 6} on plates.")
    assert provenance([first, {**second, "weights": "ab" * 32}]).endswith(f": {'ab' * 6}.")
    # Seeds may differ, and all sets have the same ones.
    seeds = [
        result(name, seed=seed, weights=w * 32) for name in ("shapes", "plates") for seed, w in enumerate(("ab", "cd"))
    ]
    assert provenance(seeds).endswith(f": {'ab' * 6}, {'cd' * 6}.")


def test_the_figure_has_a_panel_for_each_data_set_and_one_pooled():
    one = draw_comparison(report_rows([r for r in three_seeds() if r["data_set"] == "shapes"]), "dense")
    both = draw_comparison(report_rows(three_seeds()), "dense")
    assert one.dtype == both.dtype == np.uint8
    assert both.shape[1] - one.shape[1] == pytest.approx(2 * 4.2 * 110, abs=2)
    # Its markers move with the numbers.
    other = draw_comparison(report_rows([{**r, "box": {**r["box"], "AP": 1.0}} for r in three_seeds()]), "dense")
    assert (other != both).any()


def test_results_come_back_in_the_order_of_the_plan(tmp_path):
    folder = write(tmp_path, three_seeds()[::-1])
    found = [(r["data_set"], r["variant"], r["seed"]) for r in read_results(folder)]
    assert found == [(d, v, s) for d in ("shapes", "plates") for v in ("dense", "spt") for s in range(3)]


def test_what_are_no_results_of_one_plan_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="Found none"):
        read_results(tmp_path)
    write(tmp_path, [result(), result(variant="spt", plan="another")])
    with pytest.raises(ValueError, match="one plan"):
        read_results(tmp_path)
    path = result_path(tmp_path, "shapes", "dense", 0)
    path.write_text(json.dumps({"plan": "made_up"}))
    with pytest.raises(ValueError, match="Missing: reference"):
        read_result(path)
    assert read_result(tmp_path / "nothing.json") is None


@pytest.mark.parametrize("key", result())
def test_a_results_file_without_any_key_that_a_worker_writes_is_refused(key, tmp_path):
    write(tmp_path, [result()])
    path = result_path(tmp_path, "shapes", "dense", 0)
    read_result(path)
    path.write_text(json.dumps({name: value for name, value in result().items() if name != key}))
    with pytest.raises(ValueError, match=f"Missing: {key}"):
        read_result(path)


@pytest.mark.parametrize(
    "other, message",
    [
        ({"variant": "dat", "reference": "dat"}, "one reference. Got: made_up, .*reference dense; .*reference dat"),
        ({"variant": "spt", "seed": 1, "config": "b/spt.yaml"}, "one config of .*'spt'. Got: spt.yaml; b/spt.yaml"),
    ],
    ids=["another reference", "another config"],
)
def test_results_of_two_comparisons_of_one_name_are_refused(other, message, tmp_path):
    """As two commands without a plan leave them in one folder."""
    write(tmp_path, [result(), result(variant="spt")])
    assert len(read_results(tmp_path)) == 2
    write(tmp_path, [result(**other)])
    with pytest.raises(ValueError, match=message) as caught:
        read_results(tmp_path)
    assert "HINT: give every comparison a folder of its own (--results DIR, or --name NAME" in str(caught.value)


def test_a_report_on_a_page_leads_to_its_figure(tmp_path):
    (tmp_path / "docs").mkdir()
    page = tmp_path / "docs" / "page.md"
    page.write_text("\n".join(markers("made_up")))
    insert_report(page, three_seeds(), "dense", tmp_path / "results" / "figure.png")
    text = page.read_text()
    assert "](../results/figure.png)" in text
    assert "| +2.00 ± 0.58 | 0.074 |" in text


def test_a_brief_report_has_a_line_for_a_variant_and_a_column_for_a_data_set():
    runs = [run for run in three_seeds() if (run["data_set"], run["variant"]) != ("plates", "spt")]
    runs.append(result(data_set="plates", variant="third", box=DENSE["plates"][0] - 1.0))
    lines = report_text(runs, "dense", "f.png", brief=True).splitlines()
    assert lines[:2] == ["|  | shapes | plates |", "| --- | --- | --- |"]
    assert lines[2] == "| dense | 40.0 ± 5.8 AP; 3 seeds | 30.0 ± 15.3 AP; 3 seeds |"
    assert lines[3] == "| spt | +2.00 ± 0.58; 0.75 x MACs; 3 seeds |  |"
    assert lines[4] == "| third |  | -1.00; 0.75 x MACs; 1 seed |"
    assert lines[5:] == ["", "![Box AP against executed multiply-adds](f.png)"]


@pytest.mark.parametrize(
    "name, page, brief",
    [
        ("screen", "docs/experiments.md", False),
        ("start", "docs/experiments.md", False),
        ("from_shapes", "docs/experiments.md", False),
        ("main", "docs/experiments.md", False),
        ("peers_start", "docs/experiments.md", False),
        ("peers", "docs/experiments.md", False),
        ("peers", "README.md", True),
    ],
)
def test_pages_say_what_the_results_files_in_the_repository_say(name, page, brief):
    text = (ROOT / page).read_text()
    begin, end = markers(name)
    written = text.partition(begin)[2].partition(end)[0].strip()
    folder = ROOT / "projects" / "SPT" / "results" / name
    if not folder.is_dir():
        assert written == ""
        return
    results = read_results(folder)
    figure = f"{'' if brief else '../'}projects/SPT/results/{name}/figure.png"
    expected = report_text(results, results[0]["reference"], figure, brief)
    assert written == expected, f"make it anew: tools/compare.py --report FOLDER --document {page}"
    assert (folder / "figure.png").is_file()


def test_a_table_is_put_between_its_markers_and_nowhere_else(tmp_path):
    begin, end = markers("screen")
    page = tmp_path / "page.md"
    page.write_text(f"before\n{begin}\nold\n{end}\nafter {markers('main')[0]}\n")
    for text in ("| a |", "| b \\1 |"):
        insert_between(page, "screen", text)
        assert page.read_text() == f"before\n{begin}\n\n{text}\n\n{end}\nafter {markers('main')[0]}\n"
    for name in ("main", "pretrain"):
        with pytest.raises(ValueError, match="once each"):
            insert_between(page, name, "| c |")
