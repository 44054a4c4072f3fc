"""One door to yaml configs and LazyConfigs, for programs that build, load and evaluate a model but do not train it."""

import contextlib
import copy
import json
import os
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import cast

import torch
from detectron2.config import CfgNode, LazyConfig, instantiate
from detectron2.data import DatasetCatalog
from detectron2.evaluation import inference_on_dataset
from detectron2.modeling import build_model
from omegaconf import DictConfig, OmegaConf
from torch import nn

from spt_d2.checkpoint import SelectionCheckpointer
from spt_d2.data import setup_lazy_datasets
from spt_d2.engine.lazy import evaluate_lazy
from spt_d2.engine.setup import available_device, load_config
from spt_d2.engine.trainer import Trainer


class ModelConfig(ABC):
    """
    A model, its weights and its data, whichever kind of config names them; :func:`open_config` makes one.

    Attributes:
        device: of the config, the CPU in place of CUDA where there is none.
        weights: path of the config's checkpoint; empty for none.
        datasets: names of the data sets of evaluation.
        output_dir: of the config.
    """

    device: str
    weights: str
    datasets: list[str]
    output_dir: str

    @abstractmethod
    def text(self) -> str:
        """The config as resolved, but for where files lie and how they are read: what figures depend on."""

    @abstractmethod
    def build_model(self, device: str | None = None) -> nn.Module:
        """
        The model with initial weights, in evaluation mode.

        Args:
            device: the config's by default; ``meta`` makes a model to count in milliseconds, for it has no weights.
        """

    @abstractmethod
    def evaluate(self, model: nn.Module, dataset: str, output_dir: str) -> dict:
        """Results by task of the model on a data set, selections among them; files go to ``output_dir``."""

    @abstractmethod
    def _inputs(self, dataset: str) -> Sequence[dict]:
        """What the model is given for each image of a data set, read when asked for."""

    def load_model(self, weights: str | None = None) -> nn.Module:
        """
        The model on the config's device with weights, in evaluation mode.

        Args:
            weights: path of a checkpoint; the config's by default.

        Raises:
            ValueError: neither names one: figures of a model that learned nothing would mean nothing.
        """
        weights = self.weights if weights is None else weights
        if not weights:
            raise ValueError(
                "load_model(weights=) expects a checkpoint. Got none, and the config names none.\n"
                "HINT: MODEL.WEIGHTS FILE, or train.init_checkpoint=FILE for a LazyConfig."
            )
        model = self.build_model()
        SelectionCheckpointer(model).load(weights)
        return model.eval()

    def inputs(self, dataset: str, number: int | None = None) -> Iterator[dict]:
        """
        Images of a data set, prepared as for evaluation.

        Args:
            dataset: a registered name.
            number: how many, evenly spread over the data set; all by default, and all if it has fewer.

        Raises:
            KeyError: no data set of that name.
        """
        if dataset not in DatasetCatalog:
            raise KeyError(
                f"inputs(dataset=) expects a registered data set. Got {dataset!r}. "
                "One's own are named in DATASETS.CUSTOM (datasets.custom of a LazyConfig)."
            )
        prepared = self._inputs(dataset)
        total = len(prepared)
        wanted = total if number is None else min(number, total)
        return (prepared[i * total // wanted] for i in range(wanted))


class YamlModelConfig(ModelConfig):
    """
    Args:
        config_file: path of a yaml file.
        opts: keys and values in turn.
    """

    def __init__(self, config_file: str, opts: Sequence[str] = ()):
        self.cfg = load_config(config_file, opts)
        self.device, self.weights = self.cfg.MODEL.DEVICE, self.cfg.MODEL.WEIGHTS
        self.datasets, self.output_dir = list(self.cfg.DATASETS.TEST), self.cfg.OUTPUT_DIR

    def text(self) -> str:
        """See :meth:`ModelConfig.text`."""
        return self._changed("OUTPUT_DIR", "", "MODEL.WEIGHTS", "", "DATALOADER.NUM_WORKERS", 0).dump()

    def _changed(self, *values: object) -> CfgNode:
        cfg = self.cfg.clone()
        cfg.defrost()
        cfg.merge_from_list(list(values))
        return cfg

    def build_model(self, device: str | None = None) -> nn.Module:
        """See :meth:`ModelConfig.build_model`."""
        device = device or self.device
        with _made_on(device):
            return build_model(self._changed("MODEL.DEVICE", device)).eval()

    def evaluate(self, model: nn.Module, dataset: str, output_dir: str) -> dict:
        """See :meth:`ModelConfig.evaluate`."""
        cfg = self._changed("MODEL.SPT.RETURN_SELECTIONS", True)
        if hasattr(model, "return_selections"):
            # mypy takes every attribute of a Module for a Tensor or a Module.
            model.return_selections = True  # type: ignore[assignment]
        evaluator = Trainer.build_evaluator(cfg, dataset, output_dir, model)
        return inference_on_dataset(model, Trainer.build_test_loader(cfg, dataset), evaluator)

    def _inputs(self, dataset: str) -> Sequence[dict]:
        # Detectron2's loader of evaluation goes over a sequence; torch's class of data sets promises none.
        return cast(Sequence[dict], Trainer.build_test_loader(self.cfg, dataset).dataset)


class LazyModelConfig(ModelConfig):
    """
    Args:
        config_file: path of a Python file with ``model``, ``dataloader.test``, ``dataloader.evaluator`` and ``train``.
        opts: ``path.key=value`` each.
    """

    def __init__(self, config_file: str, opts: Sequence[str] = ()):
        self.cfg: DictConfig = LazyConfig.apply_overrides(LazyConfig.load(config_file), list(opts))
        setup_lazy_datasets(self.cfg, opts)
        self.device, self.weights = available_device(self.cfg.train.device), self.cfg.train.init_checkpoint
        names = OmegaConf.select(self.cfg, "dataloader.test.dataset.names") or []
        self.datasets = [names] if isinstance(names, str) else list(names)
        self.output_dir = self.cfg.train.output_dir

    def text(self) -> str:
        """See :meth:`ModelConfig.text`."""
        cfg = copy.deepcopy(self.cfg)
        for key in ("train.output_dir", "train.init_checkpoint", "dataloader.test.num_workers"):
            OmegaConf.update(cfg, key, None)
        return json.dumps(OmegaConf.to_container(cfg, resolve=False), default=_name_of)

    def _on(self, dataset: str) -> DictConfig:
        cfg = copy.deepcopy(self.cfg)
        cfg.dataloader.test.dataset.names = dataset
        return cfg

    def build_model(self, device: str | None = None) -> nn.Module:
        """See :meth:`ModelConfig.build_model`."""
        device = device or self.device
        with _made_on(device):
            return instantiate(self.cfg.model).to(device).eval()

    def evaluate(self, model: nn.Module, dataset: str, output_dir: str) -> dict:
        """See :meth:`ModelConfig.evaluate`."""
        cfg = self._on(dataset)
        if hasattr(model, "return_selections"):
            # mypy takes every attribute of a Module for a Tensor or a Module.
            model.return_selections = True  # type: ignore[assignment]
        cfg.dataloader.evaluator.output_folder = output_dir
        if "selections" in cfg.dataloader.evaluator:
            cfg.dataloader.evaluator.selections = hasattr(model, "return_selections")
        return evaluate_lazy(cfg, model)

    def _inputs(self, dataset: str) -> Sequence[dict]:
        return instantiate(self._on(dataset).dataloader.test).dataset


def _name_of(target: object) -> str:
    """Of a class or function in a LazyConfig; others as they print."""
    return f"{target.__module__}.{target.__qualname__}" if hasattr(target, "__qualname__") else repr(target)


def _made_on(device: str) -> contextlib.AbstractContextManager:
    """Weights are drawn on the CPU, so that a seed means the same everywhere; on the meta device not at all."""
    return torch.device("meta") if device == "meta" else contextlib.nullcontext()


def open_config(config_file: str, opts: Sequence[str] = ()) -> ModelConfig:
    """
    Read a config, yaml or LazyConfig by its suffix, with overrides of the command line.

    Raises:
        FileNotFoundError: no such file.
        ValueError: what :func:`spt_d2.engine.setup.load_config` raises.
    """
    if not os.path.isfile(config_file):
        raise FileNotFoundError(
            f"open_config(config_file=) expects a .yaml or .py file. Got {config_file!r}, which does not exist."
        )
    kind = LazyModelConfig if config_file.endswith(".py") else YamlModelConfig
    return kind(config_file, opts)
