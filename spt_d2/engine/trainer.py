"""Detectron2's default trainer with what this project adds to it."""

import contextlib
import logging
import os
import weakref
from collections import OrderedDict
from collections.abc import Iterable

from detectron2.config import CfgNode
from detectron2.data import build_detection_test_loader, build_detection_train_loader
from detectron2.data.build import _train_loader_from_config
from detectron2.engine import DefaultTrainer, HookBase, hooks
from detectron2.engine.train_loop import TrainerBase
from detectron2.evaluation import DatasetEvaluator
from detectron2.modeling import GeneralizedRCNNWithTTA
from detectron2.utils import comm
from detectron2.utils.logger import setup_logger
from torch import nn
from torch.optim import Optimizer
from torch.utils.data import DataLoader

import spt_d2.modeling  # noqa: F401  registers backbones and meta-architectures
from spt_d2.checkpoint import SelectionCheckpointer
from spt_d2.config import classifies
from spt_d2.data import build_mapper
from spt_d2.engine.ema import EMAHook
from spt_d2.engine.evaluators import build_evaluator, detection_tasks
from spt_d2.engine.launch import distribute
from spt_d2.engine.optimizer import build_optimizer
from spt_d2.engine.reproducible import IterationSeed, build_resumed_loader, seed_samplers
from spt_d2.engine.step import build_step
from spt_d2.engine.tta import SelectionTTAMapper

logger = logging.getLogger(__name__)


class Trainer(DefaultTrainer):
    """
    :class:`DefaultTrainer` that reads selection labels, trains in several processes on CPUs too, gathers metrics once
    per ``SOLVER.METRIC_PERIOD``, keeps an average of the weights on request, and evaluates selections.

    With ``SEED`` of at least 0, a run that was stopped and resumed trains on the same images with the same random
    numbers as one that was not (see :mod:`spt_d2.engine.reproducible`).

    Args:
        cfg: a frozen config, as :func:`spt_d2.engine.setup.load_config` returns it.
    """

    def __init__(self, cfg: CfgNode):
        # Not DefaultTrainer's constructor, which cannot wrap a model on the CPU and knows two kinds of steps only.
        TrainerBase.__init__(self)
        if not logging.getLogger("detectron2").isEnabledFor(logging.INFO):
            setup_logger()
        cfg = DefaultTrainer.auto_scale_workers(cfg, comm.get_world_size())
        model = self.build_model(cfg)
        optimizer = self.build_optimizer(cfg, model)
        data_loader = self.build_train_loader(cfg)
        self.ema = EMAHook(model, cfg.MODEL.EMA.DECAY) if cfg.MODEL.EMA.ENABLED else None
        model = distribute(model, broadcast_buffers=False)
        self._trainer = build_step(
            model,
            data_loader,
            optimizer,
            amp=cfg.SOLVER.AMP.ENABLED,
            precision=cfg.SOLVER.AMP.PRECISION,
            metric_period=cfg.SOLVER.METRIC_PERIOD,
        )
        self.scheduler = self.build_lr_scheduler(cfg, optimizer)
        self.checkpointer = SelectionCheckpointer(model, cfg.OUTPUT_DIR, ema=self.ema, trainer=weakref.proxy(self))
        self.start_iter = 0
        self.max_iter = cfg.SOLVER.MAX_ITER
        self.cfg = cfg
        self.register_hooks(self.build_hooks())

    def resume_or_load(self, resume: bool = True) -> None:
        """As Detectron2's; a resumed run then reads on where the other stopped."""
        super().resume_or_load(resume)
        if self.start_iter > 0:
            self._trainer.reset_data_loader(lambda: self.build_train_loader(self.cfg, start_iter=self.start_iter))

    def build_hooks(self) -> list[HookBase | None]:
        """Detectron2's, and seeds, the average of the weights, and writers once per ``SOLVER.METRIC_PERIOD``."""
        period = self.cfg.SOLVER.METRIC_PERIOD
        built: list[HookBase | None] = [IterationSeed(self.cfg.SEED)]
        for hook in super().build_hooks():
            if isinstance(hook, hooks.PeriodicWriter):
                hook = hooks.PeriodicWriter(hook._writers, period)
            elif isinstance(hook, hooks.EvalHook):
                hook = hooks.EvalHook(self.cfg.TEST.EVAL_PERIOD, self._evaluate)
            built.append(hook)
        if self.ema is not None:
            # After the learning rate, before checkpoints and evaluation.
            place = next(i for i, hook in enumerate(built) if isinstance(hook, hooks.LRScheduler)) + 1
            built.insert(place, self.ema)
        return built

    def _evaluate(self) -> dict:
        with contextlib.nullcontext() if self.ema is None else self.ema.average_weights():
            results = self.test(self.cfg, self.model)
            if self.cfg.TEST.AUG.ENABLED and self.iter + 1 >= self.max_iter:
                results.update(self.test_with_TTA(self.cfg, self.model))
        self._last_eval_results = results
        return results

    def train(self) -> dict:
        """Train, evaluate, and return the last results (empty in processes other than the first)."""
        super().train()
        return self._last_eval_results

    @classmethod
    def build_optimizer(cls, cfg: CfgNode, model: nn.Module) -> Optimizer:
        """See :func:`spt_d2.engine.optimizer.build_optimizer`."""
        return build_optimizer(cfg, model)

    @classmethod
    def build_train_loader(cls, cfg: CfgNode, start_iter: int = 0) -> Iterable[list[dict]]:
        """Batches with selection labels, from the one that iteration ``start_iter`` trains on."""
        mapper = build_mapper(cfg, is_train=True)
        if cfg.SEED < 0:
            return build_detection_train_loader(cfg, mapper=mapper)
        seed_samplers(cfg.SEED)
        arguments = _train_loader_from_config(cfg, mapper=mapper)
        return build_resumed_loader(arguments, cfg.SEED, start_iter)

    @classmethod
    def build_test_loader(cls, cfg: CfgNode, dataset_name: str) -> DataLoader:
        """Images with selection labels, which :class:`SelectionEvaluator` compares selections with."""
        return build_detection_test_loader(cfg, dataset_name, mapper=build_mapper(cfg, is_train=False))

    @classmethod
    def build_evaluator(
        cls, cfg: CfgNode, dataset_name: str, output_folder: str | None = None, model: nn.Module | None = None
    ) -> DatasetEvaluator:
        """
        See :func:`spt_d2.engine.evaluators.build_evaluator`.

        Args:
            cfg: a config.
            dataset_name: a registered data set.
            output_folder: for predictions; ``inference`` in ``OUTPUT_DIR`` by default.
            model: whose backbone's MACs are counted from its selections; None leaves MACs out.
        """
        selecting = cfg.MODEL.SPT.RETURN_SELECTIONS and cfg.MODEL.META_ARCHITECTURE.startswith("Selection")
        detects = detection_tasks(cfg.MODEL.MASK_ON, cfg.MODEL.KEYPOINT_ON)
        return build_evaluator(
            dataset_name,
            output_folder or os.path.join(cfg.OUTPUT_DIR, "inference"),
            tasks=("multi_label",) if classifies(cfg) else detects,
            selections=selecting,
            backbone=getattr(model, "backbone", None),
            average_precision=cfg.MODEL.MULTI_LABEL.AVERAGE_PRECISION,
        )

    @classmethod
    def test(
        cls, cfg: CfgNode, model: nn.Module, evaluators: DatasetEvaluator | list[DatasetEvaluator] | None = None
    ) -> dict:
        """As :meth:`DefaultTrainer.test`; its evaluators know the model."""
        if evaluators is None:
            plain = getattr(model, "module", model)
            evaluators = [cls.build_evaluator(cfg, name, model=plain) for name in cfg.DATASETS.TEST]
        return super().test(cfg, model, evaluators)

    @classmethod
    def test_with_TTA(cls, cfg: CfgNode, model: nn.Module) -> dict:
        """
        Evaluate with test-time augmentation (``TEST.AUG``).

        Boxes are merged over flips and sizes, so there is no one selection to evaluate.

        Returns:
            results as :meth:`test` gives them, each name followed by ``_TTA``.
        """
        logger.info("Running inference with test-time augmentation ...")
        augmented = GeneralizedRCNNWithTTA(cfg, model, tta_mapper=SelectionTTAMapper(cfg))
        folder = os.path.join(cfg.OUTPUT_DIR, "inference_TTA")
        tasks = detection_tasks(cfg.MODEL.MASK_ON, cfg.MODEL.KEYPOINT_ON)
        evaluators = [build_evaluator(name, folder, tasks=tasks) for name in cfg.DATASETS.TEST]
        results = cls.test(cfg, augmented, evaluators)
        return OrderedDict((f"{name}_TTA", value) for name, value in results.items())
