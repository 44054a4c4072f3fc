"""Keys of DynamicSwin: what is refused, and where."""

from typing import Any

import pytest

from tests.modeling.nano import nano_cfg

from spt_d2.config import validate_spt_config  # isort: skip

BAD: dict[str, tuple[dict[str, Any], str]] = {
    "no predictor": ({"PREDICTOR_BLOCKS": []}, "PREDICTOR_BLOCKS expects ascending numbers of 0 to 1"),
    "a predictor after the stage": ({"PREDICTOR_BLOCKS": [1, 2]}, "PREDICTOR_BLOCKS expects"),
    "predictors out of order": ({"PREDICTOR_BLOCKS": [1, 0]}, "PREDICTOR_BLOCKS expects"),
    "a last ratio of nothing": ({"KEEP_RATIO": 0.2}, "KEEP_RATIO expects a fraction in (0.2, 1] for 2 predictors"),
    "more than everything": ({"KEEP_RATIO": 1.1}, "KEEP_RATIO expects"),
    "a negative ratio loss": ({"RATIO_WEIGHT": -1.0}, "RATIO_WEIGHT expects a weight of at least 0"),
    "a negative distillation": ({"DISTILL_WEIGHT": -1.0}, "DISTILL_WEIGHT expects a weight of at least 0"),
    "heads that do not divide": ({"NUM_HEADS": [3, 2, 2, 4]}, "NUM_HEADS expects divisors"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_cannot_be_is_told_by_its_key_and_alone(case: str) -> None:
    values, message = BAD[case]
    cfg = nano_cfg("build_dynamic_swin_fpn_backbone")
    cfg.MODEL.DYNAMIC_SWIN.update(values)
    with pytest.raises(ValueError, match="The config is not valid") as error:
        validate_spt_config(cfg)
    (problem,) = str(error.value).splitlines()[1:]
    assert problem.startswith(f"  MODEL.DYNAMIC_SWIN.{message}")


def test_a_teacher_asks_for_the_last_map() -> None:
    cfg = nano_cfg("build_dynamic_swin_backbone")
    cfg.MODEL.DYNAMIC_SWIN.OUT_FEATURES = ["res4"]
    validate_spt_config(cfg)
    cfg.MODEL.DYNAMIC_SWIN.TEACHER_WEIGHTS = "dense.pth"
    with pytest.raises(ValueError, match="DYNAMIC_SWIN.OUT_FEATURES expects res5"):
        validate_spt_config(cfg)


def test_places_that_do_not_fit_are_of_no_concern_to_another_backbone() -> None:
    cfg = nano_cfg("build_swin_fpn_backbone")
    cfg.MODEL.DYNAMIC_SWIN.PREDICTOR_BLOCKS = [99]
    validate_spt_config(cfg)


@pytest.mark.parametrize("values", [{"KEEP_RATIO": 1.0}, {"KEEP_RATIO": 0.21}, {"PREDICTOR_BLOCKS": [1]}], ids=str)
def test_values_at_the_border_of_what_can_be_are_accepted(values: dict[str, Any]) -> None:
    cfg = nano_cfg("build_dynamic_swin_fpn_backbone")
    cfg.MODEL.DYNAMIC_SWIN.update(values)
    validate_spt_config(cfg)


def test_decisions_are_judged_at_the_stride_of_stage_3() -> None:
    cfg = nano_cfg("build_dynamic_swin_fpn_backbone")
    cfg.INPUT.SPT.STRIDES = [16]
    validate_spt_config(cfg)
    cfg.INPUT.SPT.STRIDES = [8, 32]
    with pytest.raises(ValueError, match=r"INPUT.SPT.STRIDES expects the strides \[16\]"):
        validate_spt_config(cfg)
