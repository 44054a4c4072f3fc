"""Exponential moving average of the weights."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from detectron2.engine import HookBase
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel


class EMAHook(HookBase):
    """
    Keep an average of the weights, and lend it to the model for evaluation and for checkpoints.

    After each step, ``average = decay * average + (1 - decay) * weights``, for every floating-point entry of the state
    dict; other entries are copied. A checkpoint's ``model`` is the average, so that every program that reads it gets
    what was evaluated; the weights being trained lie in the trainer's state, and ``--resume`` puts them back.

    Args:
        model: wrapped for several processes or not; all of them keep the same average.
        decay: per iteration, in [0, 1).
    """

    def __init__(self, model: nn.Module, decay: float):
        if not 0 <= decay < 1:
            raise ValueError(f"EMAHook(decay=) expects a number in [0, 1). Got {decay}.")
        self.decay = decay
        self._model = model.module if isinstance(model, DistributedDataParallel) else model
        self._average: dict[str, Tensor] | None = None
        self._trained: dict[str, Tensor] | None = None

    def before_train(self) -> None:
        """Start from the weights the model has by now: the initial ones or those loaded."""
        if self._average is None:
            self._average = _copy(self._model.state_dict())

    @torch.no_grad()
    def after_step(self) -> None:
        assert self._average is not None
        weights = self._model.state_dict()
        averaged, current = [], []
        for name, average in self._average.items():
            if average.is_floating_point():
                averaged.append(average)
                current.append(weights[name])
            else:
                average.copy_(weights[name])
        torch._foreach_lerp_(averaged, current, 1 - self.decay)

    @contextmanager
    def average_weights(self) -> Iterator[None]:
        """The model has the average inside this context, and the weights being trained again after it."""
        if self._average is None or self._trained is not None:
            yield
            return
        self._trained = _copy(self._model.state_dict())
        try:
            self._write(self._average)
            yield
        finally:
            self._write(self._trained)
            self._trained = None

    @torch.no_grad()
    def _write(self, values: dict[str, Tensor]) -> None:
        for name, tensor in self._model.state_dict().items():
            tensor.copy_(values[name])

    def state_dict(self) -> dict:
        trained = self._trained if self._trained is not None else self._model.state_dict()
        return {"trained": trained}

    def load_state_dict(self, state_dict: dict) -> None:
        """Called when the model has the weights of the checkpoint, which are the average."""
        self._average = _copy(self._model.state_dict())
        self._write(state_dict["trained"])


def _copy(values: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in values.items()}
