"""What a terminal shows of a run: seconds of iterations alone, one line a period, warnings and evaluations."""

import io
import logging
from types import SimpleNamespace

import pytest
import torch
from detectron2.engine import HookBase
from detectron2.engine.train_loop import TrainerBase
from detectron2.evaluation import DatasetEvaluators, inference_on_dataset
from detectron2.utils import logger as detectron2_logger
from detectron2.utils.events import EventStorage
from torch import nn

from spt_d2.compare.recorder import RunRecord
from spt_d2.engine import progress
from spt_d2.engine.progress import ProgressWriter, TerminalHandler, TrainingClock, duration, progress_line

# --- the clock


class Time:
    """A clock that goes on only when told."""

    def __init__(self) -> None:
        self.now = 1000.0

    def perf_counter(self) -> float:
        return self.now


@pytest.fixture
def clock_time(monkeypatch: pytest.MonkeyPatch) -> Time:
    """The time that a TrainingClock sees."""
    time = Time()
    monkeypatch.setattr(progress, "time", time)
    return time


class Passing(HookBase):
    """Time that passes around iterations: an evaluation, a checkpoint."""

    def __init__(self, time: Time) -> None:
        self.time = time

    def before_train(self) -> None:
        self.time.now += 10_000

    def after_step(self) -> None:
        self.time.now += 1_000

    after_train = before_train


CLOCKS = [TrainingClock, RunRecord]


class Steps(TrainerBase):
    """Iteration i takes i + 1 seconds; the clock comes first among the hooks, as in the demo."""

    def __init__(self, time: Time, kind: type[TrainingClock], stop_at: int | None = None) -> None:
        super().__init__()
        self.time, self.stop_at = time, stop_at
        self.clock = kind()
        self.register_hooks([self.clock, Passing(time)])

    def run_step(self) -> None:
        self.time.now += self.iter + 1
        if self.iter == self.stop_at:
            raise KeyboardInterrupt


@pytest.mark.parametrize("kind", CLOCKS)
def test_the_clock_counts_iterations_and_nothing_around_them(clock_time: Time, kind: type[TrainingClock]) -> None:
    trainer = Steps(clock_time, kind)
    assert trainer.clock.seconds == 0.0
    trainer.train(0, 4)
    assert trainer.clock.seconds == 1 + 2 + 3 + 4


@pytest.mark.parametrize("kind", CLOCKS)
def test_the_clock_goes_on_where_the_checkpoint_of_a_resumed_run_was_written(
    clock_time: Time, kind: type[TrainingClock]
) -> None:
    first = Steps(clock_time, kind)
    first.train(0, 3)
    state = first.state_dict()
    resumed = Steps(clock_time, kind)
    resumed.load_state_dict(state)
    assert resumed.clock.seconds == 6
    clock_time.now += 100_000
    resumed.train(3, 5)
    assert resumed.clock.seconds == 1 + 2 + 3 + 4 + 5


def test_the_record_of_a_comparisons_run_has_each_iteration_over_all_sessions(clock_time: Time) -> None:
    first = Steps(clock_time, RunRecord)
    first.train(0, 3)
    assert first.clock.state_dict()["seconds"] == [1, 2, 3]
    resumed = Steps(clock_time, RunRecord)
    resumed.load_state_dict(first.state_dict())
    resumed.train(3, 5)
    assert resumed.clock.each == [1, 2, 3, 4, 5]
    assert resumed.clock.memory >= first.clock.state_dict()["memory"] > 0


@pytest.mark.parametrize("kind", CLOCKS)
def test_an_iteration_that_was_not_finished_is_not_counted(clock_time: Time, kind: type[TrainingClock]) -> None:
    trainer = Steps(clock_time, kind, stop_at=2)
    with pytest.raises(KeyboardInterrupt):
        trainer.train(0, 4)
    assert trainer.clock.seconds == 1 + 2


# --- the line


def put(storage: EventStorage, iteration: int, **values: float) -> None:
    storage.iter = iteration
    for name, value in values.items():
        storage.put_scalar(name.replace("__", "/"), value, smoothing_hint=False)


def test_a_line_says_where_a_run_is_in_plain_words() -> None:
    with EventStorage(0) as storage:
        for iteration in range(40):
            kept = {"selection__stage4__keep_ratio": 0.125, "selection__stage3__keep_ratio": 1 - iteration / 100}
            put(storage, iteration, total_loss=2.0 if iteration % 2 else 4.0, time=0.5 + iteration % 2, **kept)
        line = progress_line(storage, 900)
    assert line == (
        "iteration  40 of 900   loss 3.000   tokens kept: stage 3  61%, stage 4  12%   1.00 s each   14 min 20 s left"
    )


def test_loss_and_time_are_medians_of_late_so_that_one_slow_iteration_does_not_show() -> None:
    with EventStorage(0) as storage:
        for iteration in range(119):
            put(storage, iteration, total_loss=100.0 if iteration < 99 else 1.0, time=50.0 if iteration < 19 else 2.0)
        put(storage, 119, total_loss=1e6, time=3600.0)
        line = progress_line(storage, 1000)
    assert "loss 1.000 " in line and "2.00 s each   29 min 20 s left" in line


def test_a_line_leaves_out_what_is_not_known() -> None:
    with EventStorage(0) as storage:
        put(storage, 0)
        assert progress_line(storage, 20) == "iteration  1 of 20"
        # A dense backbone; times are known after some iterations only.
        put(storage, 1, total_loss=1.5, selection__keep_ratio=0.5, validation__selection__stage3__keep_ratio=0.5)
        assert progress_line(storage, 20) == "iteration  2 of 20   loss 1.500"


def test_the_last_line_says_that_it_is_the_last() -> None:
    with EventStorage(0) as storage:
        put(storage, 8, time=1.0)
        assert progress_line(storage, 10).endswith("   1 s left")
        put(storage, 9, time=1.0)
        assert progress_line(storage, 10).endswith("   done")


def test_lines_of_a_run_align() -> None:
    with EventStorage(0) as storage:
        lengths = set()
        for iteration, kept in ((0, 1.0), (98, 0.05), (999, 0.5)):
            put(storage, iteration, total_loss=1.0, selection__stage3__keep_ratio=kept)
            lengths.add(len(progress_line(storage, 1000)))
    assert len(lengths) == 1


def test_the_writer_emits_a_line_a_period_and_none_after_the_end() -> None:
    lines: list[str] = []
    writer = ProgressWriter(4, lines.append)
    with EventStorage(0) as storage:
        for iteration in range(5):
            # Detectron2 calls writers once more when a run has ended, and counts one iteration further.
            put(storage, iteration, total_loss=float(iteration))
            if iteration % 2 or iteration == 4:
                writer.write()
                assert len(lines) == (iteration + 1) // 2 if iteration < 4 else 2
        expected = ["iteration 2 of 4", "iteration 4 of 4"]
    assert [line.split("   ")[0] for line in lines] == expected


@pytest.mark.parametrize(
    "seconds, words",
    [
        (0.0, "0 s"),
        (0.6, "1 s"),
        (59.4, "59 s"),
        (59.6, "1 min 00 s"),
        (60.0, "1 min 00 s"),
        (125.0, "2 min 05 s"),
        (3599.4, "59 min 59 s"),
        (3599.6, "1 h 00 min"),
        (3725.0, "1 h 02 min"),
        (360_000.0, "100 h 00 min"),
    ],
)
def test_durations_are_words(seconds: float, words: str) -> None:
    assert duration(seconds) == words


# --- the terminal


@pytest.fixture
def terminal() -> SimpleNamespace:
    """A logger of its own and what a terminal shows of it."""
    stream = io.StringIO()
    logger = logging.Logger("a run", logging.DEBUG)
    logger.addHandler(TerminalHandler(stream))
    return SimpleNamespace(logger=logger, shown=lambda: stream.getvalue().splitlines())


def test_a_terminal_shows_warnings_and_leaves_the_rest_to_the_log(terminal: SimpleNamespace) -> None:
    terminal.logger.debug("a detail")
    terminal.logger.info("the whole config")
    terminal.logger.warning("%d images have no %s", 3, "objects")
    terminal.logger.error("raised as well")
    try:
        raise ValueError("raised")
    except ValueError:
        terminal.logger.exception("raised as well")
    assert terminal.shown() == ["WARNING: 3 images have no objects"]


def test_a_terminal_shows_how_far_an_evaluation_is(terminal: SimpleNamespace) -> None:
    form = "Inference done %d/240. Dataloading: 0.0011 s/iter. Inference: 0.0812 s/iter. Eval: 0.0032 s/iter. "
    form += "Total: 0.0855 s/iter. ETA=0:00:19"
    terminal.logger.info(form, 11)
    terminal.logger.info(form, 110)
    terminal.logger.info("Total inference time: 0:00:20.1 (0.0855 s / iter per device, on 1 devices)")
    assert terminal.shown() == [" 11 of 240 images   0:00:19 left", "110 of 240 images   0:00:19 left"]


class Nothing(nn.Module):
    """A model that finds nothing."""

    def forward(self, inputs: list[dict]) -> list[dict]:
        return [{} for _ in inputs]


def test_a_terminal_understands_what_detectron2_says_of_an_evaluation(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.StringIO()
    evaluation = logging.getLogger("detectron2.evaluation.evaluator")
    monkeypatch.setattr(evaluation, "handlers", [TerminalHandler(stream)])
    monkeypatch.setattr(evaluation, "propagate", False)
    monkeypatch.setattr(evaluation, "level", logging.INFO)
    # It speaks at most once in five seconds; another test's evaluation may have just spoken.
    monkeypatch.setattr(detectron2_logger, "_LOG_TIMER", {})
    evaluation.manager._clear_cache()
    loader = [[{"image": torch.zeros(3, 4, 4)}]] * 12
    inference_on_dataset(Nothing(), loader, DatasetEvaluators([]))
    evaluation.manager._clear_cache()
    assert stream.getvalue() == "11 of 12 images   0:00:00 left\n"


def test_a_terminal_is_the_standard_output_of_the_moment_unless_another_is_given(
    capsys: pytest.CaptureFixture[str],
) -> None:
    logger = logging.Logger("a run")
    logger.addHandler(TerminalHandler())
    logger.warning("careful")
    assert capsys.readouterr().out == "WARNING: careful\n"
