"""A dataset dict's quick copy is a deep copy."""

import copy
from multiprocessing.reduction import ForkingPickler

import numpy as np
import pytest
import torch

pytest.importorskip("detectron2", reason="detectron2 is not installed")
from detectron2.structures import BoxMode

from spt_d2.data.copying import DatasetDict, SmallTensors


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


def test_small_tensors_go_between_processes_by_value():
    base = torch.arange(60, dtype=torch.uint8).view(6, 10)
    given = SmallTensors({8: base, 16: base[::2, ::2], 32: torch.zeros(0, 3, dtype=torch.uint8)})
    message = bytes(ForkingPickler.dumps(given))
    # As torch sends a tensor, it would be the name of a piece of shared memory.
    assert base.numpy().tobytes() in message and b"rebuild_storage" not in message and not base.is_shared()
    assert b"rebuild_storage" in bytes(ForkingPickler.dumps(dict(given)))
    for copied in (ForkingPickler.loads(message), copy.deepcopy(given)):
        assert type(copied) is SmallTensors and list(copied) == [8, 16, 32]
        for stride, tensor in given.items():
            assert torch.equal(copied[stride], tensor) and copied[stride].dtype == torch.uint8
        copied[8] += 1
        assert base[0, 0] == 0, "the copy shares the memory"
