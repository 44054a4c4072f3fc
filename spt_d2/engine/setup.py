"""From a config file and a command line to a config that a run can start from."""

import argparse
import logging
from collections.abc import Sequence

import torch
import yaml
from detectron2.config import CfgNode, get_cfg
from detectron2.engine import default_setup
from detectron2.utils import comm
from detectron2.utils.logger import setup_logger

from spt_d2.config import add_spt_config, validate_spt_config
from spt_d2.data import setup_datasets
from spt_d2.engine.batch_scale import scale_batch, whole_factor_allowed

logger = logging.getLogger(__name__)


def load_config(config_file: str, opts: Sequence[str] = ()) -> CfgNode:
    """
    Read a yaml config and overrides of the command line; register the data sets it names; check it.

    Args:
        config_file: path of a yaml file; empty for the defaults.
        opts: keys and values in turn, such as ``["SOLVER.BASE_LR", "0.001"]``.

    Returns:
        a frozen config.

    Raises:
        ValueError: values that cannot be, each named.
    """
    return _complete(read_config(config_file, opts), opts)


def setup(args: argparse.Namespace) -> CfgNode:
    """:func:`load_config`, then Detectron2's ``default_setup``: logging, seeds, a copy of the config on disk."""
    cfg = read_config(args.config_file, args.opts)
    setup_logger(cfg.OUTPUT_DIR, distributed_rank=comm.get_rank(), name="spt_d2")
    cfg = _complete(cfg, args.opts)
    default_setup(cfg, args)
    return cfg


def read_config(config_file: str, opts: Sequence[str] = ()) -> CfgNode:
    """What a yaml config, with its bases, and a command line say: nothing is checked, and no data set looked for."""
    cfg = get_cfg()
    add_spt_config(cfg)
    if config_file.endswith(".py"):
        raise ValueError(
            f"A config expects yaml here. Got the LazyConfig {config_file}.\n"
            "HINT: its yaml twin is in configs/, and its own program tools/lazyconfig_train_net.py."
        )
    if config_file:
        try:
            with whole_factor_allowed(cfg):
                cfg.merge_from_file(config_file)
        except yaml.YAMLError as error:
            raise ValueError(f"A config expects yaml. Got {config_file}:\n{error}") from error
    with whole_factor_allowed(cfg):
        cfg.merge_from_list(list(opts))
    return cfg


def _complete(cfg: CfgNode, opts: Sequence[str]) -> CfgNode:
    setup_datasets(cfg, list(opts))
    validate_spt_config(cfg)
    scale_batch(cfg)
    cfg.MODEL.DEVICE = available_device(cfg.MODEL.DEVICE)
    cfg.freeze()
    return cfg


def available_device(device: str) -> str:
    """The device asked for, or "cpu" in place of CUDA on a machine that has none."""
    if device.startswith("cuda") and not torch.cuda.is_available():
        logger.warning("Device %r was asked for, and CUDA is not available: running on the CPU.", device)
        return "cpu"
    return device
