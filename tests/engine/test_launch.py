"""Which way a program is started, and what is refused."""

import argparse
from unittest import mock

import pytest
import torch
from detectron2.utils import comm
from torch import nn

from spt_d2.engine import launch as module
from spt_d2.engine.launch import distribute, launch
from spt_d2.engine.setup import available_device


def arguments(gpus: int = 1, machines: int = 1) -> argparse.Namespace:
    return argparse.Namespace(num_gpus=gpus, num_machines=machines, machine_rank=0, dist_url="auto")


@pytest.fixture(autouse=True)
def no_torchrun(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in module._TORCHRUN:
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize("gpus", [0, 1])
def test_one_process_runs_here_and_returns_the_result(gpus: int) -> None:
    assert launch(lambda args: args.num_gpus + 10, arguments(gpus)) == gpus + 10


def test_torchrun_decides_how_many_processes_run(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in module._TORCHRUN:
        monkeypatch.setenv(name, "1")
    with pytest.raises(ValueError, match=r"under torchrun(.|\n)*--num-gpus    : 2(.|\n)*HINT"):
        launch(lambda args: None, arguments(gpus=2))


def test_more_processes_than_gpus_are_refused_where_there_are_gpus() -> None:
    with (
        mock.patch("torch.cuda.is_available", return_value=True),
        mock.patch("torch.cuda.device_count", return_value=2),
    ):
        with pytest.raises(ValueError, match="--num-gpus expects at most 2.*3"):
            launch(lambda args: None, arguments(gpus=3))


@pytest.mark.parametrize(("processes", "expected"), [(1, 4), (2, 2), (3, 1), (8, 1)])
def test_processes_on_a_cpu_share_its_cores(processes: int, expected: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    with (
        mock.patch("torch.cuda.is_available", return_value=False),
        mock.patch("torch.get_num_threads", return_value=4),
        mock.patch("torch.set_num_threads") as set_threads,
    ):
        module._share_cores(processes)
        set_threads.assert_called_once_with(expected)
        monkeypatch.setenv("OMP_NUM_THREADS", "3")
        module._share_cores(processes)
        set_threads.assert_called_once()


def test_a_model_in_one_process_is_not_wrapped() -> None:
    model = nn.Linear(1, 1)
    assert distribute(model) is model


def test_a_model_on_the_cpu_beside_gpus_is_refused_with_the_cure() -> None:
    with (
        mock.patch.object(comm, "get_world_size", return_value=2),
        mock.patch("torch.distributed.get_backend", return_value="nccl"),
        pytest.raises(ValueError, match=r"on the CPU\.\nHINT: CUDA_VISIBLE_DEVICES"),
    ):
        distribute(nn.Linear(1, 1))


@pytest.mark.parametrize(
    ("asked", "cuda", "expected"),
    [
        ("cuda", False, "cpu"),
        ("cuda:1", False, "cpu"),
        ("cuda:1", True, "cuda:1"),
        ("cpu", True, "cpu"),
        ("mps", False, "mps"),
    ],
)
def test_cuda_falls_back_to_the_cpu_where_there_is_none(asked: str, cuda: bool, expected: str) -> None:
    with mock.patch.object(torch.cuda, "is_available", return_value=cuda):
        assert available_device(asked) == expected
