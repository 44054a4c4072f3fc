"""Layouts are recognised by keys alone, under any prefix; what is not Swin's first version is refused."""

import pytest
import torch
import torch.nn.functional as F

from tests import reference
from tests.weights.sources import DEPTHS, LAYOUTS, source

from spt_d2.layers.patch import PatchMerging  # isort: skip
from spt_d2.weights import detect_layout, to_native  # isort: skip

BLOCK = "layers.0.blocks.0.attn.qkv.weight"


@pytest.mark.parametrize("outer", ["", "backbone.bottom_up.", "module.encoder."])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_each_layout_is_recognised_under_any_prefix(layout, outer):
    weights = {outer + name: value for name, value in source(layout, 4, (128, 128))[0].items()}
    own = "backbone." if layout in ("swin-detection", "mmdetection") else ""
    if layout == "swin-detection" and outer:
        # Its heads stand beside the backbone, at the top.
        weights = {name.replace(outer, "", 1) if ".backbone." not in name else name: v for name, v in weights.items()}
    found = detect_layout(weights)
    assert (found.name, found.prefix) == (layout, outer + own)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_all_layouts_come_to_the_same_names_and_lose_nothing(layout):
    weights = source(layout, 4, (128, 128))[0]
    backbone, others = to_native(weights, detect_layout(weights))
    assert len(backbone) + len(others) == len(weights)
    computed = ("relative_position_index", "attn_mask")
    expected = source("detectron2", 4, (128, 128))[0]
    if layout in ("swin", "timm", "torchvision"):
        expected = {name: value for name, value in expected.items() if not name.startswith("norm")}
        assert set(others) <= {f"{part}.{leaf}" for part in ("norm", "head", "head.fc") for leaf in ("weight", "bias")}
    shapes = [
        {name: tuple(value.shape) for name, value in state.items() if not name.endswith(computed)}
        for state in (backbone, expected)
    ]
    assert shapes[0] == shapes[1]
    assert sum(name.endswith("table") for name in backbone) == sum(DEPTHS)


def test_mergings_that_unfold_their_cells_give_the_same_features():
    weights = source("mmdetection", 4, (64, 64))[0]
    backbone, _ = to_native(weights, detect_layout(weights))
    merging = PatchMerging(8).double()
    merging.load_state_dict({leaf: backbone[f"layers.0.downsample.{leaf}"] for leaf in merging.state_dict()})
    x = torch.randn(2, 6, 4, 8, dtype=torch.float64)
    theirs = F.unfold(x.permute(0, 3, 1, 2), kernel_size=2, stride=2).transpose(1, 2)
    own = {name.rpartition("downsample.")[2]: value for name, value in weights.items() if "stages.0.downsample" in name}
    theirs = F.layer_norm(theirs, (32,), own["norm.weight"], own["norm.bias"])
    theirs = F.linear(theirs, own["reduction.weight"])
    reference.close(merging(x).flatten(1, 2), theirs)


def test_what_has_no_swin_backbone_has_no_layout():
    assert detect_layout([]) is None
    assert detect_layout(["patch_embed.proj.weight", "blocks.0.attn.qkv.weight", "head.weight"]) is None
    assert detect_layout(["stem.conv1.weight", "res2.0.conv1.weight"]) is None
    assert detect_layout(["mylayers.0.blocks.0.attn.qkv.weight"]) is None


def test_swin_v2_is_refused():
    swin_module = pytest.importorskip("torchvision.models.swin_transformer", reason="torchvision is not installed")
    model = swin_module.SwinTransformer(
        [4, 4], 8, [1, 1], [1, 2], [4, 4],
        block=swin_module.SwinTransformerBlockV2, downsample_layer=swin_module.PatchMergingV2,
    )  # fmt: skip
    with pytest.raises(ValueError, match="Swin V2"):
        detect_layout(model.state_dict())
    with pytest.raises(ValueError, match="Swin V2"):
        detect_layout([BLOCK, "layers.0.blocks.0.attn.cpb_mlp.0.weight"])


def test_the_layout_of_transformers_is_refused_with_the_names_of_those_that_are_not():
    name = "swin.encoder.layers.0.blocks.0.attention.self.query.weight"
    with pytest.raises(ValueError, match=r"swin, swin-detection, timm, (.|\n)*transformers(.|\n)*HINT"):
        detect_layout([name])


def test_two_backbones_are_ambiguous():
    with pytest.raises(ValueError, match=r"several, under the prefixes \['student\.', 'teacher\.'\]"):
        detect_layout([f"student.{BLOCK}", f"teacher.{BLOCK}"])
