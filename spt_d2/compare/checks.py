"""What can be known to go wrong before hours are spent."""

import os
from collections.abc import Iterable

from detectron2.data import MetadataCatalog

from spt_d2.compare.job import run_options, run_settings
from spt_d2.compare.overrides import find_config
from spt_d2.compare.plan import Plan, Run
from spt_d2.engine.setup import load_config


def check_runs(plan: Plan, runs: Iterable[Run]) -> None:
    """
    Load the config of every variant on every data set, and look for the files it names.

    Raises:
        ValueError: one message that names every variant and data set that cannot be.
    """
    problems = {}
    # Seeds make no difference here.
    for (data_set, variant), run in {run.key[:2]: run for run in runs}.items():
        try:
            run_settings(plan, run)
            cfg = load_config(find_config(run.variant.config), run_options(plan, run.data_set, run.variant))
            if len(cfg.DATASETS.TEST) != 1:
                raise ValueError(f"DATASETS.TEST expects one data set. Got {list(cfg.DATASETS.TEST)}.")
            for name in (*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST):
                _expect_data(name)
        except (ValueError, OSError, KeyError) as error:
            problems[f"{data_set} / {variant}"] = str(error)
    if problems:
        listed = "\n".join(f"{where}: {what}" for where, what in problems.items())
        raise ValueError(f"The plan '{plan.name}' cannot be run:\n{listed}")


def _expect_data(name: str) -> None:
    path = MetadataCatalog.get(name).get("json_file")
    if path is not None and not os.path.isfile(path):
        hint = "\nHINT: datasets/make_shapes.py makes it." if name.startswith("shapes_") else ""
        raise ValueError(f"The data set '{name}' expects its json at {path}. There is none.{hint}")
