"""Both costs of DynamicSwin equal torch's counter, and at real size those published."""

import pytest
import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from tests.modeling.nano import SIZES as NANO
from tests.modeling.nano import nano_dynamic_swin

from spt_d2.analysis import backbone_macs, image_macs, nominal_macs  # isort: skip
from spt_d2.analysis.dynamic_swin_macs import training_macs  # isort: skip
from spt_d2.modeling import DynamicSwin, Swin  # isort: skip
from spt_d2.ops.selection import split_selections  # isort: skip

# Nowhere a multiple of a patch, a merging or a window.
SMALL = (142, 171)
# Width, heads, depth of stage 3, places of the predictors.
PUBLISHED = {
    "T": (96, (3, 6, 12, 24), 6, (1, 2, 3)),
    "S": (96, (3, 6, 12, 24), 18, (2, 4, 6)),
    "B": (128, (4, 8, 16, 32), 18, (2, 4, 6)),
}


def counted(model: nn.Module, size: tuple[int, int]) -> tuple[float, list]:
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        _, selections = model.forward_with_selections(torch.zeros(1, 3, *size))
    return counter.get_total_flops() / 2, selections


@pytest.mark.parametrize("places", [(0,), (1, 2, 4), (5,)], ids=str)
def test_executed_is_half_of_torchs_flops_at_inference(places):
    model = nano_dynamic_swin(torch.float32, predictor_blocks=places).eval()
    total, selections = counted(model, SMALL)
    (image,) = split_selections(selections, [SMALL], SMALL)
    assert image_macs(model, image).executed == image_macs(model, image).useful == total
    assert nominal_macs(model, SMALL, None).as_dict() == image_macs(model, image).as_dict()


@pytest.mark.parametrize("places", [(0,), (1, 2, 4), (5,)], ids=str)
def test_the_cost_of_training_is_half_of_torchs_flops_in_training(places):
    model = nano_dynamic_swin(torch.float32, predictor_blocks=places).train()
    total, _ = counted(model, SMALL)
    assert training_macs(model, SMALL).executed == total > nominal_macs(model, SMALL, None).executed


def test_padding_takes_the_light_ffn_and_is_counted_so():
    model = nano_dynamic_swin(torch.float32).eval()
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        _, selections = model.forward_with_selections(torch.zeros(1, 3, *SMALL), [(70, 40)])
    (image,) = split_selections(selections, [(70, 40)], SMALL)
    assert (
        image_macs(model, image).executed == counter.get_total_flops() / 2 < nominal_macs(model, SMALL, None).executed
    )


def test_dense_is_swin_and_everything_kept_costs_the_predictors_more():
    model, swin = nano_dynamic_swin(), Swin(**{**NANO, "depths": (1, 1, 6, 1)})
    macs, dense = nominal_macs(model, SMALL, 1.0), nominal_macs(swin, SMALL, 1.0)
    assert macs.dense == dense.executed
    tokens, c = 9 * 11, 32
    assert macs.executed - dense.executed == 3 * tokens * (c * c + c * c // 2 + c * c // 8 + c // 2)
    assert {name: m.dense for name, m in macs.by_stage.items()} == {n: m.dense for n, m in dense.by_stage.items()}


@pytest.mark.parametrize(
    "size, parameters, training, inference, dense",
    [("T", 28.99, 101.4, 86.5, 95.6), ("S", 51.94, 199.9, 149.2, 187.6), ("B", 92.25, 353.0, 262.8, 331.1)],
)
def test_real_sizes_cost_what_a_calculation_by_hand_says(size, parameters, training, inference, dense):
    """Of an image of 800 x 1280 px, in G; the SPA paper gives 101 for T, the cost of training."""
    width, heads, depth, places = PUBLISHED[size]
    with torch.device("meta"):
        model = DynamicSwin(embed_dim=width, num_heads=heads, depths=(2, 2, depth, 2), predictor_blocks=places)
    assert sum(p.numel() for p in model.parameters()) / 1e6 == pytest.approx(parameters, abs=0.006)
    image = (800, 1280)
    assert training_macs(model, image).executed / 1e9 == pytest.approx(training, abs=0.06)
    assert nominal_macs(model, image, None).executed / 1e9 == pytest.approx(inference, abs=0.06)
    assert training_macs(model, image).dense / 1e9 == pytest.approx(dense, abs=0.06)
    # By hand, of what differs from Swin.
    c, n = 4 * width, 4000
    predictors = 3 * n * (c * c + c * c // 2 + c * c // 8 + c // 2)
    skipped = [1 - model.layers[2].keep_ratio_of(i) for i in range(places[0], depth)]
    extra = training_macs(model, image).executed - training_macs(model, image).dense
    assert extra == predictors + (depth - places[0]) * c * c * n
    saved = training_macs(model, image).dense - nominal_macs(model, image, None).executed
    assert saved == pytest.approx(sum(skipped) * n * 7 * c * c - predictors, rel=1e-12)


def test_what_cannot_be_counted_is_told():
    model = nano_dynamic_swin()
    with pytest.raises(ValueError, match=r"every block after a predictor\. Got none for stage 3, block 1"):
        backbone_macs(model, SMALL, {})
    with pytest.raises(TypeError, match=r"expects a backbone with predictors\. Got Swin"):
        training_macs(Swin(**NANO), SMALL)
