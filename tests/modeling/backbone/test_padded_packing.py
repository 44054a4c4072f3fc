"""MODEL.SPT.PACKING padded: whole backbones give what packed ones give, in a batch of images that differ."""

import pytest
import torch
from torch import Tensor

from tests import reference
from tests.modeling.nano import images, nano_spt, nano_vit

SIZES = [(64, 96), (35, 50), (0, 0)]
KINDS = {
    "spt": (nano_spt, {"spa_stages": (2, 3, 4)}),
    "spt, decided once a stage": (nano_spt, {"gate": "per_stage", "gating": "sigmoid"}),
    "spt, windows with bias": (nano_spt, {"segment": "window", "position": "relative_bias"}),
    "spt, shared": (nano_spt, {"segment": "shared", "ffn_tokens": "selected"}),
    "spt, recomputed": (nano_spt, {"use_checkpoint": True, "drop_path_rate": 0.4, "ffn_tokens": "light"}),
    "vit": (nano_vit, {"ffn_tokens": "selected"}),
    "vit, containers": (nano_vit, {"segment": "container", "container_size": 5, "position": "rope"}),
}


def run(kind: str, packing: str, x: Tensor, training: bool) -> tuple[dict[str, Tensor], list, dict[str, Tensor]]:
    build, values = KINDS[kind]
    model = build(packing=packing, **values).train(training)
    torch.manual_seed(1)
    features, selections = model.forward_with_selections(x, SIZES)
    (sum(f.square().sum() for f in features.values()) + sum(s.score.sum() for s in selections)).backward()
    return features, selections, {name: p.grad for name, p in model.named_parameters()}


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("kind", KINDS)
def test_padding_changes_no_feature_no_decision_and_no_gradient(kind, training):
    x = images(3, 64, 96)
    features, selections, gradients = run(kind, "padded", x, training)
    expected, decided, truth = run(kind, "containers", x, training)
    for name, feature in features.items():
        reference.close(feature, expected[name])
    packed = [s.layout for s in selections if s.layout is not None]
    assert any(layout.rows.num_tokens > layout.num_tokens > 0 for layout in packed)
    for selection, other in zip(selections, decided, strict=True):
        assert selection.keep_mask is None or torch.equal(selection.keep_mask, other.keep_mask)
    for name, gradient in gradients.items():
        reference.close(gradient, truth[name], atol=1e-8, rtol=1e-8)
