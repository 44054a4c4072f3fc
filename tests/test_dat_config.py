"""What MODEL.DAT may be."""

from typing import Any

import pytest

from tests.test_config import make_cfg, named, put

CASES: dict[str, tuple[list, list]] = {
    "DEFORMABLE_STAGES": ([[], [0], [5], [3, 5]], [[4], [3, 4], (3,)]),
    "GROUPS": ([[1, 1, 3], [1, 1, 0, 6], [1, 1, 5, 6]], [[7, 7, 3, 6], [1, 1, 1, 1]]),
    "OFFSET_KERNELS": ([[9, 7, 5], [9, 7, 4, 3], [9, 7, 5, 0]], [[1, 1, 1, 1]]),
    "OFFSET_STRIDES": ([[8, 4, 2], [8, 4, 2, 0]], [[1, 1, 1, 1], [8, 4, 3, 9]]),
    "OFFSET_RANGE": ([-1.0, -0.1], [0.0, 0.5]),
    "PRETRAIN_IMAGE_SIZE": ([0, -224], [1, 384]),
    "DROP_PATH_RATE": ([1.0], [0.99]),
    "WINDOW_SIZE": ([0], [1]),
}


@pytest.mark.parametrize("key, bad", [(key, value) for key, (values, _) in CASES.items() for value in values])
@pytest.mark.parametrize("backbone", ["build_dat_fpn_backbone", "build_spt_fpn_backbone"])
def test_a_value_that_cannot_be_is_named_and_no_other(backbone: str, key: str, bad: Any) -> None:
    cfg = make_cfg(backbone)
    put(cfg, f"MODEL.DAT.{key}", bad)
    assert set(named(cfg)) == {f"MODEL.DAT.{key}"}


@pytest.mark.parametrize("key, good", [(key, value) for key, (_, values) in CASES.items() for value in values])
def test_a_value_at_the_border_of_what_can_be_is_accepted(key: str, good: Any) -> None:
    cfg = make_cfg("build_dat_fpn_backbone")
    put(cfg, f"MODEL.DAT.{key}", good)
    assert named(cfg) == []


def test_fewer_stages_have_fewer_values() -> None:
    cfg = make_cfg("build_dat_backbone")
    node = cfg.MODEL.DAT
    node.DEPTHS, node.NUM_HEADS, node.OUT_FEATURES = [2, 2, 2], [3, 6, 12], ["res2", "res3", "res4"]
    assert set(named(cfg)) == {
        f"MODEL.DAT.{key}" for key in ("DEFORMABLE_STAGES", "GROUPS", "OFFSET_KERNELS", "OFFSET_STRIDES")
    }
    node.DEFORMABLE_STAGES, node.GROUPS, node.OFFSET_KERNELS, node.OFFSET_STRIDES = [3], [1, 1, 3], [9, 7, 5], [8, 4, 2]
    assert named(cfg) == []


def test_no_labels_are_asked_for() -> None:
    cfg = make_cfg("build_dat_fpn_backbone")
    cfg.INPUT.SPT.STRIDES = []
    assert named(cfg) == []
