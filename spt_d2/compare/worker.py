"""
One run in a process of its own: train, evaluate, measure, write the results file.

    python -m spt_d2.compare.worker RUN_FOLDER/run.json [PARENT'S PROCESS NUMBER, to end with it]
"""

import argparse
import fcntl
import logging
import os
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.engine import HookBase, default_setup, hooks
from detectron2.utils.env import seed_all_rng
from detectron2.utils.events import CommonMetricPrinter, EventWriter, JSONWriter
from detectron2.utils.logger import setup_logger

from spt_d2.analysis.model_report import parameter_counts
from spt_d2.compare.job import BUSY, Job
from spt_d2.compare.parent import end_with
from spt_d2.compare.recorder import ProgressFile, RunRecord, forward_milliseconds
from spt_d2.engine.initial import initial_weights, load_agreeing
from spt_d2.engine.setup import load_config
from spt_d2.engine.trainer import Trainer
from spt_d2.provenance import code_commit, machine
from spt_d2.summary import read_summary, summarize, write_summary

logger = logging.getLogger(__name__)

# Iterations timed to turn minutes into iterations, and those before them that do not count.
_TIMED, _WARMUP = 12, 4


class RunTrainer(Trainer):
    """The project's trainer, which keeps one checkpoint, times its iterations and says how far it is in a file."""

    def build_hooks(self) -> list[HookBase | None]:
        self.record = RunRecord()
        built = [self.record, *super().build_hooks()]
        for i, hook in enumerate(built):
            if isinstance(hook, hooks.PeriodicCheckpointer):
                period = self.cfg.SOLVER.CHECKPOINT_PERIOD
                built[i] = hooks.PeriodicCheckpointer(self.checkpointer, period, max_to_keep=1)
        return built

    def build_writers(self) -> list[EventWriter]:
        folder = self.cfg.OUTPUT_DIR
        return [
            CommonMetricPrinter(self.max_iter),
            JSONWriter(os.path.join(folder, "metrics.json")),
            ProgressFile(folder, self.max_iter),
        ]


def perform(job: Job) -> dict[str, Any]:
    """
    Do a run, from where it was left if it was.

    Returns:
        what its results file holds.
    """
    begin, commit = time.time(), code_commit()
    cfg = load_config(job.config_file, job.options)
    if len(cfg.DATASETS.TEST) != 1:
        raise ValueError(f"A comparison expects one data set in DATASETS.TEST. Got {list(cfg.DATASETS.TEST)}.")
    cfg = with_iterations(cfg, run_iterations(cfg, job))
    setup_logger(cfg.OUTPUT_DIR, name="spt_d2")
    default_setup(cfg, argparse.Namespace(config_file="", eval_only=False))
    start = initial_weights(load_config(job.start_config_file, job.start_options))
    seed_all_rng(cfg.SEED)
    trainer = RunTrainer(cfg)
    own = load_agreeing(trainer.model, start)
    logger.info("Started as the reference is, but for: %s", ", ".join(own) or "nothing")
    # A checkpoint to start from, or to go on from, replaces what it has; the rest keeps the common start.
    trainer.resume_or_load(resume=True)
    evaluated = trainer.train()
    record = trainer.record
    return {
        **job.settings,
        "order": list(job.order),
        **summarize(evaluated, record.seconds, commit),
        "machine": {**machine(cfg.MODEL.DEVICE), "concurrent_runs": job.concurrent},
        "date": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "iterations": trainer.max_iter,
        "parameters": parameter_counts(trainer.model),
        "seconds_per_iteration": statistics.median(record.each),
        "forward_ms": forward_milliseconds(trainer.model, Trainer.build_test_loader(cfg, cfg.DATASETS.TEST[0])),
        "peak_memory_mb": record.memory,
        # Of this session alone, where the run was resumed: what it takes besides the training iterations shows here.
        "session_seconds": time.time() - begin,
    }


def with_iterations(cfg: CfgNode, iterations: int) -> CfgNode:
    """
    The config with another length of training; the steps of the learning rate keep their places relative to it.

    Of a short one, steps that fall on its ends or on each other are left out.
    """
    cfg = cfg.clone()
    cfg.defrost()
    steps = {round(step * iterations / cfg.SOLVER.MAX_ITER) for step in cfg.SOLVER.STEPS}
    cfg.SOLVER.STEPS = tuple(sorted(step for step in steps if 0 < step < iterations))
    cfg.SOLVER.MAX_ITER = iterations
    cfg.freeze()
    return cfg


def run_iterations(cfg: CfgNode, job: Job) -> int:
    """Of a run; minutes are turned into iterations once, so that a resumed run ends where it was to end."""
    if job.budget.minutes is None:
        return job.budget.max_iter or cfg.SOLVER.MAX_ITER
    path = os.path.join(job.output, "budget.json")
    found = read_summary(path)
    if found is None:
        seconds = _time_iterations(cfg)
        found = {"iterations": max(1, int(job.budget.minutes * 60 / seconds)), "seconds_per_iteration": seconds}
        write_summary(path, found)
    return found["iterations"]


def _time_iterations(cfg: CfgNode) -> float:
    """The median time of an iteration, of a model that is thrown away."""
    trial = with_iterations(cfg, _WARMUP + _TIMED)
    trial.defrost()
    trial.DATASETS.TEST = ()
    with tempfile.TemporaryDirectory() as folder:
        trial.OUTPUT_DIR = folder
        trial.freeze()
        trainer = RunTrainer(trial)
        trainer.train()
    return statistics.median(trainer.record.each[_WARMUP:])


def keep_final_weights(folder: Path) -> None:
    """
    Of a finished run's checkpoints keep the last, without the optimizer: a third of its size, and all that another run
    starts from. The run cannot be resumed after it, so that its results have to be on disk before.
    """
    final = folder / "model_final.pth"
    content = torch.load(final, map_location="cpu", weights_only=False)
    unfinished = folder / "model_final.unfinished"
    torch.save({"model": content["model"]}, unfinished)
    os.replace(unfinished, final)
    for path in folder.glob("model_*.pth"):
        if path != final:
            path.unlink()


@contextmanager
def sole_owner(folder: str) -> Iterator[bool]:
    """Whether no other process performs the run in this folder; holds others off meanwhile."""
    with open(os.path.join(folder, "lock"), "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            yield True


def main(argv: list[str]) -> int:
    """The exit status: 0 where the results file is there."""
    job_file, *parent = argv
    for number in parent:
        end_with(int(number))
    job = Job.read(job_file)
    # Third parties' warnings name nothing that a reader of this log could change.
    warnings.simplefilter("ignore")
    with sole_owner(job.output) as alone:
        if not alone:
            return BUSY
        if not os.path.exists(job.results):
            os.makedirs(os.path.dirname(job.results), exist_ok=True)
            results = perform(job)
            write_summary(job.results, results)
            keep_final_weights(Path(job.output))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
