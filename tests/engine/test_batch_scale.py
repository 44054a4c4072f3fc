"""Another batch size by one key, in yaml and LazyConfig: the same images are seen, the rate follows the batch."""

import argparse
from pathlib import Path

import pytest
import yaml
from detectron2.config import LazyConfig, get_cfg
from detectron2.engine import DefaultTrainer
from omegaconf import OmegaConf

from spt_d2 import get_config
from spt_d2.config import add_spt_config
from spt_d2.engine.batch_scale import scale_batch, scale_lazy_batch
from spt_d2.engine.lazy import setup_lazy
from spt_d2.engine.setup import load_config

from .conftest import ROOT

NAME = "COCO-InstanceSegmentation/mask_rcnn_spt_t_fpn_3x"
KEYS = ("IMS_PER_BATCH", "BASE_LR", "BASE_LR_END", "MAX_ITER", "STEPS", "WARMUP_ITERS", "CHECKPOINT_PERIOD")


def scaled(factor: float) -> dict:
    cfg = get_config(f"{NAME}.yaml")
    cfg.SOLVER.BATCH_SCALE = factor
    cfg.SOLVER.BASE_LR_END = 0.00001
    scale_batch(cfg)
    assert cfg.SOLVER.BATCH_SCALE == 1.0
    return {**{key: cfg.SOLVER[key] for key in KEYS}, "EVAL_PERIOD": cfg.TEST.EVAL_PERIOD}


def test_a_quarter_of_the_batch_by_hand() -> None:
    assert scaled(0.25) == {
        "IMS_PER_BATCH": 4, "BASE_LR": pytest.approx(2.5e-5), "BASE_LR_END": pytest.approx(2.5e-6),
        "MAX_ITER": 1080000, "STEPS": (810000, 990000), "WARMUP_ITERS": 2000,
        "CHECKPOINT_PERIOD": 20000, "EVAL_PERIOD": 30000,
    }  # fmt: skip


@pytest.mark.parametrize("factor", [0.125, 0.5, 2.0, 3.0])
def test_it_is_detectron2s_scaling_by_the_number_of_gpus(factor: float) -> None:
    cfg = get_config(f"{NAME}.yaml")
    cfg.SOLVER.REFERENCE_WORLD_SIZE = 8
    theirs = DefaultTrainer.auto_scale_workers(cfg, int(8 * factor))
    ours = scaled(factor)
    for key in KEYS:
        if key != "BASE_LR_END":
            assert ours[key] == pytest.approx(theirs.SOLVER[key], rel=1e-12), key
    assert ours["EVAL_PERIOD"] == theirs.TEST.EVAL_PERIOD


def test_a_period_becomes_no_0_and_one_that_is_off_stays_off() -> None:
    cfg = get_config(f"{NAME}.yaml")
    cfg.SOLVER.BATCH_SCALE, cfg.SOLVER.CHECKPOINT_PERIOD, cfg.TEST.EVAL_PERIOD = 8.0, 3, 0
    scale_batch(cfg)
    assert (cfg.SOLVER.CHECKPOINT_PERIOD, cfg.TEST.EVAL_PERIOD) == (1, 0)


def test_one_changes_nothing() -> None:
    cfg = get_config(f"{NAME}.yaml")
    before = cfg.dump()
    scale_batch(cfg)
    assert cfg.dump() == before


@pytest.mark.parametrize("factor", [0.3, 0.01, -1.0])
def test_a_factor_that_cuts_an_image_in_two_is_refused(factor: float) -> None:
    cfg = get_cfg()
    add_spt_config(cfg)
    cfg.SOLVER.BATCH_SCALE = factor
    with pytest.raises(ValueError, match=r"SOLVER.BATCH_SCALE expects .* whole images of the config's 16"):
        scale_batch(cfg)


def test_the_command_line_applies_it_once(tmp_path: Path) -> None:
    cfg = load_config(str(ROOT / "configs" / f"{NAME}.yaml"), ["SOLVER.BATCH_SCALE", "0.5"])
    assert (cfg.SOLVER.IMS_PER_BATCH, cfg.SOLVER.MAX_ITER) == (8, 540000)
    saved = tmp_path / "config.yaml"
    saved.write_text(cfg.dump())
    assert yaml.safe_load(saved.read_text())["SOLVER"]["BATCH_SCALE"] == 1.0
    again = load_config(str(saved))
    assert (again.SOLVER, again.TEST) == (cfg.SOLVER, cfg.TEST)


@pytest.mark.parametrize("factor", [2, 2.0, 1, 0.5])
def test_whole_numbers_are_factors_too_in_yaml_and_on_the_command_line(factor: float, tmp_path: Path) -> None:
    base = ROOT / "configs" / f"{NAME}.yaml"
    mine = tmp_path / "mine.yaml"
    mine.write_text(yaml.safe_dump({"_BASE_": str(base), "SOLVER": {"BATCH_SCALE": factor}}))
    batch, iterations = round(16 * factor), round(270000 / factor)
    # Whatever the file says, the command line says it last.
    other = tmp_path / "other.yaml"
    other.write_text(yaml.safe_dump({"_BASE_": str(base), "SOLVER": {"BATCH_SCALE": 4}}))
    for file, opts in (
        (mine, []),
        (base, ["SOLVER.BATCH_SCALE", str(factor)]),
        (other, ["SOLVER.BATCH_SCALE", factor]),
    ):
        cfg = load_config(str(file), opts)
        assert (cfg.SOLVER.IMS_PER_BATCH, cfg.SOLVER.MAX_ITER, cfg.SOLVER.BATCH_SCALE) == (batch, iterations, 1.0)


@pytest.mark.parametrize("factor", ["half", True, [2]])
def test_a_factor_that_is_no_number_is_refused(factor: object, tmp_path: Path) -> None:
    mine = tmp_path / "mine.yaml"
    mine.write_text(yaml.safe_dump({"SOLVER": {"BATCH_SCALE": factor}}))
    for file, opts in ((str(mine), []), ("", ["SOLVER.BATCH_SCALE", str(factor)])):
        with pytest.raises(ValueError, match="SOLVER.BATCH_SCALE expects a number. Got"):
            load_config(file, opts)


def test_a_lazy_config_is_scaled_as_its_yaml_twin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("spt_d2.engine.lazy.default_setup", lambda cfg, args: None)
    monkeypatch.setattr("spt_d2.engine.lazy.setup_logger", lambda *args, **kwargs: None)
    leaf = ROOT / "projects" / "SPT" / "configs" / f"{NAME}.py"
    args = argparse.Namespace(config_file=str(leaf), opts=["train.batch_scale=0.25", f"train.output_dir={tmp_path}"])
    lazy, twin = setup_lazy(args), scaled(0.25)
    assert lazy.dataloader.train.total_batch_size == twin["IMS_PER_BATCH"]
    assert lazy.optimizer.lr == pytest.approx(twin["BASE_LR"])
    assert lazy.optimizer.params.base_lr == lazy.optimizer.lr
    assert (lazy.train.max_iter, lazy.train.eval_period) == (twin["MAX_ITER"], twin["EVAL_PERIOD"])
    assert lazy.train.checkpointer.period == twin["CHECKPOINT_PERIOD"]
    assert lazy.lr_multiplier == LazyConfig.load(str(leaf)).lr_multiplier
    assert lazy.lr_multiplier.warmup_length * lazy.train.max_iter == pytest.approx(twin["WARMUP_ITERS"])
    before = OmegaConf.to_container(lazy.train)
    scale_lazy_batch(lazy)
    assert OmegaConf.to_container(lazy.train) == before
