"""What can be known to go wrong before hours are spent."""

import os
from collections.abc import Iterable

from detectron2.data import DatasetCatalog, MetadataCatalog

from spt_d2.compare.job import run_options, run_settings
from spt_d2.compare.overrides import find_config
from spt_d2.compare.plan import Plan, Run
from spt_d2.compare.results import ONE_FOLDER_EACH, results_in
from spt_d2.config import classifies
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
            if classifies(cfg):
                raise ValueError(
                    "A comparison is of the AP of boxes and masks, and expects a detector in MODEL.META_ARCHITECTURE. "
                    f"Got {cfg.MODEL.META_ARCHITECTURE!r}.\n"
                    "HINT: projects/SPT/train_net.py trains a classifier, and reports its mAP."
                )
            if len(cfg.DATASETS.TEST) != 1:
                raise ValueError(f"DATASETS.TEST expects one data set. Got {list(cfg.DATASETS.TEST)}.")
            for name in (*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST):
                _expect_data(name)
        # A key that no config has is an AssertionError of yacs.
        except (ValueError, OSError, KeyError, AssertionError) as error:
            problems[f"{data_set} / {variant}"] = str(error)
    if problems:
        listed = "\n".join(f"{where}: {what}" for where, what in problems.items())
        raise ValueError(f"The plan '{plan.name}' cannot be run:\n{listed}")


def check_results(plan: Plan, folder: str | os.PathLike[str]) -> None:
    """
    Look at whose results a folder holds: all that lie there are reported together.

    Raises:
        ValueError: those of another plan, of another reference, or of variants that the plan does not have.
    """
    configs = {variant.name: variant.config for variant in plan.variants}
    others = dict.fromkeys(
        f"{result['plan']} / {result['variant']} ({result['config']}; reference {result['reference']})"
        for result in results_in(folder)
        if (result["plan"], result["reference"]) != (plan.name, plan.reference)
        or configs.get(result["variant"]) != result["config"]
    )
    if others:
        listed = "\n".join(f"  {other}" for other in others)
        raise ValueError(
            f"{os.fspath(folder)} expects results of the plan '{plan.name}' with the reference '{plan.reference}' and "
            f"of its variants {list(configs)}. Got those of:\n{listed}\n{ONE_FOLDER_EACH}"
        )


def _expect_data(name: str) -> None:
    if name not in DatasetCatalog:
        raise ValueError(
            f"DATASETS.TRAIN and TEST expect registered data sets. Got {name!r}.\n"
            "HINT: a plan names the folder of a set of one's own in 'folder'; without one, --dataset NAME=FOLDER does."
        )
    path = MetadataCatalog.get(name).get("json_file")
    if path is not None and not os.path.isfile(path):
        hint = "\nHINT: datasets/make_shapes.py makes it." if name.startswith("shapes_") else ""
        raise ValueError(f"The data set '{name}' expects its json at {path}. There is none.{hint}")
