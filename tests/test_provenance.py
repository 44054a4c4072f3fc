"""A measurement names the commit that it was made with, and says where code differed from it."""

import subprocess
from pathlib import Path

import pytest

from spt_d2 import provenance

CODE = ("package/module.py", "configs/one.yaml", "setup.cfg", "tests/results/expected.json")
NOT_CODE = ("README.md", "docs/page.md", "results/benchmark/cpu.json", "projects/SPT/results/main/one.json")


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository with one commit of some files."""
    for name in (*CODE, *NOT_CODE):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("before\n")
    for arguments in ("init -q", "add .", "-c user.name=n -c user.email=e commit -q -m first"):
        subprocess.run(["git", *arguments.split()], cwd=tmp_path, check=True)
    monkeypatch.setattr(provenance, "_ROOT", tmp_path)
    return tmp_path


def head(repository: Path) -> str:
    done = subprocess.run(["git", "rev-parse", "HEAD"], cwd=repository, capture_output=True, text=True, check=True)
    return done.stdout.strip()


def test_files_that_cannot_change_a_measurement_do_not_mark_its_commit(repository: Path):
    for name in NOT_CODE:
        (repository / name).write_text("after\n")
    (repository / "untracked.py").write_text("")
    assert provenance.code_commit() == head(repository)


@pytest.mark.parametrize("name", CODE)
def test_changed_code_does(repository: Path, name: str):
    (repository / name).write_text("after\n")
    assert provenance.code_commit() == head(repository) + "-dirty"


def test_removed_and_staged_code_does(repository: Path):
    (repository / CODE[0]).unlink()
    assert provenance.code_commit() == head(repository) + "-dirty"
    subprocess.run(["git", "rm", "-q", CODE[0]], cwd=repository, check=True)
    assert provenance.code_commit() == head(repository) + "-dirty"


def test_a_folder_within_a_repository_of_others_has_no_commit(repository: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(provenance, "_ROOT", repository / "package")
    assert provenance.code_commit() is None


def test_neither_has_what_is_no_repository_or_where_there_is_no_git(
    repository: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(provenance, "_ROOT", tmp_path_factory.mktemp("archive"))
    assert provenance.code_commit() is None
    monkeypatch.setattr(provenance, "_ROOT", repository)
    monkeypatch.setenv("PATH", "")
    assert provenance.code_commit() is None
