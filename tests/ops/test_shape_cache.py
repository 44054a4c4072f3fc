"""What follows from shapes alone is kept, and never what a tracer made."""

import warnings

import torch
from torch import Tensor, nn

from spt_d2.ops.shape_cache import shape_cache


class Net(nn.Module):
    """Adds a tensor that is cached by the shape of its input."""

    def __init__(self):
        super().__init__()
        self.ramp = shape_cache(maxsize=4)(lambda n: torch.arange(n) + 0.0)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.ramp(x.shape[1])


def test_results_are_kept_and_made_outside_inference_mode():
    net, x = Net(), torch.zeros(2, 3, requires_grad=True)
    with torch.inference_mode():
        net(x)
    assert (net(x) * x).sum().backward() is None and not net.ramp(3).is_inference()
    assert net.ramp.cache_info().misses == 1 and net.ramp.cache_info().hits == 2


def test_a_trace_neither_takes_from_the_cache_nor_leaves_anything_in_it():
    net = Net()
    with warnings.catch_warnings():
        # Deprecated, and what fvcore counts by.
        warnings.simplefilter("ignore")
        traced = torch.jit.trace(net, torch.zeros(1, 3), check_trace=False)
    assert net.ramp.cache_info().currsize == 0
    torch.testing.assert_close(traced(torch.ones(2, 3)), net(torch.ones(2, 3)))


def test_an_export_leaves_no_fake_tensor_behind():
    net = Net()
    exported = torch.export.export(net, (torch.zeros(1, 3),)).module()
    for n in (3, 5):
        assert type(net(torch.ones(1, n))) is Tensor
    torch.testing.assert_close(exported(torch.ones(1, 3)), net(torch.ones(1, 3)))
