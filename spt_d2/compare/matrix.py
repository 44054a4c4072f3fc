"""Perform the runs of a plan, each in a process of its own, several at a time, going on where they were left."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

from spt_d2.compare.checks import check_results, check_runs
from spt_d2.compare.job import BUSY, Job, build_job, check_settings, run_settings
from spt_d2.compare.plan import Plan, Run
from spt_d2.compare.progress import describe_result, estimate_left, progress_of
from spt_d2.compare.results import read_result, result_path
from spt_d2.engine.progress import duration
from spt_d2.folders import expect_folder

OUTPUT_FILE = "output.txt"
_PACKAGE_PARENT = str(Path(__file__).resolve().parents[2])


@dataclass
class Running:
    """A run under way."""

    run: Run
    job: Job
    process: subprocess.Popen
    start: float = field(default_factory=time.monotonic)


@dataclass
class Matrix:
    """
    All runs of a plan.

    Args:
        plan: what to run.
        output: folder for checkpoints and logs.
        results: folder of the results files. A run whose file is there is finished.
        jobs: runs at a time.
        threads: of each run.
        say: takes lines about how it goes.
        period: seconds between two such lines while nothing else happens.

    Attributes:
        running: runs under way.
        failed: why, for each run that did.
        total, done: numbers of runs.
    """

    plan: Plan
    output: str
    results: str
    jobs: int
    threads: int
    say: Callable[[str], object]
    period: float = 60.0
    running: list[Running] = field(default_factory=list)
    failed: dict[tuple[str, str, int], str] = field(default_factory=dict)
    total: int = 0
    done: int = 0

    def finished(self) -> list[Run]:
        """
        Runs that have a results file.

        Raises:
            ChangedSettings: one was made with other settings than the plan's.
        """
        done = []
        for run in self.plan.runs():
            path = result_path(self.results, *run.key)
            found = read_result(path)
            if found is not None:
                wanted = run_settings(self.plan, run)
                check_settings({key: found[key] for key in wanted}, wanted, str(path))
                done.append(run)
        return done

    def perform(self) -> dict[tuple[str, str, int], str]:
        """
        Run everything that is not finished.

        A run that fails does not end the others.

        Returns:
            for each run that has no results in the end, why.

        Raises:
            ValueError: before anything is run: results of another comparison or made with other settings, configs that
                cannot be, files that are not there.
            KeyboardInterrupt: after the processes were ended.
        """
        check_results(self.plan, self.results)
        done = {run.key for run in self.finished()}
        waiting = [run for run in self.plan.runs() if run.key not in done]
        self.total, self.done = len(done) + len(waiting), len(done)
        check_runs(self.plan, waiting)
        expect_folder(self.results, "--results")
        before = f", {self.done} of them finished before" if self.done else ""
        self.say(f"{self.total} runs{before}; {self.jobs} at a time, {self.threads} threads each")
        try:
            said = time.monotonic()
            while waiting or self.running:
                self._fill(waiting)
                self._collect()
                if self.running and time.monotonic() - said >= self.period:
                    said = time.monotonic()
                    self._report(waiting)
                if self.running:
                    time.sleep(0.2)
        except BaseException:
            self._end_all()
            raise
        return self.failed

    def _fill(self, waiting: list[Run]) -> None:
        """Start runs, the first that can start first, while there is room."""
        while len(self.running) < self.jobs:
            run = next((run for run in waiting if not self._waits(run, waiting)), None)
            if run is None:
                return
            waiting.remove(run)
            try:
                self._start(run)
            except (ValueError, OSError, KeyError) as error:
                self._fail(run, str(error))

    def _waits(self, run: Run, waiting: Iterable[Run]) -> bool:
        """Whether it needs the keep ratio of one that is not done yet; that one is before it in the plan."""
        needed = (run.data_set.name, run.variant.keep_ratio_of, run.seed)
        return needed in [*(item.run.key for item in self.running), *(other.key for other in waiting)]

    def _start(self, run: Run) -> None:
        job = build_job(self.plan, run, self.output, self.results, self.jobs)
        file = job.write()
        environment = {**os.environ}
        for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
            environment[name] = str(self.threads)
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, (_PACKAGE_PARENT, os.environ.get("PYTHONPATH"))))
        with open(file.parent / OUTPUT_FILE, "ab") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "spt_d2.compare.worker", str(file), str(os.getpid())],
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                # Ctrl-C is for this process, which then ends the others.
                start_new_session=True,
            )
        self.running.append(Running(run, job, process))
        goes_on = " goes on" if (file.parent / "last_checkpoint").exists() else ""
        self.say(f"{self._count()} {run.title}{goes_on}: log in {os.path.relpath(file.parent)}")

    def _collect(self) -> None:
        """Take note of runs that ended."""
        for item in [item for item in self.running if item.process.poll() is not None]:
            self.running.remove(item)
            status, took = item.process.returncode, time.monotonic() - item.start
            result = read_result(item.job.results)
            if result is not None:
                self.done += 1
                self.say(f"{self._count()} {item.run.title}: {describe_result(result)}, {duration(took)}")
            elif status == BUSY:
                self._fail(item.run, "another process performs it")
            else:
                # Of an error the log's last line is the message; a process that was killed had no time for one.
                said = _last_line(Path(item.job.output) / OUTPUT_FILE)
                self._fail(item.run, said if status > 0 else f"ended by {signal.Signals(-status).name}")

    def _fail(self, run: Run, why: str) -> None:
        self.failed[run.key] = why
        self.say(f"{self._count()} {run.title}: FAILED: {why}")

    def _report(self, waiting: Iterable[Run]) -> None:
        for item in self.running:
            self.say(f"{self._count()} {item.run.title}: {progress_of(item.job.output)}")
        results = [read_result(result_path(self.results, *run.key)) for run in self.plan.runs()]
        now = time.monotonic()
        under_way = {item.job.output: now - item.start for item in self.running}
        left = estimate_left([result for result in results if result], under_way, list(waiting), self.jobs)
        if left is not None:
            self.say(f"{self._count()} about {duration(left)} left")

    def _count(self) -> str:
        width = len(str(self.total))
        return f"{time.strftime('%H:%M')} [{self.done:{width}}/{self.total}]"

    def _end_all(self) -> None:
        """End the runs under way, with the processes that read their data; they go on from their checkpoints."""
        for item in self.running:
            _signal_group(item.process, signal.SIGTERM)
        for item in self.running:
            try:
                item.process.wait(timeout=10)
            except subprocess.TimeoutExpired:
                _signal_group(item.process, signal.SIGKILL)
                item.process.wait()
        self.running.clear()


def _signal_group(process: subprocess.Popen, number: signal.Signals) -> None:
    try:
        os.killpg(process.pid, number)
    except ProcessLookupError:
        pass


def _last_line(path: Path) -> str:
    """The last words of a log."""
    lines = [line.strip() for line in path.read_text(errors="replace").splitlines() if line.strip()]
    return f"{lines[-1]} ({os.path.relpath(path)})" if lines else f"see {os.path.relpath(path)}"
