"""The FPN that hands selections through is Detectron2's in everything else."""

import pytest
import torch

from tests import reference
from tests.modeling.nano import FEATURES, images, nano_spt

from detectron2.modeling import FPN  # isort: skip
from detectron2.modeling.backbone.fpn import LastLevelMaxPool, LastLevelP6P7  # isort: skip

from spt_d2.modeling import SelectionFPN  # isort: skip


@pytest.mark.parametrize("fuse_type", ["sum", "avg"])
@pytest.mark.parametrize("norm", ["", "GN"])
@pytest.mark.parametrize("top", ["max_pool", "from_res5", "from_p5", "none"])
def test_equals_detectron2s_fpn(top, norm, fuse_type):
    bottom_up = nano_spt(torch.float32).eval()
    blocks = {
        "max_pool": LastLevelMaxPool(),
        "from_res5": LastLevelP6P7(64, 32),
        "from_p5": LastLevelP6P7(32, 32, in_feature="p5"),
        "none": None,
    }
    arguments = {
        "bottom_up": bottom_up,
        "in_features": list(FEATURES[1:]),
        "out_channels": 32,
        "norm": norm,
        "top_block": blocks[top],
        "fuse_type": fuse_type,
    }
    ours, theirs = SelectionFPN(**arguments), FPN(**arguments)
    reference.randomise_(theirs)
    ours.load_state_dict(theirs.state_dict(), strict=True)
    x = images(dtype=torch.float32)
    actual, expected = ours(x), theirs(x)
    assert list(actual) == list(expected) == list(ours.output_shape())
    assert ours.output_shape() == theirs.output_shape()
    assert (ours.size_divisibility, ours.padding_constraints) == (theirs.size_divisibility, theirs.padding_constraints)
    for name, value in expected.items():
        reference.close(actual[name], value)
    own = dict(ours.named_parameters())
    weights = {n: p for n, p in theirs.named_parameters() if not n.startswith("bottom_up") and p.requires_grad}
    last = list(expected)[-2]
    used = [
        n
        for n, g in zip(weights, torch.autograd.grad(expected[last].sum(), list(weights.values()), allow_unused=True))
        if g is not None
    ]
    expected, actual = theirs(x)[last], ours(x)[last]
    truth = reference.gradients(expected, **{n: weights[n] for n in used})
    for name, gradient in reference.gradients(actual, **{n: own[n] for n in used}).items():
        reference.close(gradient, truth[name], atol=1e-3, rtol=1e-4)


def test_selections_of_the_bottom_up_network_are_handed_through():
    bottom_up = nano_spt(torch.float32).eval()
    fpn = SelectionFPN(bottom_up=bottom_up, in_features=list(FEATURES), out_channels=16, top_block=LastLevelMaxPool())
    x, sizes = images(dtype=torch.float32), [(64, 64), (33, 40)]
    features, selections = fpn.forward_with_selections(x, sizes)
    _, expected = bottom_up.forward_with_selections(x, sizes)
    assert [(s.stage, s.block) for s in selections] == [(s.stage, s.block) for s in expected]
    assert all(torch.equal(mine.score, other.score) for mine, other in zip(selections, expected))
    assert not selections[0].valid.all()
    plain = fpn(x)
    assert list(plain) == list(features)
    unpadded = fpn.forward_with_selections(x)[0]
    assert all(torch.equal(plain[name], unpadded[name]) for name in plain)


def test_labels_reach_the_oracle():
    fpn = SelectionFPN(
        bottom_up=nano_spt(torch.float32, select="oracle"), in_features=["res4", "res5"], out_channels=16
    )
    labels = {s: torch.zeros(2, 64 // s, 64 // s, dtype=torch.uint8) for s in (16, 32)}
    labels[16][0, 1, 2] = 1
    _, selections = fpn.forward_with_selections(images(dtype=torch.float32), None, labels)
    assert [int(s.keep_mask.sum()) for s in selections if s.block is not None] == [1, 1, 0, 0]
