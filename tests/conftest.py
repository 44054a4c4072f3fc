"""
What tests of several packages share: a fixed seed, devices, programs run in this process, a tiny data set.

Loaded where detectron2 is not installed, too: it imports torch and the standard library.
"""

import importlib.util
import logging
import os
import random
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from hypothesis import settings

ROOT = Path(__file__).resolve().parents[1]

# The same examples in every run, nothing written to the working directory, no limit per example on a busy machine.
settings.register_profile("spt_d2", derandomize=True, database=None, deadline=None)
settings.load_profile("spt_d2")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "gpu: needs a CUDA device; the same test as on the CPU, over another device")
    if "PYTEST_XDIST_WORKER" in os.environ:
        # Every process would otherwise take every core.
        torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def full_precision(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a GPU convolutions of float32 are of float32: TF32, cuDNN's default, keeps ten bits."""
    if request.node.get_closest_marker("gpu"):
        monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)


@pytest.fixture(autouse=True)
def seed() -> None:
    """Every test starts from the same random state, whatever ran before it."""
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request: pytest.FixtureRequest) -> torch.device:
    """The CPU, and a CUDA device where there is one."""
    if request.param == "cuda" and not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    return torch.device(request.param)


def load_program(path: Path) -> ModuleType:
    """A program as a module, for it lies in no package."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@contextmanager
def loggers_kept() -> Iterator[None]:
    """Leave loggers as they were: a program gives these handlers and levels, for good, and takes them from the root."""
    loggers = [logging.getLogger(name) for name in ("detectron2", "fvcore", "spt_d2")]
    before = [(logger.handlers[:], logger.propagate, logger.level) for logger in loggers]
    try:
        yield
    finally:
        for logger, (handlers, propagate, level) in zip(loggers, before):
            logger.handlers, logger.propagate = handlers, propagate
            logger.setLevel(level)


@pytest.fixture(autouse=True)
def loggers() -> Iterator[None]:
    """No test is deaf to warnings because one before it ran a program in this process."""
    with loggers_kept():
        yield


@contextmanager
def as_a_program() -> Iterator[None]:
    """On one thread, as programs run, and leaving loggers as they were."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with loggers_kept(), warnings.catch_warnings():
            # Detectron2 leaves the config file open that it prints; and a machine may have few cores.
            warnings.filterwarnings("ignore", "unclosed file", ResourceWarning)
            warnings.filterwarnings("ignore", "This DataLoader will create", UserWarning)
            yield
    finally:
        torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def tiny_shapes(tmp_path_factory: pytest.TempPathFactory) -> list[list[str]]:
    """Entries of ``DATASETS.CUSTOM``: 12 training and 6 validation images of 64 px."""
    folder = tmp_path_factory.mktemp("tiny") / "shapes"
    load_program(ROOT / "datasets" / "make_shapes.py").make_shapes(folder, num_train=12, num_val=6, size=64, workers=1)
    return [[f"tiny_{split}", str(folder / f"{split}.json"), str(folder / split)] for split in ("train", "val")]
