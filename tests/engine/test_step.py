"""One training step under mixed precision, and how often metrics are gathered."""

from unittest import mock

import pytest
import torch
from detectron2.utils.events import EventStorage
from torch import nn

from spt_d2.engine.optimizer import clip_gradients
from spt_d2.engine.step import AutocastTrainer, build_step


class Net(nn.Module):
    """Two losses of a linear layer; remembers the precision it ran in."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, batch: torch.Tensor) -> dict[str, torch.Tensor]:
        y = self.layer(batch)
        self.precision = y.dtype
        return {"loss_a": y.float().square().mean(), "loss_b": y.float().abs().mean()}


def make_trainer(period: int = 1, **options: object):
    torch.manual_seed(0)
    model = Net()
    batches = [torch.randn(2, 4) for _ in range(20)]
    settings = {"amp": False, "precision": "bfloat16", "metric_period": period, **options}
    return build_step(model, batches, torch.optim.SGD(model.parameters(), lr=0.1), **settings)


def run(trainer, iterations: int) -> EventStorage:
    with EventStorage(0) as storage:
        for trainer.iter in range(iterations):
            storage.iter = trainer.iter
            trainer.run_step()
    return storage


@pytest.mark.parametrize("amp", [False, True])
def test_metrics_are_gathered_once_per_period(amp: bool) -> None:
    trainer = make_trainer(period=5, amp=amp)
    items = mock.Mock(side_effect=torch.Tensor.tolist)
    with (
        mock.patch("detectron2.utils.comm.gather", side_effect=lambda data: [data]) as gather,
        mock.patch.object(torch.Tensor, "item", lambda tensor: items(tensor)),
    ):
        storage = run(trainer, 12)
    assert gather.call_count == 2
    # Nothing else reads a number off the device: one for each of two losses, twice.
    assert items.call_count == 4
    assert [iteration for _, iteration in storage.history("loss_a").values()] == [4, 9]


def test_bfloat16_runs_on_the_cpu_close_to_float32_and_keeps_float32_weights() -> None:
    plain, mixed = make_trainer(), make_trainer(amp=True)
    run(plain, 10)
    run(mixed, 10)
    assert (plain.model.precision, mixed.model.precision) == (torch.float32, torch.bfloat16)
    assert mixed.model.layer.weight.dtype == torch.float32
    assert not torch.equal(mixed.model.layer.weight, plain.model.layer.weight)
    torch.testing.assert_close(mixed.model.layer.weight, plain.model.layer.weight, atol=0.02, rtol=0.05)


def test_float16_on_the_cpu_is_refused_with_the_cure() -> None:
    with pytest.raises(ValueError, match="float16 expects a CUDA device(.|\n)*bfloat16"):
        make_trainer(amp=True, precision="float16")
    with pytest.raises(ValueError, match="precision=.*'float8'"):
        make_trainer(amp=True, precision="float8")


@pytest.mark.parametrize("fused", [False, True])
def test_scaled_gradients_are_clipped_unscaled(fused: bool) -> None:
    """A fused optimizer would unscale inside its step, after the clipping, if the trainer had not done so before."""
    weights = []
    for scaled in (False, True):
        torch.manual_seed(0)
        model = Net()
        optimizer = clip_gradients(torch.optim.SGD(model.parameters(), lr=1.0, fused=fused), "full_model", 0.01)
        trainer = AutocastTrainer(model, [torch.randn(2, 4)] * 2, optimizer, precision="bfloat16")
        if scaled:
            trainer.grad_scaler = torch.amp.GradScaler("cpu", init_scale=4096.0)
        before = nn.utils.parameters_to_vector(model.parameters()).detach()
        run(trainer, 1)
        weights.append(nn.utils.parameters_to_vector(model.parameters()).detach())
        assert (weights[-1] - before).norm().item() == pytest.approx(0.01, rel=1e-3)
    torch.testing.assert_close(*weights)


def test_a_loss_that_is_no_number_stops_the_run() -> None:
    trainer = make_trainer()
    with torch.no_grad():
        trainer.model.layer.bias.fill_(float("nan"))
    with pytest.raises(FloatingPointError, match="loss_a"):
        run(trainer, 1)


def test_the_state_of_the_scaler_is_saved_and_restored() -> None:
    first, second = make_trainer(amp=True), make_trainer(amp=True)
    first.grad_scaler = torch.amp.GradScaler("cpu", init_scale=32.0)
    second.grad_scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    run(first, 1)
    second.load_state_dict(first.state_dict())
    assert second.grad_scaler.get_scale() == 32.0


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("precision", ["float16", "bfloat16"])
def test_mixed_precision_on_the_gpu_is_close_to_float32(precision: str) -> None:
    weights = []
    for amp in (False, True):
        torch.manual_seed(0)
        model = Net().cuda()
        batches = [torch.randn(2, 4, device="cuda") for _ in range(10)]
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        trainer = build_step(model, batches, optimizer, amp=amp, precision=precision, metric_period=1)
        run(trainer, 10)
        weights.append(model.layer.weight.detach())
    torch.testing.assert_close(*weights, atol=0.02, rtol=0.05)
