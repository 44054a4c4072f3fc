"""What is recorded of a run while it trains, and measured after it."""

import json
import os
import resource
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import torch
from detectron2.utils.events import EventWriter, get_event_storage
from torch import nn

from spt_d2.engine.progress import TrainingClock

PROGRESS_FILE = "progress.json"


class RunRecord(TrainingClock):
    """
    Seconds of each iteration, and the peak of memory, over all the sessions of a run that was resumed.

    Attributes:
        each: seconds of each iteration; ``seconds`` is their sum.
    """

    def __init__(self) -> None:
        super().__init__()
        self.each: list[float] = []
        self._memory = 0.0

    def count(self, seconds: float) -> None:
        """See :meth:`TrainingClock.count`."""
        super().count(seconds)
        self.each.append(seconds)

    @property
    def memory(self) -> float:
        """Peak so far, 10^6 bytes: of the device where it is CUDA, else of this process."""
        return max(self._memory, peak_memory())

    def state_dict(self) -> dict:
        return {"seconds": list(self.each), "memory": self.memory}

    def load_state_dict(self, state_dict: dict) -> None:
        self.each, self._memory = list(state_dict["seconds"]), state_dict["memory"]
        self.seconds = sum(self.each)


class ProgressFile(EventWriter):
    """
    How far a run is, in a small file for whoever waits for it; what an earlier try of the run left there is removed.

    Args:
        folder: of the run.
        max_iter: its iterations.
    """

    def __init__(self, folder: str, max_iter: int):
        self.path = Path(folder) / PROGRESS_FILE
        self.path.unlink(missing_ok=True)
        self.max_iter = max_iter

    def write(self) -> None:
        storage = get_event_storage()
        histories = storage.histories()
        seconds = histories["time"].median(100) if "time" in histories else None
        done = min(storage.iter + 1, self.max_iter)
        unfinished = self.path.with_suffix(".unfinished")
        unfinished.write_text(json.dumps({"done": done, "max_iter": self.max_iter, "seconds": seconds}))
        os.replace(unfinished, self.path)


def read_progress(folder: str) -> dict[str, Any] | None:
    """``{"done", "max_iter", "seconds" per iteration or None}``; None before the first period is over."""
    try:
        return json.loads((Path(folder) / PROGRESS_FILE).read_text())
    except (OSError, ValueError):
        return None


def peak_memory() -> float:
    """Peak memory, 10^6 bytes: allocated on the CUDA device where this process uses one, else resident."""
    if torch.cuda.is_available() and torch.cuda.max_memory_allocated():
        return torch.cuda.max_memory_allocated() / 1e6
    # Linux counts in units of 1024 bytes, macOS in bytes.
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6


@torch.no_grad()
def forward_milliseconds(model: nn.Module, loader: Any, images: int = 20, warmup: int = 3) -> float | None:
    """
    The median time of the whole detector on one image.

    Args:
        model: set to evaluation for it.
        loader: of batches of one image, already read when the clock starts.
        images: at most, after the warm-up.
        warmup: images before the first that counts.

    Returns:
        milliseconds; None where the loader has no more images than the warm-up takes.
    """
    training = model.training
    model.eval()
    times = []
    for i, batch in enumerate(loader):
        if i == images + warmup:
            break
        _wait()
        start = time.perf_counter()
        model(batch)
        _wait()
        times.append(time.perf_counter() - start)
    model.train(training)
    counted = times[warmup:]
    return 1000 * statistics.median(counted) if counted else None


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
