"""The program times what it is asked for, writes a results file, and puts it into the page."""

import json
import re
from pathlib import Path

import pytest
import torch

pytest.importorskip("detectron2", reason="detectron2 is not installed")

from spt_d2.benchmark.commands import COMMANDS
from spt_d2.benchmark.page import insert_records, record_text
from spt_d2.benchmark.record import read_record, write_record
from spt_d2.compare.document import markers
from tests.benchmark.nano import NANO_OPTS
from tests.conftest import ROOT, as_a_program, load_program

KEYS = {
    "name", "keep_ratio", "device", "dtype", "mode", "batch", "image_size", "median_ms", "spread_ms", "peak_mb",
    "ratio_to_fastest_peer", "ratio_quartiles",
}  # fmt: skip
PAGE = ROOT / "docs" / "performance.md"
PROGRAM = "tools/benchmark.py"


@pytest.fixture(scope="module")
def program():
    return load_program(ROOT / "tools" / "benchmark.py")


@pytest.fixture(scope="module")
def backbone_file(program, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("results") / "new" / "backbone.json"
    arguments = "backbone --quick --image-sizes 64 64x96 --names swin_t spt_t --peers detectron2_swin_t".split()
    with as_a_program():
        program.main([*arguments, "--rounds", "2", "--threads", "1", "--json", str(path), "--opts", *NANO_OPTS])
    return path


def test_a_results_file_has_machine_commit_and_rows(backbone_file):
    data = json.loads(backbone_file.read_text())
    assert set(data) == {"benchmark", "command", "rounds", "machine", "commit", "missing", "notes", "rows"}
    assert data["machine"]["threads"] == 1 and data["machine"]["device"] == "cpu" and data["rounds"] == 2
    assert data["command"].startswith("backbone --quick --image-sizes 64 64x96")
    assert "--opts MODEL.SPT.EMBED_DIM 8 MODEL.SPT.DEPTHS '[1, 1, 2, 2]'" in data["command"]
    assert len(data["rows"]) == 6 and all(set(row) == KEYS for row in data["rows"])
    assert [row["image_size"] for row in data["rows"]] == [[64, 64]] * 3 + [[64, 96]] * 3
    assert data["rows"][2]["name"] == "spt_t" and data["rows"][2]["keep_ratio"] == 0.23
    assert data["rows"][0]["ratio_to_fastest_peer"] == 1.0
    assert sum("time grows with pixels" in note for note in data["notes"]) == 3
    assert not list(backbone_file.parent.glob("*.unfinished"))


def test_a_results_file_comes_back_as_it_was_written(backbone_file, tmp_path):
    record = read_record(backbone_file)
    write_record(record, tmp_path / "again.json")
    assert (tmp_path / "again.json").read_text() == backbone_file.read_text()
    (tmp_path / "other.json").write_text('{"rows": [{"name": "x"}]}')
    with pytest.raises(ValueError, match=r"results file of tools/benchmark.py. Got .*other.json"):
        read_record(tmp_path / "other.json")


def test_reports_stand_between_the_markers_of_their_benchmark(program, backbone_file, tmp_path, capsys):
    page = tmp_path / "performance.md"
    page.write_text(PAGE.read_text())
    program.main(["report", str(backbone_file), str(backbone_file), "--document", str(page)])
    text = page.read_text()
    begin, end = markers("backbone", PROGRAM)
    between = text.partition(begin)[2].partition(end)[0]
    record = read_record(backbone_file)
    assert between.strip() == "\n\n".join([record_text(record)] * 2)
    row = record.rows[2]
    assert f"| spt_t | 0.23 | inference | float32 | 1 | 64x64 | {row.median_ms:.3f}"[:45] in between
    assert f"`tools/benchmark.py {record.command}`: 2 rounds; " in between and record.machine["processor"] in between
    # Other places are left alone, and doing it again changes nothing.
    before, after = PAGE.read_text().partition(begin)[0], PAGE.read_text().partition(end)[2]
    assert text == f"{before}{begin}{between}{end}{after}"
    insert_records(page, [record, record])
    assert page.read_text() == text
    assert "spt_t" in capsys.readouterr().out


def test_the_page_has_a_place_for_every_benchmark_and_says_what_the_results_files_say():
    text = PAGE.read_text()
    records = [read_record(path) for path in sorted((ROOT / "results" / "benchmark").glob("*.json"))]
    for benchmark in COMMANDS:
        begin, end = markers(benchmark, PROGRAM)
        assert text.count(begin) == text.count(end) == 1
        between = text.partition(begin)[2].partition(end)[0].strip()
        made = "\n\n".join(record_text(record) for record in records if record.benchmark == benchmark)
        assert between == (made or "No run has been recorded yet.")


def test_every_command_runs(program, monkeypatch):
    """Through the command line; what they time is other tests' matter."""
    seen = {}
    monkeypatch.setattr(
        program,
        "COMMANDS",
        {name: lambda given, name=name: seen.update({name: given}) or ([], []) for name in COMMANDS},
    )
    for name in COMMANDS:
        program.main([name, "--keep-ratios", "0.5", "3=0.2,4=0.4", "--batch-sizes", "1", "2", "--no-memory"])
    assert list(seen) == list(COMMANDS) == ["backbone", "attention", "packing", "train", "data", "model"]
    settings = seen["train"]
    assert settings.keep_ratios == (0.5, {3: 0.2, 4: 0.4}) and settings.batches == (1, 2) and not settings.memory
    assert settings.image_sizes == ((800, 1280),) and settings.rounds == 10
    assert len(settings.names) == 6 and settings.peers


def test_training_and_packing_run_by_their_names(program):
    with as_a_program():
        (train,) = program.main(
            [*"train --quick --image-sizes 64 --names spt_t --peers none --no-memory --opts".split(), *NANO_OPTS]
        )
        (packing,) = program.main([*"packing --quick --image-sizes 64 --no-memory --opts".split(), *NANO_OPTS])
    assert [(row.name, row.mode, row.ratio_to_fastest_peer) for row in train.rows] == [("spt_t", "training", None)]
    assert [(row.name, row.keep_ratio, row.batch) for row in packing.rows] == [
        (name, [0.05, 0.1, 0.3, 0.9], 4) for name in ("padded", "packed")
    ]


def test_threads_are_put_back_and_a_missing_peer_is_said(program, monkeypatch, capsys):
    monkeypatch.setattr(program, "available_peers", lambda names: ([], {"timm_swin_t": "timm"}))
    threads = []
    monkeypatch.setattr(
        program, "COMMANDS", {"backbone": lambda given: threads.append(torch.get_num_threads()) or ([], [])}
    )
    before = torch.get_num_threads()
    (record,) = program.main(["backbone", "--threads", "2"])
    assert threads == [2] and torch.get_num_threads() == before and record.machine["threads"] == 2
    printed = capsys.readouterr().out
    assert "timm_swin_t is left out: timm is not installed" in printed
    assert "not installed: timm_swin_t" in printed


@pytest.mark.parametrize(
    "arguments, message",
    (
        ("backbone --image-sizes 100", "multiples of 32 pixels"),
        ("backbone --image-sizes wide", "HEIGHTxWIDTH or one number"),
        ("backbone --names swin_x", "--names expects some of swin_t, .* Got swin_x"),
        ("backbone --peers swin", "A peer expects one of detectron2_swin_t"),
        ("backbone --keep-ratios many", "A keep ratio expects one number"),
        ("backbone --keep-ratios 23", "--keep-ratios expects shares from 0 to 1. Got 23"),
        ("backbone --keep-ratios nan", "--keep-ratios expects shares from 0 to 1. Got nan"),
        ("backbone --keep-ratios 3=0.2,4=-1", "--keep-ratios expects shares from 0 to 1. Got 0.2, -1"),
        ("report file.json --json other.json", "report reads such files"),
        ("backbone --rounds 0", "expect at least 1"),
        ("backbone file.json", "report expects results files, and nothing else does"),
        ("report", "report expects results files, and nothing else does"),
        ("backbone --opts KEY", "keys and values in turn"),
        ("data --images 2", "--images expects at least 8"),
    ),
)
def test_a_command_line_that_cannot_be_followed_says_why(program, arguments, message, capsys):
    with pytest.raises(SystemExit):
        program.parse_arguments(arguments.split())
    assert re.search(message, capsys.readouterr().err.replace("\n", " "))
