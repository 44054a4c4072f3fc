"""Times are of the backbone alone, interleaved over operating points, the first rounds left out."""

import itertools

import pytest
import torch

pytest.importorskip("detectron2")
from detectron2.modeling import build_model

from spt_d2.analysis.latency import Latency, time_backbone
from spt_d2.analysis.operating_point import OperatingPoint
from tests.modeling.nano import batch_of_inputs, nano_cfg

POINTS = [OperatingPoint("configured"), OperatingPoint("keep_ratio", 0.5), OperatingPoint("token_budget", 2)]


@pytest.fixture
def detector() -> torch.nn.Module:
    return build_model(nano_cfg("build_spt_fpn_backbone")).eval()


def test_every_round_runs_every_point_and_every_second_one_backwards(detector, monkeypatch):
    network = detector.backbone.bottom_up
    calls = []
    forward = network.forward_with_selections

    def spy(x, sizes):
        options = network.layers[3].blocks[0].options
        calls.append((options.select, options.token_budget, tuple(x.shape), tuple(sizes[0])))
        return forward(x, sizes)

    monkeypatch.setattr(network, "forward_with_selections", spy)
    ticks = itertools.count()
    inputs = batch_of_inputs((40, 64), (64, 64))
    latencies = time_backbone(detector, POINTS, inputs, rounds=2, warmup=1, clock=lambda: float(next(ticks)))
    images = [((1, 3, 64, 64), (40, 64)), ((1, 3, 64, 64), (64, 64))]
    order = [("gate", 0), ("topk", 0), ("gate", 2)]
    rounds = [order[::-1], order, order[::-1]]
    assert calls == [(*point, *image) for points in rounds for point in points for image in images]
    # A tick a reading: one between the two readings of a pass. The warm-up reads once a pass.
    assert latencies == [Latency(1000.0, 1000.0, 1000.0, 4)] * 3


def test_median_and_quartiles_in_milliseconds():
    latency = Latency.of_seconds([0.004, 0.001, 0.002, 0.005, 0.003])
    assert latency == Latency(median_ms=3.0, p25_ms=2.0, p75_ms=4.0, passes=5)
    assert Latency.of_seconds([0.5]) == Latency(500.0, 500.0, 500.0, 1)


@pytest.mark.parametrize("rounds, images", ((0, 1), (1, 0)))
def test_nothing_to_time_is_an_error(detector, rounds, images):
    with pytest.raises(ValueError, match="at least one image and one round"):
        time_backbone(detector, POINTS, batch_of_inputs((64, 64))[:images], rounds=rounds)
