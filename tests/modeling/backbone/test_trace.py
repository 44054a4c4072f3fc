"""What is traced or exported on a CPU is as on other devices: of any batch, saved whole, and nothing of it stays."""

import warnings

import pytest
import torch
from torch import Tensor, nn

from tests.modeling.nano import images, nano_dat, nano_spt, nano_swin


class Last(nn.Module):
    """A backbone's last map alone: a trace takes no dictionary."""

    def __init__(self, backbone: nn.Module):
        super().__init__()
        self.backbone = backbone

    def forward(self, x: Tensor) -> Tensor:
        return self.backbone(x)["res5"]


@pytest.fixture(autouse=True)
def quiet():
    """Tracing is deprecated, and warns of every decision that it freezes."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def trace(model: nn.Module, x: Tensor) -> torch.jit.ScriptModule:
    return torch.jit.trace(model, x, check_trace=False)


def test_a_trace_of_a_dense_swin_is_of_any_batch_size():
    model = Last(nano_swin().double().eval())
    with torch.no_grad():
        traced, batch = trace(model, images(1, 96, 64)), images(3, 96, 64)
        torch.testing.assert_close(traced(batch), model(batch))


@pytest.mark.parametrize("build", [nano_swin, nano_spt, nano_dat])
@pytest.mark.parametrize("gradients", [True, False])
def test_a_trace_can_be_saved_and_read(build, gradients, tmp_path):
    model, x = Last(build().double().eval()), images(1)
    with torch.set_grad_enabled(gradients):
        trace(model, x).save(str(tmp_path / "model.pt"))
        torch.testing.assert_close(torch.jit.load(str(tmp_path / "model.pt"))(x), model(x))


def test_a_dense_swin_is_exported_and_goes_on_as_before():
    model = Last(nano_swin().double().eval())
    with torch.no_grad():
        exported = torch.export.export(model, (images(1),)).module()
        x = images(1)
        torch.testing.assert_close(exported(x), model(x))
        # Another size, whose geometry was not made before.
        other = model(images(2, 96, 32))
    assert type(other) is Tensor and other.isfinite().all()
