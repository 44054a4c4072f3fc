"""The form of summary.json, what is no JSON in it, writing whole or not at all, and the table."""

import json
import math
import os
from pathlib import Path

import pytest

pytest.importorskip("detectron2", reason="detectron2 is not installed")

from spt_d2.summary import read_summary, summarize, summary_table, write_summary

NAN = float("nan")
SELECTION = {
    "keep_ratio": 0.25,
    "retention": 0.9,
    "density": 0.5,
    "keep_ratio/stage3": 0.2,
    "retention/stage3": 0.8,
    "density/stage3": 0.4,
    "keep_ratio/stage4": 0.3,
    "retention/small": 0.7,
    "image_keep_ratio/mean": 0.26,
    "executed_macs_g": 0.125,
    "useful_macs_g": 0.0625,
    "dense_macs_g": 0.5,
}
RESULTS = {
    "bbox": {"AP": 12.34, "AP50": 25.0, "AP75": 1.0, "APl": NAN, "AP-disc": math.inf},
    "segm": {"AP": 11.0, "AP50": 24.0, "APs": NAN},
    "selection": SELECTION,
}
DENSE = {"bbox": {"AP": 2.0}, "segm": {"AP": 1.0}, "selection": {"executed_macs_g": 0.5, "dense_macs_g": 0.5}}


def test_a_summary_has_exactly_this_form() -> None:
    assert summarize(RESULTS, 90.0, "abc") == {
        "box": {"AP": 12.34, "AP50": 25.0, "AP75": 1.0, "APl": None, "AP-disc": None},
        "segm": {"AP": 11.0, "AP50": 24.0, "APs": None},
        "selection": {
            "keep_ratio": 0.25,
            "retention": 0.9,
            "density": 0.5,
            "by_stage": {
                "stage3": {"keep_ratio": 0.2, "retention": 0.8, "density": 0.4},
                # Nothing is known of a stage that met no object.
                "stage4": {"keep_ratio": 0.3, "retention": None, "density": None},
            },
        },
        "macs_g": {"executed": 0.125, "useful": 0.0625, "dense": 0.5},
        "train_seconds": 90.0,
        "commit": "abc",
    }


@pytest.mark.parametrize("results, macs", [(DENSE, 0.5), ({}, None)])
def test_what_is_not_known_is_none(results: dict, macs: float | None) -> None:
    summary = summarize(results, 0.0, None)
    assert summary["selection"] == {"keep_ratio": None, "retention": None, "density": None, "by_stage": {}}
    assert (summary["macs_g"]["executed"], summary["macs_g"]["dense"]) == (macs, macs)
    assert summary["commit"] is None
    assert summary["box"] == results.get("bbox", {})


def test_results_stay_as_they_are() -> None:
    summarize(RESULTS, 90.0, "abc")["box"]["AP"] = 0.0
    assert RESULTS["bbox"]["AP"] == 12.34 and math.isnan(RESULTS["bbox"]["APl"])


def test_a_summary_reads_as_it_was_written_and_replaces_the_one_before(tmp_path: Path) -> None:
    path = tmp_path / "summary.json"
    for commit in ("abc", "def"):
        summary = summarize(RESULTS, 90.0, commit)
        write_summary(path, summary)
        assert read_summary(path) == summary
        # JSON to the letter, which knows no NaN.
        assert json.loads(path.read_text(), parse_constant=pytest.fail) == summary
    assert [file.name for file in tmp_path.iterdir()] == ["summary.json"]


@pytest.mark.parametrize("value", [NAN, math.inf, object()])
def test_a_summary_that_is_no_json_leaves_the_one_before_untouched(tmp_path: Path, value: object) -> None:
    path = tmp_path / "summary.json"
    write_summary(path, {"commit": "abc"})
    with pytest.raises((ValueError, TypeError)):
        write_summary(path, {"commit": "def", "train_seconds": value})
    assert read_summary(path) == {"commit": "abc"}
    assert [file.name for file in tmp_path.iterdir()] == ["summary.json"]


def test_a_stop_while_writing_leaves_the_summary_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "summary.json"
    write_summary(path, {"commit": "abc"})
    before = path.read_text()
    seen = []

    def stop(source: object, target: object) -> None:
        # At this moment the new one is complete, in the same folder, and the old one in its place.
        seen.append((json.loads(Path(str(source)).read_text()), Path(str(source)).parent, path.read_text()))
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(os, "replace", stop)
        write_summary(path, {"commit": "def"})
    assert seen == [({"commit": "def"}, tmp_path, before)]
    assert path.read_text() == before
    # What it left does no harm to the next.
    write_summary(path, {"commit": "ghi"})
    assert read_summary(path) == {"commit": "ghi"}
    assert [file.name for file in tmp_path.iterdir()] == ["summary.json"]


@pytest.mark.parametrize("text", [None, "", '{"box": {"AP": 1', "[1]", "3"])
def test_a_summary_that_cannot_be_read_is_none(tmp_path: Path, text: str | None) -> None:
    if text is not None:
        (tmp_path / "summary.json").write_text(text)
    assert read_summary(tmp_path / "summary.json") is None


def test_a_table_sets_runs_side_by_side() -> None:
    table = summary_table({"select and pack": summarize(RESULTS, 90.0, "abc"), "dense": summarize(DENSE, 720.0, None)})
    assert table == "\n".join(
        (
            "                                               select and pack   dense",
            "----------------------------------------------------------------------",
            "box AP, %                                                 12.3     2.0",
            "box AP50, %                                               25.0       -",
            "box AP75, %                                                1.0       -",
            "mask AP, %                                                11.0     1.0",
            "mask AP50, %                                              24.0       -",
            "stage 3: tokens kept (keep ratio), %                      20.0       -",
            "stage 3: object tokens kept (retention), %                80.0       -",
            "stage 3: kept tokens on objects (density), %              40.0       -",
            "stage 4: tokens kept (keep ratio), %                      30.0       -",
            "stage 4: object tokens kept (retention), %                   -       -",
            "stage 4: kept tokens on objects (density), %                 -       -",
            "backbone, 10^9 multiply-adds an image                    0.125   0.500",
            "training, minutes                                          1.5    12.0",
        )
    )


def test_a_table_of_a_dense_run_alone_has_no_rows_of_stages() -> None:
    rows = summary_table({"dense": summarize(DENSE, 720.0, None)}).splitlines()
    assert [row.split("  ")[0] for row in rows[2:]] == [
        "box AP, %",
        "box AP50, %",
        "box AP75, %",
        "mask AP, %",
        "mask AP50, %",
        "backbone, 10^9 multiply-adds an image",
        "training, minutes",
    ]


def test_a_table_of_summaries_read_from_files_is_the_same(tmp_path: Path) -> None:
    summary = summarize(RESULTS, 90.0, "abc")
    write_summary(tmp_path / "summary.json", summary)
    assert summary_table({"run": read_summary(tmp_path / "summary.json") or {}}) == summary_table({"run": summary})
