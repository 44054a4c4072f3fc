"""A dataset dict's quick copy is a deep copy."""

import copy

import numpy as np
import pytest

pytest.importorskip("detectron2", reason="detectron2 is not installed")
from detectron2.structures import BoxMode

from spt_d2.data.copying import DatasetDict


def example() -> dict:
    return {
        "file_name": "a.jpg",
        "height": 4,
        "annotations": [
            {
                "bbox": [1.0, 2, 3.0, 4.0],
                "bbox_mode": BoxMode.XYWH_ABS,
                "segmentation": [[1.0, 2.0, 3.0, 4.0, 5.0, 6.0], np.arange(6.0)],
                "keypoints": [],
                "mixed": [1, [2, 3], {"four": [4]}],
            },
            {"segmentation": {"size": [4, 4], "counts": [16]}, "iscrowd": 1},
        ],
        "mask": np.zeros((2, 2)),
    }


def containers(value: object) -> list[object]:
    """Everything in it that can be changed."""
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    own = [value] if isinstance(value, (dict, list, np.ndarray)) else []
    return own + [container for part in parts for container in containers(part)]


def test_it_equals_a_deep_copy_and_shares_nothing_that_can_be_changed():
    given = example()
    copied = copy.deepcopy(DatasetDict(given))
    assert type(copied) is dict and repr(copied) == repr(copy.deepcopy(given))
    assert copied["annotations"][0]["bbox_mode"] is BoxMode.XYWH_ABS
    shared = {id(part) for part in containers(given)} & {id(part) for part in containers(copied)}
    assert len(containers(given)) == len(containers(copied)) > 10 and not shared
