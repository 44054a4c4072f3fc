"""One training step under automatic mixed precision, on any device."""

import time
from collections.abc import Iterable

import torch
from detectron2.engine import SimpleTrainer
from torch import nn
from torch.optim import Optimizer

PRECISIONS = {"float16": torch.float16, "bfloat16": torch.bfloat16}


class AutocastTrainer(SimpleTrainer):
    """
    :class:`SimpleTrainer` with the forward pass under autocast.

    Detectron2's ``AMPTrainer`` runs on CUDA only, and scales gradients in bfloat16 too, which has no need of it.

    Args:
        model: on its device; a dict of losses in training.
        data_loader: of training batches.
        optimizer: of the model.
        precision: ``float16`` (CUDA only; gradients are scaled) or ``bfloat16``.
        gather_metric_period: iterations between two gatherings of losses.

    Raises:
        ValueError: a precision that the model's device cannot train in.
    """

    def __init__(
        self,
        model: nn.Module,
        data_loader: Iterable[list[dict]],
        optimizer: Optimizer,
        *,
        precision: str = "float16",
        gather_metric_period: int = 1,
    ):
        super().__init__(model, data_loader, optimizer, gather_metric_period)
        device = next(model.parameters()).device.type
        if precision not in PRECISIONS:
            raise ValueError(f"AutocastTrainer(precision=) expects one of {tuple(PRECISIONS)}. Got {precision!r}.")
        if precision == "float16" and device != "cuda":
            raise ValueError(
                f"Mixed precision in float16 expects a CUDA device. The model is on {device!r}.\n"
                "HINT: SOLVER.AMP.PRECISION bfloat16 (train.amp.precision=bfloat16) runs there."
            )
        self.device_type = device
        self.precision = PRECISIONS[precision]
        # Disabled for bfloat16, whose exponents are those of float32: it then hands everything through.
        self.grad_scaler = torch.amp.GradScaler(device, enabled=precision == "float16")

    def run_step(self) -> None:
        """Forward under autocast, backward, metrics, step."""
        start = time.perf_counter()
        data = next(self._data_loader_iter)
        data_time = time.perf_counter() - start
        with torch.autocast(self.device_type, self.precision):
            losses = self.model(data)
            total = sum(losses.values())
        self.optimizer.zero_grad()
        self.grad_scaler.scale(total).backward()
        self.after_backward()
        self._write_metrics(losses, data_time)
        # Explicit, for a fused optimizer would unscale inside its step, after the gradients were clipped.
        self.grad_scaler.unscale_(self.optimizer)
        self.grad_scaler.step(self.optimizer)
        self.grad_scaler.update()

    def state_dict(self) -> dict:
        return {**super().state_dict(), "grad_scaler": self.grad_scaler.state_dict()}

    def load_state_dict(self, state_dict: dict) -> None:
        super().load_state_dict(state_dict)
        scaler = state_dict.get("grad_scaler")
        if scaler:
            self.grad_scaler.load_state_dict(scaler)


def build_step(
    model: nn.Module,
    data_loader: Iterable[list[dict]],
    optimizer: Optimizer,
    *,
    amp: bool,
    precision: str,
    metric_period: int,
) -> SimpleTrainer:
    """
    What makes one training step.

    Args:
        model, data_loader, optimizer: see :class:`AutocastTrainer`.
        amp: whether the forward pass runs under autocast.
        precision: of autocast.
        metric_period: iterations between two gatherings of losses; each waits for the device.
    """
    if amp:
        return AutocastTrainer(model, data_loader, optimizer, precision=precision, gather_metric_period=metric_period)
    return SimpleTrainer(model, data_loader, optimizer, metric_period)
