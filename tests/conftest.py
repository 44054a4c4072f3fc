"""Fixtures shared by all tests: a fixed seed, devices and tolerances."""

import random

import numpy as np
import pytest
import torch
from hypothesis import settings

# The same examples in every run, nothing written to the working directory, no limit per example on a busy machine.
settings.register_profile("spt_d2", derandomize=True, database=None, deadline=None)
settings.load_profile("spt_d2")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "gpu: needs a CUDA device; the same test as on the CPU, over another device")


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
