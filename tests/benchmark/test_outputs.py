"""The program sees that what it measures can be written, and writes it before anything else can fail."""

import json

import pytest

pytest.importorskip("detectron2", reason="detectron2 is not installed")

from spt_d2.benchmark.record import read_record
from spt_d2.compare.document import markers
from tests.conftest import ROOT, load_program

PROGRAM = "tools/benchmark.py"
MEASURED = []


@pytest.fixture
def program(monkeypatch):
    """The program, with a measurement that takes no time and is counted."""
    loaded = load_program(ROOT / "tools" / "benchmark.py")
    MEASURED.clear()
    monkeypatch.setattr(loaded, "COMMANDS", {"backbone": lambda given: MEASURED.append(given) or ([], ["a note"])})
    monkeypatch.setattr(loaded, "code_commit", lambda: "0" * 40)
    return loaded


@pytest.fixture
def page(tmp_path):
    path = tmp_path / "page.md"
    path.write_text("\n".join(markers("backbone", PROGRAM)))
    return path


def refused(program, *arguments):
    with pytest.raises(SystemExit) as left:
        program.main(list(map(str, arguments)))
    assert not MEASURED, "it was measured first"
    return str(left.value.code)


def test_a_page_without_a_place_is_refused_before_measuring(program, tmp_path):
    page, file = tmp_path / "page.md", tmp_path / "a.json"
    assert "--document expects a page that can be written" in refused(program, "backbone", "--document", page)
    begin, end = markers("backbone", PROGRAM)
    for text in ("", begin, f"{end}\n{begin}", f"{begin}\n{end}\n" * 2, "\n".join(markers("train", PROGRAM))):
        page.write_text(text)
        message = refused(program, "backbone", "--document", page, "--json", file)
        assert f"{page} expects these two lines once each, in this order:\n{begin}\n{end}" in message
        assert page.read_text() == text
    assert not file.exists()


@pytest.mark.parametrize(
    "place, said",
    [
        ("folder", "expects a file that can be written. Got {root}/folder, a folder"),
        ("file/a.json", "expects a folder that can be written to. Got {root}/file: "),
        ("file/new/a.json", "expects a folder that can be written to. Got {root}/file/new: "),
    ],
)
def test_a_results_file_that_cannot_be_written_is_refused_before_measuring(program, tmp_path, place, said):
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("precious")
    message = refused(program, "backbone", "--json", tmp_path / place)
    assert f"--json {said.format(root=tmp_path)}" in message
    assert (tmp_path / "file").read_text() == "precious" and not list((tmp_path / "folder").iterdir())


def test_a_measurement_is_written_and_put_into_the_page(program, tmp_path, page, capsys):
    file = tmp_path / "new" / "a.json"
    program.main(["backbone", "--json", str(file), "--document", str(page)])
    assert len(MEASURED) == 1 and read_record(file).notes == ("a note",) and "* a note" in page.read_text()
    assert capsys.readouterr().out.endswith(f"{file}\n{page}\n")
    assert [path.name for path in file.parent.iterdir()] == ["a.json"]
    # An older file is replaced.
    before = json.loads(file.read_text())
    file.write_text("old")
    program.main(["backbone", "--json", str(file), "--document", str(page)])
    assert json.loads(file.read_text()) == before


@pytest.mark.parametrize("fails", ["show", "insert_records"])
def test_a_measurement_is_kept_whatever_fails_after_it(program, tmp_path, page, monkeypatch, fails):
    def fail(*arguments):
        raise BrokenPipeError

    monkeypatch.setattr(program, fails, fail)
    with pytest.raises(BrokenPipeError):
        program.main(["backbone", "--json", str(tmp_path / "a.json"), "--document", str(page)])
    assert read_record(tmp_path / "a.json").benchmark == "backbone"


def test_a_report_is_refused_by_a_message_as_well(program, tmp_path, page):
    program.main(["backbone", "--json", str(tmp_path / "a.json")])
    MEASURED.clear()
    page.write_text("no place")
    assert "these two lines" in refused(program, "report", tmp_path / "a.json", "--document", page)
    (tmp_path / "b.json").write_text("{}")
    assert "expects a results file" in refused(program, "report", tmp_path / "b.json")
    assert "No such file" in refused(program, "report", tmp_path / "c.json")


def test_changes_without_a_commit_are_warned_of_before_figures_are_recorded(program, tmp_path, monkeypatch, capsys):
    file = tmp_path / "a.json"
    for commit, arguments, warned in (
        ("ab" * 20 + "-dirty", ["--json", str(file)], True),
        ("ab" * 20 + "-dirty", [], False),
        ("ab" * 20, ["--json", str(file)], False),
        (None, ["--json", str(file)], False),
    ):
        seen = []
        monkeypatch.setattr(program, "code_commit", lambda commit=commit: commit)
        monkeypatch.setattr(
            program, "COMMANDS", {"backbone": lambda given, seen=seen: seen.append(capsys.readouterr().err) or ([], [])}
        )
        program.main(["backbone", *arguments])
        # Before it is measured.
        assert ("cannot be traced to a commit" in seen[0]) == warned
        assert (f"{file} will say {commit}" in seen[0]) == warned
