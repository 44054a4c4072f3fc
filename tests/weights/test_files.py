"""Files of weights come back as they were written; what is more than tensors is read only on trust."""

import argparse
import pickle
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from spt_d2.weights import read_weights, unwrap_weights, write_weights


def weights() -> dict[str, Tensor]:
    whole = torch.randn(6, 4)
    # Views of one storage, one of them not contiguous.
    return {"a.weight": whole[:2], "b.weight": whole.t(), "c.count": torch.tensor(3)}


def same(actual: dict[str, Tensor], expected: dict[str, Tensor]) -> bool:
    return actual.keys() == expected.keys() and all(torch.equal(actual[name], v) for name, v in expected.items())


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_weights_come_back_as_they_were_written_and_leave_nothing_else(suffix, tmp_path: Path):
    pytest.importorskip("safetensors", reason="safetensors is not installed")
    written, path = weights(), tmp_path / f"weights{suffix}"
    write_weights(written, path)
    assert same(read_weights(path), written)
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


def test_a_state_dict_is_found_where_projects_keep_it():
    inner = weights()
    for loaded in (
        inner,
        {"model": inner},
        {"state_dict": inner, "meta": {"epoch": 3}},
        {"model": {"state_dict": inner}},
    ):
        assert same(unwrap_weights(loaded), inner)
    assert torch.equal(unwrap_weights({"a": np.ones(2, np.float32)})["a"], torch.ones(2))
    with pytest.raises(ValueError, match="expects a state dict(.|\n)*Got str for 'arch'"):
        unwrap_weights({"arch": "swin"})


def test_files_with_other_objects_are_read_on_trust_only(tmp_path: Path):
    written, path = weights(), tmp_path / "run.pth"
    torch.save({"model": written, "config": argparse.Namespace(epochs=300)}, path)
    with pytest.raises(ValueError, match=r"read_weights\(path=\) expects a file of tensors(.|\n)*HINT: --trust"):
        read_weights(path)
    assert same(read_weights(path, trust=True), written)


def test_what_torch_did_not_write_is_not_asked_to_be_trusted(tmp_path: Path):
    path = tmp_path / "missing.pth"
    path.write_bytes(b"<!DOCTYPE html><title>404</title>")
    with pytest.raises(ValueError, match="a file that torch wrote. Got .*which begins with b'<!DOC") as found:
        read_weights(path)
    assert "trust" not in str(found.value)


POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 113\n"


@pytest.mark.parametrize(
    "suffix, kind", [(".pth", "a file that torch wrote"), (".safetensors", "a whole .safetensors")]
)
@pytest.mark.parametrize("content", [POINTER, b"<!DOCTYPE html><title>404</title>"], ids=["pointer", "page"])
def test_a_file_that_stands_in_for_another_is_named_with_its_beginning(suffix, kind, content, tmp_path: Path):
    pytest.importorskip("safetensors", reason="safetensors is not installed")
    path = tmp_path / f"weights{suffix}"
    path.write_bytes(content)
    with pytest.raises(
        ValueError, match=rf"read_weights\(path=\) expects {kind}.*\. Got .*which begins with b'"
    ) as found:
        read_weights(path)
    message = str(found.value)
    assert str(path) in message and repr(content[:16]) in message and "trust" not in message
    assert ("HINT: it is Git LFS's pointer" in message) == (content is POINTER)


def test_a_safetensors_file_that_is_cut_short_is_an_error_of_ours(tmp_path: Path):
    pytest.importorskip("safetensors", reason="safetensors is not installed")
    path = tmp_path / "weights.safetensors"
    write_weights(weights(), path)
    whole = path.read_bytes()
    for length in (len(whole) - 8, 4, 0):
        path.write_bytes(whole[:length])
        with pytest.raises(ValueError, match="expects a whole .safetensors file. Got "):
            read_weights(path)


def test_a_file_without_a_state_dict_names_what_it_holds(tmp_path: Path):
    path = tmp_path / "list.pth"
    torch.save([torch.zeros(2)], path)
    with pytest.raises(ValueError, match="expects a state dict(.|\n)*Got list"):
        read_weights(path)


def test_pickles_of_the_model_zoo_are_read_on_trust_only(tmp_path: Path):
    path = tmp_path / "zoo.pkl"
    path.write_bytes(pickle.dumps({"model": {"a": np.arange(3.0)}, "__author__": "someone"}))
    with pytest.raises(ValueError, match="it is a pickle\nHINT"):
        read_weights(path)
    assert same(read_weights(path, trust=True), {"a": torch.arange(3.0, dtype=torch.float64)})


def test_without_safetensors_its_files_are_an_error_that_names_the_cure(tmp_path: Path, monkeypatch):
    monkeypatch.setitem(sys.modules, "safetensors", None)
    monkeypatch.setitem(sys.modules, "safetensors.torch", None)
    with pytest.raises(ImportError, match="HINT: pip install safetensors"):
        read_weights(tmp_path / "weights.safetensors")
    with pytest.raises(ImportError, match="HINT: pip install safetensors"):
        write_weights(weights(), tmp_path / "weights.safetensors")
    assert list(tmp_path.iterdir()) == []
