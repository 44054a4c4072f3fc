"""What is seen to be in order before an earlier run is removed; with the demo, in tests/test_demo.py."""

import re
from pathlib import Path

import pytest

from spt_d2.engine.preflight import expect_kept, expect_weights


def test_weights_are_looked_for_where_they_are_a_file(tmp_path: Path) -> None:
    file = tmp_path / "model.pth"
    with pytest.raises(FileNotFoundError, match=re.escape(f"There is no file {file}.")):
        expect_weights(str(file))
    file.touch()
    # A file, one with options for Detectron2, none, and an address.
    for path in (f"{file}", f"{file}?matching_heuristics=True", "", "detectron2://nowhere/model.pkl"):
        expect_weights(path)


def test_a_file_is_found_among_the_removed_whatever_it_is_called(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    removed = [tmp_path / "out" / "model_final.pth", tmp_path / "out" / "inference"]
    removed[1].mkdir(parents=True)
    removed[0].touch()
    (tmp_path / "link").symlink_to(tmp_path / "out")
    for file in ("out/model_final.pth", "link/model_final.pth", "out/../out/inference/best.pth"):
        with pytest.raises(ValueError, match="--resume"):
            expect_kept(removed, ["", file])
    expect_kept(removed, ["", "out/model_best.pth", "out/inference.pth", "elsewhere/model_final.pth"])
