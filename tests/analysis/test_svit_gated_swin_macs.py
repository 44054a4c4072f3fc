"""Both costs of Swin with SViT's gates equal torch's counter, and at the published sizes what the page says."""

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from spt_d2.analysis import backbone_macs, image_macs, nominal_macs
from spt_d2.analysis.model_report import selects
from spt_d2.analysis.svit_gated_swin_macs import training_macs
from spt_d2.ops.selection import split_selections

pytest.importorskip("detectron2")

from spt_d2.modeling import SvitGatedSwin, Swin  # isort: skip
from tests.modeling.nano import nano_svit_gated_swin  # isort: skip

SIZE = (75, 102)


def counted(model: SvitGatedSwin, *args) -> tuple[float, list]:
    """Multiply-adds by torch's counter, which counts each twice and sees attention in its plain form only."""
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        _, selections = model.forward_with_selections(*args)
    return counter.get_total_flops() / 2, selections


def build(depths=(2, 2, 6, 2), **values) -> SvitGatedSwin:
    with torch.device("meta"):
        return SvitGatedSwin(depths=depths, **values)


@pytest.mark.parametrize("window_size", [3, 4])
def test_executed_equals_torchs_counter_in_evaluation(window_size):
    model = nano_svit_gated_swin(window_size=window_size).eval()
    sizes = [(61, 102), (75, 90)]
    total, selections = counted(model, torch.randn(2, 3, *SIZE, dtype=torch.float64), sizes)
    found = split_selections(selections, sizes, SIZE)
    for first, second in zip(*(image.blocks for image in found)):
        assert 0 < first.kept + second.kept < first.score.numel() + second.score.numel()
    assert sum(image_macs(model, image).executed for image in found) == pytest.approx(total, rel=1e-12)


@pytest.mark.parametrize("size", [SIZE, (64, 64)])
def test_training_macs_equal_torchs_counter_whatever_is_kept(size):
    model = nano_svit_gated_swin()
    total, _ = counted(model, torch.randn(2, 3, *size, dtype=torch.float64))
    assert 2 * training_macs(model, size).executed == total


def test_inference_at_the_targets_is_nominal_where_they_are_one():
    model = build(keep_ratios=(0.4,))
    for name, macs in nominal_macs(model, SIZE, 0.4).by_stage.items():
        assert nominal_macs(model, SIZE, None).by_stage[name] == macs


def test_dense_is_swins():
    with torch.device("meta"):
        swin = Swin(depths=(2, 2, 6, 2))
    assert (
        nominal_macs(build(), SIZE, None).dense
        == training_macs(build(), SIZE).dense
        == nominal_macs(swin, SIZE, 1).dense
    )


@pytest.mark.parametrize(
    "depths, dense, inference, training",
    [((2, 2, 6, 2), 95.6, 72.8, 94.0), ((2, 2, 18, 2), 187.6, 119.2, 182.8)],
)
def test_costs_of_the_published_sizes(depths, dense, inference, training):
    model = build(depths)
    found = nominal_macs(model, (800, 1280), None)
    assert round(found.dense / 1e9, 1) == dense and round(found.executed / 1e9, 1) == inference
    assert round(training_macs(model, (800, 1280)).executed / 1e9, 1) == training


def test_a_block_with_a_gate_has_to_know_its_tokens():
    assert selects(build())
    with pytest.raises(ValueError, match="every block with a gate. Got none for stage 3, block 2"):
        backbone_macs(build(), SIZE, {})
