"""Training and evaluation from a LazyConfig: the twin of :class:`spt_d2.engine.trainer.Trainer`."""

import argparse
import contextlib
import inspect
import logging
import os
from collections.abc import Iterable, Sequence

from detectron2.config import LazyConfig, instantiate
from detectron2.data import build_detection_train_loader
from detectron2.engine import default_setup, default_writers, hooks
from detectron2.evaluation import inference_on_dataset, print_csv_format
from detectron2.utils import comm
from detectron2.utils.logger import setup_logger
from detectron2.utils.registry import locate
from omegaconf import DictConfig, OmegaConf
from torch import nn

from spt_d2.checkpoint import SelectionCheckpointer
from spt_d2.data import setup_lazy_datasets
from spt_d2.engine.batch_scale import scale_lazy_batch
from spt_d2.engine.ema import EMAHook
from spt_d2.engine.launch import distribute
from spt_d2.engine.optimizer import clip_gradients
from spt_d2.engine.reproducible import IterationSeed, build_resumed_loader, seed_samplers
from spt_d2.engine.setup import available_device
from spt_d2.engine.step import build_step

logger = logging.getLogger(__name__)


def setup_lazy(args: argparse.Namespace) -> DictConfig:
    """The config of a file and its overrides, with its data sets registered; logging and seeds."""
    cfg = load_lazy(args.config_file, args.opts)
    setup_logger(cfg.train.output_dir, distributed_rank=comm.get_rank(), name="spt_d2")
    setup_lazy_datasets(cfg, args.opts)
    scale_lazy_batch(cfg)
    cfg.train.device = available_device(cfg.train.device)
    default_setup(cfg, args)
    return cfg


def load_lazy(config_file: str, overrides: Sequence[str] = ()) -> DictConfig:
    """
    Read a LazyConfig, or the yaml that a run of one leaves in its folder, and apply overrides.

    Args:
        config_file: path of a .py or .yaml file.
        overrides: ``path.key=value`` each.

    Raises:
        ValueError: a yaml config, which is no LazyConfig.
    """
    cfg = LazyConfig.load(config_file)
    if not config_file.endswith(".py") and not (isinstance(cfg, DictConfig) and {"model", "train"} <= set(cfg)):
        raise ValueError(
            f"A LazyConfig expects to be Python here. Got the yaml config {config_file}.\n"
            "HINT: its LazyConfig twin is in projects/SPT/configs, and its own program projects/SPT/train_net.py."
        )
    return LazyConfig.apply_overrides(cfg, list(overrides))


def build_lazy_train_loader(cfg: DictConfig, start_iter: int = 0) -> Iterable[list[dict]]:
    """Batches of ``dataloader.train``, from the one that iteration ``start_iter`` trains on."""
    node, seed = cfg.dataloader.train, OmegaConf.select(cfg, "train.seed", default=-1)
    target = locate(node._target_) if isinstance(node._target_, str) else node._target_
    if seed < 0 or target is not build_detection_train_loader:
        return instantiate(node)
    seed_samplers(seed)
    arguments = {key: instantiate(value) for key, value in node.items() if key != "_target_"}
    return build_resumed_loader(arguments, seed, start_iter)


def evaluate_lazy(cfg: DictConfig, model: nn.Module) -> dict:
    """
    Run ``dataloader.evaluator`` over ``dataloader.test``.

    Its arguments ``output_folder`` and ``backbone``, where it has them and they are None, are given here: a folder in
    ``train.output_dir``, and the model's backbone, whose MACs are counted.

    Returns:
        results by task; empty in processes other than the first, or if the config has no evaluator.
    """
    node = OmegaConf.select(cfg, "dataloader.evaluator")
    if node is None:
        return {}
    arguments = {key: instantiate(value) for key, value in node.items() if key != "_target_"}
    given = {
        "output_folder": os.path.join(cfg.train.output_dir, "inference"),
        "backbone": getattr(getattr(model, "module", model), "backbone", None),
    }
    target = locate(node._target_) if isinstance(node._target_, str) else node._target_
    accepted = inspect.signature(target).parameters
    arguments.update({k: v for k, v in given.items() if k in accepted and arguments.get(k) is None})
    results = inference_on_dataset(model, instantiate(cfg.dataloader.test), target(**arguments))
    print_csv_format(results)
    return results


class LazyTrainer:
    """
    Everything a run needs, from a config with ``model``, ``dataloader``, ``optimizer``, ``lr_multiplier`` and ``train``
    (configs/common/train.py).

    Args:
        cfg: as :func:`setup_lazy` returns it.
    """

    def __init__(self, cfg: DictConfig):
        node = cfg.train
        self.cfg = cfg
        model = instantiate(cfg.model).to(node.device)
        logger.info("Model:\n%s", model)
        cfg.optimizer.params.model = model
        optimizer = instantiate(cfg.optimizer)
        if _enabled(node, "clip_gradients"):
            clip_gradients(optimizer, **_options(node.clip_gradients))
        self.ema = EMAHook(model, node.ema.decay) if _enabled(node, "ema") else None
        self.model = distribute(model, **node.ddp)
        self.trainer = build_step(
            self.model,
            build_lazy_train_loader(cfg),
            optimizer,
            amp=_enabled(node, "amp"),
            precision=OmegaConf.select(node, "amp.precision", default="float16"),
            metric_period=node.log_period,
        )
        self.checkpointer = SelectionCheckpointer(self.model, node.output_dir, ema=self.ema, trainer=self.trainer)
        self.start_iter = 0
        writers = default_writers(node.output_dir, node.max_iter) if comm.is_main_process() else []
        self.trainer.register_hooks(
            [
                IterationSeed(OmegaConf.select(node, "seed", default=-1)),
                hooks.IterationTimer(),
                hooks.LRScheduler(scheduler=instantiate(cfg.lr_multiplier)),
                self.ema,
                hooks.PeriodicCheckpointer(self.checkpointer, **node.checkpointer) if comm.is_main_process() else None,
                hooks.EvalHook(node.eval_period, self.evaluate),
                hooks.PeriodicWriter(writers, node.log_period),
            ]
        )

    def resume_or_load(self, resume: bool) -> None:
        """Go on from the last checkpoint in ``train.output_dir`` if asked to and there is one, else begin anew."""
        self.checkpointer.resume_or_load(self.cfg.train.init_checkpoint, resume=resume)
        if resume and self.checkpointer.has_checkpoint():
            self.start_iter = self.trainer.iter + 1
            self.trainer.reset_data_loader(lambda: build_lazy_train_loader(self.cfg, self.start_iter))

    def evaluate(self) -> dict:
        """:func:`evaluate_lazy` of the average of the weights, where one is kept."""
        with contextlib.nullcontext() if self.ema is None else self.ema.average_weights():
            self.results = evaluate_lazy(self.cfg, self.model)
        return self.results

    def train(self) -> dict:
        """Train, evaluate, and return the last results (empty in processes other than the first)."""
        self.trainer.train(self.start_iter, self.cfg.train.max_iter)
        return self.results


def _enabled(node: DictConfig, key: str) -> bool:
    return bool(OmegaConf.select(node, f"{key}.enabled", default=False))


def _options(node: DictConfig) -> dict:
    return {key: value for key, value in node.items() if key != "enabled"}
