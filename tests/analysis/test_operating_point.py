"""An operating point changes what is kept, nothing else, and leaves no trace."""

import pytest
import torch

pytest.importorskip("detectron2")

from spt_d2.analysis.operating_point import OperatingPoint, operating_point
from tests.modeling.nano import images, nano_spt, nano_swin

POINTS = {
    OperatingPoint("threshold", 0.3): {"threshold": 0.3},
    OperatingPoint("keep_ratio", 0.2): {"select": "topk", "keep_ratio": 0.2},
    OperatingPoint("token_budget", 3): {"token_budget": 3},
    OperatingPoint("configured"): {},
}


@pytest.mark.parametrize("point", POINTS, ids=lambda point: point.name)
def test_a_point_gives_what_a_model_built_that_way_gives(point):
    x = images(1, 96, 64)
    model, built = nano_spt().eval(), nano_spt(**POINTS[point]).eval()
    before = model(x)
    with operating_point(model, point):
        inside, selections = model.forward_with_selections(x)
    expected, wanted = built.forward_with_selections(x)
    for name, value in expected.items():
        assert torch.equal(inside[name], value)
        assert torch.equal(model(x)[name], before[name])
    for got, want in zip(selections, wanted):
        assert got.keep_mask is None or torch.equal(got.keep_mask, want.keep_mask)


def test_thresholds_and_ratios_lift_a_budget():
    model = nano_spt(token_budget=1).eval()
    for point in (OperatingPoint("threshold", 0.0), OperatingPoint("keep_ratio", 1.0)):
        with operating_point(model, point):
            _, selections = model.forward_with_selections(images(1))
        assert all(selection.keep_mask is None or selection.keep_mask.all() for selection in selections)


def test_the_model_is_put_back_after_an_error():
    model = nano_spt()
    before = [block.options for block in model.layers[2].blocks]
    with pytest.raises(RuntimeError), operating_point(model, OperatingPoint("threshold", 0.9)):
        raise RuntimeError
    assert [block.options for block in model.layers[2].blocks] == before


@pytest.mark.parametrize(
    "model, point, message",
    (
        (nano_swin, OperatingPoint("threshold", 0.5), "expects Select and Pack blocks. Got none in Swin"),
        (nano_spt, OperatingPoint("threshold", 1.5), "threshold expects a probability"),
        (nano_spt, OperatingPoint("keep_ratio", 0.0), "keep_ratio expects a fraction"),
        (lambda: nano_spt(gating="centred"), OperatingPoint("threshold", 0.5), "no threshold under gating='centred'"),
    ),
)
def test_points_that_cannot_be_are_errors(model, point, message):
    with pytest.raises(ValueError, match=message), operating_point(model(), point):
        pass


@pytest.mark.parametrize(
    "kind, value, message",
    (
        ("speed", 1.0, "kind=.* expects one of .*Got 'speed'"),
        ("threshold", None, "expects a value for all kinds"),
        ("configured", 1.0, "expects a value for all kinds"),
        ("token_budget", 0, "at least 1 token"),
        ("token_budget", 2.5, "at least 1 token"),
    ),
)
def test_points_expect_a_known_kind_and_its_value(kind, value, message):
    with pytest.raises(ValueError, match=message):
        OperatingPoint(kind, value)
