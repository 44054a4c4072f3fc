"""How a training is doing, for somebody who looks at a terminal: few lines, plain words, the time that is left."""

import logging
import re
import sys
import time
from collections.abc import Callable
from typing import TextIO

from detectron2.engine import HookBase
from detectron2.utils.events import EventStorage, EventWriter, get_event_storage

_INFERENCE = re.compile(r"Inference done (\d+)/(\d+).*ETA=(\S+)")
_KEEP_RATIO = re.compile(r"selection/stage(\d+)/keep_ratio$")


class TrainingClock(HookBase):
    """
    Seconds spent in iterations, over all the sessions of a run that was resumed.

    Evaluation and the writing of checkpoints are not counted.

    Attributes:
        seconds: so far.
    """

    def __init__(self) -> None:
        self.seconds = 0.0
        self._start = 0.0

    def before_step(self) -> None:
        self._start = time.perf_counter()

    def after_step(self) -> None:
        self.count(time.perf_counter() - self._start)

    def count(self, seconds: float) -> None:
        """Take note of what an iteration took."""
        self.seconds += seconds

    def state_dict(self) -> dict:
        return {"seconds": self.seconds}

    def load_state_dict(self, state_dict: dict) -> None:
        self.seconds = state_dict["seconds"]


class ProgressWriter(EventWriter):
    """
    One line a period: iteration, loss, what is kept, seconds per iteration, time left.

    Args:
        max_iter: iterations of the run.
        emit: takes the line; a terminal's ``print``, say.
    """

    def __init__(self, max_iter: int, emit: Callable[[str], object]):
        self.max_iter = max_iter
        self.emit = emit

    def write(self) -> None:
        storage = get_event_storage()
        if storage.iter < self.max_iter:
            self.emit(progress_line(storage, self.max_iter))


def progress_line(storage: EventStorage, max_iter: int) -> str:
    """
    Say where a run is.

    Args:
        storage: of the run, in the middle of an iteration.
        max_iter: iterations of the run.
    """
    done = storage.iter + 1
    histories, latest = storage.histories(), storage.latest()
    parts = [f"iteration {done:>{len(str(max_iter))}} of {max_iter}"]
    if "total_loss" in histories:
        parts.append(f"loss {histories['total_loss'].median(20):.3f}")
    kept = sorted((match[1], latest[name][0]) for name in latest if (match := _KEEP_RATIO.match(name)))
    if kept:
        parts.append("tokens kept: " + ", ".join(f"stage {stage} {ratio:4.0%}" for stage, ratio in kept))
    if "time" in histories:
        seconds = histories["time"].median(100)
        parts.append(f"{seconds:.2f} s each")
        parts.append(f"{duration(seconds * (max_iter - done))} left" if done < max_iter else "done")
    return "   ".join(parts)


def duration(seconds: float) -> str:
    """
    Seconds in words.

    Example:
        >>> duration(59.6), duration(3725)
        ('1 min 00 s', '1 h 02 min')
    """
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


class TerminalHandler(logging.StreamHandler):
    """
    Shows warnings, and how far an evaluation is; everything else is for the log file.

    Args:
        stream: of the terminal; by default what ``sys.stdout`` is now.
    """

    def __init__(self, stream: TextIO | None = None):
        super().__init__(stream or sys.stdout)

    def filter(self, record: logging.LogRecord) -> bool:
        # Errors are raised as well, and would be shown twice.
        return record.levelno == logging.WARNING or bool(_INFERENCE.match(record.getMessage()))

    def format(self, record: logging.LogRecord) -> str:
        message = record.getMessage()
        if match := _INFERENCE.match(message):
            return f"{match[1]:>{len(match[2])}} of {match[2]} images   {match[3]} left"
        return f"WARNING: {message}"
