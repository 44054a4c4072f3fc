"""What the terminal says of a comparison under way: how far each run is, what came out, the time that is left."""

from collections.abc import Mapping, Sequence

from spt_d2.compare.plan import Run
from spt_d2.compare.recorder import read_progress
from spt_d2.compare.results import Result


def progress_of(output: str) -> str:
    """Where a run is, in words; ``output`` is its folder."""
    progress = read_progress(output)
    if progress is None:
        return "starting"
    words = f"iteration {progress['done']} of {progress['max_iter']}"
    if progress["done"] == progress["max_iter"]:
        return f"{words}, evaluating"
    return f"{words}, {progress['seconds']:.2f} s each" if progress["seconds"] else words


def describe_result(result: Result) -> str:
    """The figure that matters most, and what it cost."""
    words = [f"box AP {_number(result['box'].get('AP'), 1)}"]
    if result["segm"]:
        words.append(f"mask AP {_number(result['segm'].get('AP'), 1)}")
    if result["selection"]["keep_ratio"] is not None:
        words.append(f"keep ratio {result['selection']['keep_ratio']:.2f}")
    words.append(f"{_number(result['macs_g']['executed'], 2)} GMACs")
    return ", ".join(words)


def estimate_left(
    results: Sequence[Result], under_way: Mapping[str, float], waiting: Sequence[Run], jobs: int
) -> float | None:
    """
    Seconds until everything is done, or None where nothing is known yet.

    Args:
        results: of the runs that are finished.
        under_way: seconds that each run has taken so far, by its folder.
        waiting: runs not started.
        jobs: runs at a time.
    """
    whole: dict[str, float] = {}
    for folder, seconds in under_way.items():
        progress = read_progress(folder)
        if progress and progress["seconds"]:
            left = progress["seconds"] * (progress["max_iter"] - progress["done"])
            whole[folder] = seconds + left
    known = [_seconds(result) for result in results] or list(whole.values())
    if not known:
        return None
    mean = sum(known) / len(known)
    by_data_set: dict[str, list[float]] = {}
    for result in results:
        by_data_set.setdefault(result["data_set"], []).append(_seconds(result))
    of_set = {name: sum(seconds) / len(seconds) for name, seconds in by_data_set.items()}
    left = [max(0.0, whole.get(folder, mean) - seconds) for folder, seconds in under_way.items()]
    left += [of_set.get(run.data_set.name, mean) for run in waiting]
    return max(sum(left) / jobs, max(left, default=0.0))


def _seconds(result: Result) -> float:
    """A run's, evaluation included where it ran in one session."""
    return max(result["session_seconds"], result["train_seconds"])


def _number(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"
