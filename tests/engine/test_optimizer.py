"""Who decays, and how gradients are clipped, under a gradient scaler too."""

from functools import partial

import pytest
import torch
from detectron2.config import CfgNode, get_cfg
from detectron2.layers import get_norm
from detectron2.modeling import FPN
from torch import nn

from spt_d2.config import add_spt_config
from spt_d2.engine.optimizer import build_optimizer, clip_gradients, optimizer_params
from spt_d2.modeling import SPT
from tests.modeling.nano import nano_dat, nano_dynamic_swin, nano_spt, nano_svit_gated_swin, nano_swin


class Net(nn.Module):
    """A backbone with tables and norms, a plain layer, and norms of other kinds."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = SPT(
            embed_dim=8, depths=(1, 1, 1, 1), num_heads=(1, 1, 1, 1), drop_path_rate=0.0, position="relative_bias"
        )
        self.head = nn.Linear(8, 2)
        self.group_norm = nn.GroupNorm(2, 8)
        self.channel_norm = get_norm("LN", 8)
        self.frozen = nn.Linear(2, 2).requires_grad_(False)


def decays(model: nn.Module, groups: list[dict]) -> dict[str, float]:
    """Weight decay by the name of the parameter; every parameter is in one group."""
    found: dict[int, float] = {}
    for group in groups:
        for parameter in group["params"]:
            assert id(parameter) not in found
            found[id(parameter)] = group["weight_decay"]
    return {name: found[id(p)] for name, p in model.named_parameters() if id(p) in found}


def make_cfg(**solver: object) -> CfgNode:
    cfg = get_cfg()
    add_spt_config(cfg)
    cfg.SOLVER.WEIGHT_DECAY = 0.05
    for key, value in solver.items():
        cfg.SOLVER[key] = value
    return cfg


def test_norms_and_position_tables_do_not_decay_and_everything_else_does() -> None:
    model = Net()
    found = decays(model, build_optimizer(make_cfg(), model).param_groups)
    assert set(found) == {name for name, p in model.named_parameters() if p.requires_grad}
    exempt = {name for name, decay in found.items() if decay == 0}
    assert {decay for name, decay in found.items() if name not in exempt} == {0.05}
    expected = {name for name in found if "norm" in name or "relative_position_bias_table" in name}
    assert exempt == expected
    # The sets are not empty of what they are about.
    assert "channel_norm.bias" in exempt and "group_norm.weight" in exempt
    assert "backbone.layers.2.blocks.0.attn.relative_position_bias_table" in exempt
    assert found["head.bias"] == found["backbone.layers.2.blocks.0.attn.qkv.bias"] == 0.05


def test_decay_of_tables_norms_and_biases_and_the_rate_of_biases_can_be_set() -> None:
    model = Net()
    cfg = make_cfg(
        WEIGHT_DECAY_POSITION=0.5, WEIGHT_DECAY_NORM=0.25, WEIGHT_DECAY_BIAS=0.125, BIAS_LR_FACTOR=2.0, BASE_LR=1.0
    )
    optimizer = build_optimizer(cfg, model)
    found = decays(model, optimizer.param_groups)
    assert found["head.weight"] == 0.05 and found["head.bias"] == 0.125
    assert found["group_norm.bias"] == found["group_norm.weight"] == found["channel_norm.bias"] == 0.25
    assert found["backbone.layers.0.blocks.0.attn.relative_position_bias_table"] == 0.5
    rates = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    assert rates[id(model.head.bias)] == 2.0 and rates[id(model.head.weight)] == 1.0


def rates(model: nn.Module, factor: float) -> dict[str, float]:
    """Learning rate by the name of the parameter."""
    groups = build_optimizer(make_cfg(BASE_LR=1.0, BACKBONE_LR_FACTOR=factor), model).param_groups
    found = {id(p): group["lr"] for group in groups for p in group["params"]}
    return {name: found[id(p)] for name, p in model.named_parameters() if id(p) in found}


def test_what_a_pretrained_backbone_brings_can_learn_at_a_rate_of_its_own() -> None:
    model = Net()
    model.backbone = FPN(model.backbone, ["res4", "res5"], 8)
    found = rates(model, 0.2)
    slow = {name for name, rate in found.items() if rate == 0.2}
    assert set(found.values()) == {0.2, 1.0}
    # Norms and tables too, though their groups have settings of their own.
    for name in ("norm3.weight", "layers.2.blocks.0.attn.relative_position_bias_table", "patch_embed.proj.bias"):
        assert f"backbone.bottom_up.{name}" in slow
    fast = {name for name in found if not name.startswith("backbone.bottom_up.") or "gate" in name}
    assert set(found) - slow == fast and any("gate" in name for name in fast) and "backbone.fpn_lateral4.bias" in fast
    assert set(rates(model, 1.0).values()) == {1.0}


@pytest.mark.parametrize(
    "backbone, added",
    [
        (nano_dynamic_swin, ("score_predictor", "fastmlp")),
        (nano_svit_gated_swin, ("gate",)),
        (partial(nano_spt, position="conv", ffn_tokens="light"), ("gate", "pos_conv", "light")),
    ],
)
def test_parts_of_peers_that_no_dense_swin_has_learn_at_the_full_rate(backbone, added) -> None:
    """As in a classifier, whose backbone has no pyramid; held against the names of a dense Swin."""
    model = nn.Module()
    model.backbone = backbone()
    depths = tuple(len(stage.blocks) for stage in model.backbone.layers)
    dense = {name for name, _ in nano_swin(depths=depths).named_parameters()}
    for name, rate in rates(model, 0.2).items():
        assert rate == (0.2 if name.removeprefix("backbone.") in dense else 1.0), name
    assert all(any(f".{part}." in name for name in rates(model, 0.2)) for part in added)


def test_offset_networks_of_dat_learn_at_the_full_rate() -> None:
    model = nn.Module()
    model.backbone = nano_dat()
    found = rates(model, 0.2)
    offsets = {name for name in found if ".offset." in name}
    assert offsets and {name for name, rate in found.items() if rate == 1.0} == offsets


def test_two_factors_of_learning_rates_are_refused() -> None:
    with pytest.raises(ValueError, match="one factor of learning rates"):
        build_optimizer(make_cfg(BIAS_LR_FACTOR=2.0, BACKBONE_LR_FACTOR=0.2), Net())


def test_groups_are_as_few_as_their_settings() -> None:
    assert len(optimizer_params(Net(), base_lr=0.1)) == 2


@pytest.mark.parametrize(("name", "kind"), [("adamw", torch.optim.AdamW), ("sgd", torch.optim.SGD)])
def test_the_optimizer_is_the_one_asked_for(name: str, kind: type) -> None:
    assert type(build_optimizer(make_cfg(OPTIMIZER=name), Net())) is kind


def test_an_unknown_optimizer_or_clipping_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match="SOLVER.OPTIMIZER.*'lion'"):
        build_optimizer(make_cfg(OPTIMIZER="lion"), Net())
    optimizer = torch.optim.SGD(Net().parameters(), lr=1.0)
    with pytest.raises(ValueError, match="CLIP_TYPE.*'all'"):
        clip_gradients(optimizer, "all", 1.0)
    with pytest.raises(ValueError, match="CLIP_VALUE.*0"):
        clip_gradients(optimizer, "norm", 0.0)


GRADIENTS = [torch.tensor([3.0, -4.0]), torch.tensor([[0.6], [0.8]]), torch.tensor([0.0])]


def by_hand(kind: str, value: float, norm_type: float) -> list[torch.Tensor]:
    if kind == "value":
        return [g.clamp(-value, value) for g in GRADIENTS]
    norms = [(g.abs() ** norm_type).sum() ** (1 / norm_type) for g in GRADIENTS]
    if kind == "full_model":
        total = sum(n**norm_type for n in norms) ** (1 / norm_type)
        norms = [total for _ in norms]
    return [g * min(1.0, value / max(float(n), 1e-12)) for g, n in zip(GRADIENTS, norms)]


def step(kind: str, value: float, norm_type: float = 2.0, scaler: torch.amp.GradScaler | None = None) -> list:
    """What each parameter, 0 before, moves by in one step of plain descent at rate 1; None for one without gradient."""
    parameters = [nn.Parameter(torch.zeros_like(g)) for g in GRADIENTS]
    unused = nn.Parameter(torch.zeros(2))
    cfg = make_cfg(OPTIMIZER="sgd", BASE_LR=1.0, MOMENTUM=0.0, WEIGHT_DECAY=0.0)
    cfg.SOLVER.CLIP_GRADIENTS.ENABLED = True
    cfg.SOLVER.CLIP_GRADIENTS.CLIP_TYPE = kind
    cfg.SOLVER.CLIP_GRADIENTS.CLIP_VALUE = value
    cfg.SOLVER.CLIP_GRADIENTS.NORM_TYPE = norm_type
    optimizer = build_optimizer(cfg, nn.ParameterList([*parameters, unused]))
    loss = sum((p * g).sum() for p, g in zip(parameters, GRADIENTS))
    if scaler is None:
        loss.backward()
        optimizer.step()
    else:
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
    return [-p.detach() for p in parameters]


@pytest.mark.parametrize("kind", ["value", "norm", "full_model"])
@pytest.mark.parametrize("norm_type", [1.0, 2.0])
@pytest.mark.parametrize("value", [0.5, 2.0, 100.0])
def test_gradients_are_clipped_as_by_hand(kind: str, value: float, norm_type: float) -> None:
    for moved, expected in zip(step(kind, value, norm_type), by_hand(kind, value, norm_type)):
        torch.testing.assert_close(moved, expected, rtol=1e-5, atol=1e-6)


def test_the_joint_norm_differs_from_that_of_each_parameter() -> None:
    assert not torch.allclose(by_hand("norm", 0.5, 2.0)[1], by_hand("full_model", 0.5, 2.0)[1])


@pytest.mark.parametrize("kind", ["value", "norm", "full_model"])
def test_gradients_are_clipped_after_a_scaler_unscaled_them(kind: str) -> None:
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    for moved, expected in zip(step(kind, 2.0, scaler=scaler), by_hand(kind, 2.0, 2.0)):
        torch.testing.assert_close(moved, expected, rtol=1e-5, atol=1e-6)
