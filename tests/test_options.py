"""Every key of the config is described in docs/options.md and reaches the model; bad combinations are told."""

import math
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_backbone, build_model
from torch import nn

from spt_d2 import get_config
from spt_d2.analysis import nominal_macs
from spt_d2.config import validate_spt_config
from tests.conftest import ROOT, load_program
from tests.modeling.nano import nano_cfg


@pytest.fixture(scope="module")
def program() -> ModuleType:
    return load_program(ROOT / "tools" / "write_options.py")


@pytest.fixture
def unset_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    """Large models without the seconds that drawing their weights takes: no count depends on a weight."""
    for name in ("trunc_normal_", "kaiming_uniform_", "uniform_"):
        monkeypatch.setattr(nn.init, name, lambda tensor, *_, **__: tensor)


@pytest.mark.usefixtures("unset_weights")
def test_the_page_of_options_is_up_to_date(program: ModuleType) -> None:
    assert program.PAGE.read_text() == program.render(), "HINT: python tools/write_options.py"


def test_a_page_that_is_out_of_date_is_told(
    program: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr(program, "render", lambda: "new")
    monkeypatch.setattr(program, "PAGE", tmp_path / "options.md")
    monkeypatch.setattr(sys, "argv", ["write_options.py", "--check"])
    assert program.main() == 1 and "HINT: python tools/write_options.py" in capsys.readouterr().err
    monkeypatch.setattr(sys, "argv", ["write_options.py"])
    assert program.main() == 0 and program.PAGE.read_text() == "new"
    monkeypatch.setattr(sys, "argv", ["write_options.py", "--check"])
    assert program.main() == 0


def test_every_key_has_a_comment_and_every_key_of_spt_a_cost(program: ModuleType) -> None:
    comments, cfg = program.key_comments(), program.default_config()
    assert all(comments.values())
    assert {name for name in comments if name.startswith("MODEL.SPT.")} == {f"MODEL.SPT.{key}" for key in cfg.MODEL.SPT}
    assert {name for name in comments if name.startswith("MODEL.SWIN")} == {f"MODEL.SWIN.{k}" for k in cfg.MODEL.SWIN}
    assert set(program.ALTERNATIVES) == set(cfg.MODEL.SPT)
    assert set(program.PAPER) | set(program.literal_values()) <= set(cfg.MODEL.SPT)
    for key, alternatives in program.ALTERNATIVES.items():
        for overrides in alternatives:
            assert key in overrides and (overrides[key] != cfg.MODEL.SPT[key] or key == "KEEP_RATIO")


def test_the_literal_configs_set_every_literal_value_of_the_paper(program: ModuleType) -> None:
    literal = {
        "GATING": "sigmoid", "THRESHOLD": 0.01, "TAU": 1.0, "NOISE": "logistic", "SELECT": "gate", "GATE": "per_block",
        "MULTI_SCALE": True, "SPA_STAGES": [3, 4], "CONTAINER_SIZE": 0, "WINDOW_SIZE": 7, "SEGMENT": "shared",
        "ORDER": "window", "POSITION": "none", "PROJ_TOKENS": "all", "FFN_TOKENS": "all", "PACKING": "containers",
        "TOKEN_BUDGET": 0, "LOSS_REDUCTION": "sum", "LOSS_WEIGHT": 0.01, "POS_WEIGHT": 1.0, "SUPERVISE": True,
    }  # fmt: skip
    # Set, not inherited: a change of the defaults leaves the literal configs as they are.
    assert program.literal_values() == literal
    lazy = get_config("common/models/backbones.py")
    assert {key.upper(): value for part in (lazy.literal, lazy.literal_loss) for key, value in part.items()} == literal
    paths = sorted((ROOT / "configs").rglob("*_literal.yaml"))
    folders = {path.parent.name for path in paths}
    assert len(paths) >= 16 and folders >= {"VOC-Classification", "Shapes-InstanceSegmentation", "BDD100K-Detection"}
    for path in paths:
        cfg = get_config(path.relative_to(ROOT / "configs").as_posix())
        assert {key: cfg.MODEL.SPT[key] for key in literal} == literal, path


@pytest.mark.parametrize("path", sorted((ROOT / "configs" / "Ablations").glob("*.yaml")), ids=lambda path: path.stem)
def test_an_ablation_over_the_literal_base_changes_what_it_is_about(path: Path, program: ModuleType, tmp_path) -> None:
    """As Base-literal.yaml says: the ablation stands on top, and all that it does not name is literal."""
    leaf = tmp_path / "leaf.yaml"
    leaf.write_text(f'_BASE_: ["{ROOT}/configs/Base-literal.yaml", "{path}"]\n')
    found = CfgNode.load_yaml_with_base(str(leaf))["MODEL"]["SPT"]
    changed = CfgNode.load_yaml_with_base(str(path))["MODEL"]["SPT"]
    assert {key: found[key] for key in changed} == changed
    for key in program.literal_values().keys() - changed.keys():
        assert found[key] == program.literal_values()[key], key


# A value other than the default of nano_cfg, and where in the model it is to be found again.
Find = Callable[[nn.Module, nn.Module], Any]


def option(name: str) -> Find:
    return lambda model, hierarchy: getattr(hierarchy.layers[3].blocks[-1].options, name)


def attribute(name: str) -> Find:
    return lambda model, hierarchy: getattr(model, name)


REACHED: dict[str, tuple[Any, Find]] = {
    "EMBED_DIM": (16, lambda model, hierarchy: hierarchy.patch_embed.proj.out_channels),
    "DEPTHS": ([2, 1, 1, 3], lambda model, hierarchy: [len(stage.blocks) for stage in hierarchy.layers]),
    "NUM_HEADS": ([1, 1, 4, 8], lambda model, hierarchy: [s.blocks[0].attn.num_heads for s in hierarchy.layers]),
    "WINDOW_SIZE": (3, lambda model, hierarchy: hierarchy.layers[0].blocks[0].attn.window_size),
    "MLP_RATIO": (3.0, lambda model, hierarchy: hierarchy.layers[2].blocks[0].mlp.fc1.out_features / 32),
    "QKV_BIAS": (False, lambda model, hierarchy: hierarchy.layers[2].blocks[0].attn.qkv.bias is not None),
    "DROP_RATE": (0.1, lambda model, hierarchy: hierarchy.layers[2].blocks[0].mlp.drop.p),
    "ATTN_DROP_RATE": (0.1, lambda model, hierarchy: hierarchy.layers[2].blocks[0].attn.attn_drop),
    "DROP_PATH_RATE": (0.25, lambda model, hierarchy: hierarchy.layers[3].blocks[-1].drop_path.rate),
    "OUT_FEATURES": (["res3", "res4", "res5"], lambda model, hierarchy: list(hierarchy.output_shape())),
    "USE_CHECKPOINT": (True, lambda model, hierarchy: hierarchy.layers[3].use_checkpoint),
    "SPA_STAGES": ([2, 4], lambda model, hierarchy: list(hierarchy.spa_stages)),
    "MULTI_SCALE": (False, lambda model, hierarchy: bool(hierarchy.output_gates)),
    "GATE": ("per_stage", lambda model, hierarchy: hierarchy.layers[2].blocks[1].gate is None and "per_stage"),
    "GATING": ("sigmoid", option("gating")),
    "SELECT": ("topk", option("select")),
    "KEEP_RATIO": (0.4, option("keep_ratio")),
    "TOKEN_BUDGET": (9, option("token_budget")),
    "THRESHOLD": (0.01, option("threshold")),
    "TAU": (2.0, option("tau")),
    "NOISE": ("gumbel", option("noise")),
    "GATE_PRIOR": (0.5, lambda model, hierarchy: torch.sigmoid(hierarchy.layers[2].blocks[0].gate.proj.bias).item()),
    "ORDER": ("raster", option("order")),
    "SEGMENT": ("window", option("segment")),
    "CONTAINER_SIZE": (20, option("container_length")),
    "PACKING": ("padded", option("packing")),
    "POSITION": ("conv", option("position")),
    "PROJ_TOKENS": ("all", option("proj_tokens")),
    "FFN_TOKENS": ("light", option("ffn_tokens")),
    "ATTENTION_BACKEND": ("sdpa", lambda model, hierarchy: hierarchy.layers[2].blocks[0].attn.backend),
    "LOSS_WEIGHT": (0.02, attribute("loss_weight")),
    "LOSS_REDUCTION": ("sum", attribute("loss_reduction")),
    "POS_WEIGHT": (5.0, attribute("pos_weight")),
    "SUPERVISE": (False, attribute("supervise")),
    "RETURN_SELECTIONS": (True, attribute("return_selections")),
    "LOG_PERIOD": (7, attribute("log_period")),
}


@pytest.mark.parametrize("key", REACHED)
def test_a_key_reaches_the_model(key: str) -> None:
    value, find = REACHED[key]
    found = []
    for changed in (False, True):
        cfg = nano_cfg("build_spt_fpn_backbone")
        if changed:
            cfg.MODEL.SPT[key] = value
            cfg.MODEL.FPN.IN_FEATURES = list(cfg.MODEL.SPT.OUT_FEATURES)
        # Heads that read p2 cannot be had over fewer maps.
        model = build_model(cfg) if key != "OUT_FEATURES" else None
        backbone = build_backbone(cfg) if model is None else model.backbone
        found.append(find(model, backbone.bottom_up))
    assert found[1] == pytest.approx(value) and found[0] != found[1]


def test_no_key_of_spt_is_left_out_above() -> None:
    assert set(REACHED) == set(nano_cfg("build_spt_fpn_backbone").MODEL.SPT)


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "whole windows of raster order": ({"SPT.SEGMENT": "window", "SPT.ORDER": "raster"}, "SPT.ORDER expects 'window'"),
    "windows that do not fit": (
        {"SPT.SEGMENT": "window", "SPT.CONTAINER_SIZE": 15},
        "SPT.CONTAINER_SIZE expects 0, or",
    ),
    "a packing that is not there": ({"SPT.PACKING": "sorted"}, "SPT.PACKING expects one of ('containers', 'padded')"),
    "a negative container": ({"SPT.CONTAINER_SIZE": -1}, "SPT.CONTAINER_SIZE expects 0"),
    "centred at no threshold": ({"SPT.GATING": "centred", "SPT.THRESHOLD": 0.0}, "SPT.THRESHOLD expects a probability"),
    "heads too narrow to turn": (
        {"SPT.POSITION": "rope", "SPT.NUM_HEADS": [1, 2, 16, 32]},
        "SPT.NUM_HEADS expects heads",
    ),
    "heads that do not divide": ({"SPT.NUM_HEADS": [3, 2, 2, 4]}, "SPT.NUM_HEADS expects divisors"),
    "no heads": ({"SWIN.NUM_HEADS": [0, 2, 2, 4]}, "SWIN.NUM_HEADS expects divisors"),
    "a stage of no blocks": ({"SPT.DEPTHS": [1, 1, 0, 1]}, "SPT.DEPTHS expects 1 to 4 stages"),
    "no window": ({"SWIN.WINDOW_SIZE": 0}, "SWIN.WINDOW_SIZE expects at least 1"),
    "no MLP": ({"SPT.MLP_RATIO": 0.0}, "SPT.MLP_RATIO expects a ratio above 0"),
    "everything dropped": ({"SPT.DROP_RATE": 1.0}, "SPT.DROP_RATE expects a probability"),
    "a map that is not there": ({"SPT.OUT_FEATURES": ["res1", "res5"]}, "SPT.OUT_FEATURES expects some of"),
    "a map that nobody reads": ({"FPN.IN_FEATURES": ["res3", "res4", "res5"]}, "SPT.OUT_FEATURES expects the maps"),
    "a crop more often than always": ({"CROP.PROBABILITY": 1.5}, "CROP.PROBABILITY expects a probability"),
    "a crop of nothing": ({"CROP.MIN_SIZES": [0]}, "CROP.MIN_SIZES expects short sides above 0"),
    "no batch": ({"SOLVER.BATCH_SCALE": 0.0}, "SOLVER.BATCH_SCALE expects a factor above 0"),
}


def spoil(cfg: CfgNode, values: dict[str, Any]) -> CfgNode:
    nodes = {"SPT": cfg.MODEL.SPT, "SWIN": cfg.MODEL.SWIN, "FPN": cfg.MODEL.FPN}
    nodes |= {"CROP": cfg.INPUT.CROP, "SOLVER": cfg.SOLVER}
    for name, value in values.items():
        node, _, key = name.partition(".")
        nodes[node][key] = value
    return cfg


def test_a_good_config_passes() -> None:
    validate_spt_config(nano_cfg("build_spt_fpn_backbone"))
    validate_spt_config(nano_cfg("build_retinanet_swin_fpn_backbone", "SelectionRetinaNet"))


@pytest.mark.parametrize("case", BAD)
def test_a_combination_that_cannot_be_is_told_by_its_key(case: str) -> None:
    values, message = BAD[case]
    with pytest.raises(ValueError, match="The config is not valid") as error:
        validate_spt_config(spoil(nano_cfg("build_spt_fpn_backbone"), values))
    problems = str(error.value).splitlines()[1:]
    assert len(problems) == 1 and message in problems[0]


def test_several_problems_are_told_at_once() -> None:
    cfg = spoil(nano_cfg("build_spt_fpn_backbone"), {"SPT.MLP_RATIO": 0.0, "SPT.THRESHOLD": 1.0, "SPT.ORDER": "spiral"})
    with pytest.raises(ValueError, match=r"(?s)SPT\.ORDER.*SPT\.MLP_RATIO.*SPT\.THRESHOLD"):
        validate_spt_config(cfg)


# Parameters of backbones in millions, and of Mask R-CNN over them; published for Swin.
PARAMETERS = {
    "swin_t": (27.5, 47.8), "swin_s": (48.8, 69.1), "swin_b": (86.7, 107.1),
    "swin_t16": (34.6, 54.9), "swin_s28": (55.9, 76.2), "swin_b28": (99.4, 119.8),
    "spt_t": (34.6, 54.9), "spt_t12": (27.5, 47.8), "spt_s": (55.9, 76.2), "spt_b": (99.3, 119.7),
}  # fmt: skip
# Multiply-adds of backbones at 800 x 1280 px in G, as published.
PUBLISHED_MACS = {"swin_t": 95.6, "swin_s": 187.6, "swin_b": 331.1}


def macs_by_hand(channels: int, depths: list[int], ratios: dict[int, float], proj_all: bool = False) -> int:
    """The formulas of Liu et al. (2021) and of the paper (eqs. 8 and 9), FFN on all tokens, for an 800 x 1280 image."""
    total, (h, w) = 48 * channels * 200 * 320, (200, 320)
    for stage, depth in enumerate(depths, start=1):
        c, n = channels * 2 ** (stage - 1), h * w
        ffn = 8 * c * c * n
        if stage in ratios:
            kept = math.ceil(ratios[stage] * n)
            pairs = math.ceil(kept / 49) * 49 * 49
            total += depth * (c * n + 3 * c * c * kept + c * c * (n if proj_all else kept) + 2 * c * pairs + ffn)
        else:
            padded = math.ceil(h / 7) * math.ceil(w / 7) * 49
            total += depth * (4 * c * c * padded + 2 * c * 49 * padded + ffn)
            total += c * n if stage + 1 in ratios else 0
        h, w = math.ceil(h / 2), math.ceil(w / 2)
        total += 8 * c * c * h * w if stage < 4 else 0
    return total


def built(name: str) -> nn.Module:
    cfg = get_config(f"COCO-InstanceSegmentation/{name}.yaml")
    cfg.MODEL.DEVICE = "meta"
    with torch.device("meta"):
        return build_model(cfg)


@pytest.mark.usefixtures("unset_weights")
@pytest.mark.parametrize("size", PARAMETERS)
def test_a_variant_has_its_parameters_and_multiply_adds(size: str) -> None:
    model = built(f"mask_rcnn_{size}_fpn_3x")
    backbone = model.backbone.bottom_up
    millions = [sum(p.numel() for p in module.parameters()) / 1e6 for module in (backbone, model)]
    assert millions == pytest.approx(PARAMETERS[size], abs=0.06)
    sizes = backbone.patch_embed.proj.out_channels, [len(stage.blocks) for stage in backbone.layers]
    ratios = {3: 0.23, 4: 0.25} if "spt" in size else {}
    assert nominal_macs(backbone, (800, 1280), ratios).executed == macs_by_hand(*sizes, ratios)
    if size in PUBLISHED_MACS:
        assert round(macs_by_hand(*sizes, {}) / 1e9, 1) == PUBLISHED_MACS[size]


@pytest.mark.usefixtures("unset_weights")
@pytest.mark.parametrize("size", ["spt_t", "spt_s", "spt_b"])
def test_the_literal_variant_projects_all_tokens(size: str) -> None:
    backbone = built(f"mask_rcnn_{size}_fpn_3x_literal").backbone.bottom_up
    sizes = backbone.patch_embed.proj.out_channels, [len(stage.blocks) for stage in backbone.layers]
    ratios = {3: 0.23, 4: 0.25}
    assert nominal_macs(backbone, (800, 1280), ratios).executed == macs_by_hand(*sizes, ratios, proj_all=True)
