"""Results files of runs that never were, with numbers that can be checked by hand."""

from spt_d2.compare.results import result_path
from spt_d2.summary import write_summary

DATA_SETS, VARIANTS = ("shapes", "plates"), ("dense", "spt")


def result(data_set="shapes", variant="dense", seed=0, box=40.0, segm=None, **changes):
    """A result as a worker writes it."""
    keep = None if variant == "dense" else 0.25
    return {
        "plan": "made_up",
        "reference": "dense",
        "data_set": data_set,
        "variant": variant,
        "seed": seed,
        "order": [DATA_SETS.index(data_set), VARIANTS.index(variant) if variant in VARIANTS else 2],
        "config": f"{variant}.yaml",
        "overrides": {},
        "keep_ratio_of": None,
        "weights": "",
        "budget": {"max_iter": 100, "minutes": None},
        "box": {"AP": box, "AP50": box + 20, "AP75": box - 5, "APs": box - 10, "APm": box, "APl": None},
        "segm": {} if segm is None else {"AP": segm, "AP50": segm + 20, "APs": 1.0, "APm": 2.0, "APl": 3.0},
        "selection": {"keep_ratio": keep, "retention": keep and 0.9, "density": keep and 0.4, "by_stage": {}},
        "macs_g": {"executed": 2.0 if variant == "dense" else 1.5, "useful": 1.25, "dense": 2.0},
        "parameters": {"backbone": 3_100_000, "model": 4_300_000},
        "commit": "0123456789abcdef",
        "machine": {
            "processor": "A Processor", "cores": 2, "threads": 1, "torch": "2.10.0", "device": "cpu",
            "concurrent_runs": 2,
        },
        "date": "2026-01-02T03:04:05Z",
        "iterations": 100,
        "seconds_per_iteration": 0.5,
        "train_seconds": 60.0,
        "forward_ms": 40.0,
        "peak_memory_mb": 1000.0,
        "session_seconds": 70.0,
        **changes,
    }  # fmt: skip


def write(folder, results):
    """One file each; returns the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for r in results:
        write_summary(result_path(folder, r["data_set"], r["variant"], r["seed"]), r)
    return folder
