"""What a run reads has to be there before anything of an earlier run is removed."""

import os
from collections.abc import Sequence
from pathlib import Path

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog

from spt_d2.data.coco_json import find_coco


def expect_data(cfg: CfgNode) -> None:
    """
    See that there are data sets to train on and to evaluate on, registered and with their json files in place.

    Raises:
        ValueError: none named.
        FileNotFoundError: one that is not registered, or whose json is not there.
    """
    for key, purpose in (("TRAIN", "to train on"), ("TEST", "to evaluate on and to draw")):
        if not cfg.DATASETS[key]:
            raise ValueError(
                f"DATASETS.{key} expects a data set {purpose}. Got none.\n"
                "HINT: projects/SPT/train_net.py, unlike the demo, trains without an evaluation, too."
            )
        for name in cfg.DATASETS[key]:
            if name not in DatasetCatalog and os.path.isfile(name):
                raise ValueError(
                    f"DATASETS.{key} expects names of data sets. Got the file {name}.\n"
                    "HINT: DATASETS.CUSTOM names a json and its image folder."
                )
            # What is registered without a json has files that only its own reader knows.
            if name not in DatasetCatalog or MetadataCatalog.get(name).get("json_file") is not None:
                find_coco(name)


def expect_weights(path: str) -> None:
    """
    See that a checkpoint is there.

    Args:
        path: ``MODEL.WEIGHTS``: empty for none. Addresses, such as ``detectron2://...``, are not looked at, nor is what
            stands behind a question mark, which Detectron2 takes for options.

    Raises:
        FileNotFoundError: no such file.
    """
    if path and "://" not in path and not os.path.isfile(path.partition("?")[0]):
        raise FileNotFoundError(f"MODEL.WEIGHTS expects a checkpoint. There is no file {path}.")


def expect_kept(removed: Sequence[Path], files: Sequence[str]) -> None:
    """
    See that no file that a run reads is among those that it begins by removing.

    Args:
        removed: files and folders.
        files: paths; empty ones are passed over.

    Raises:
        ValueError: one is.
    """
    gone = [path.resolve() for path in removed]
    for file in filter(None, files):
        path = Path(file).resolve()
        if any(path.is_relative_to(each) for each in gone):
            raise ValueError(
                f"A run expects its output folder to hold nothing that it reads. Got {path}, which belongs to an "
                "earlier run there and would be removed.\n"
                "HINT: choose another output folder, or go on with that run by --resume."
            )
