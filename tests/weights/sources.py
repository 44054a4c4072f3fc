"""Small Swin models as others build and save them, each with weights of its own and the maps that it computes."""

import re
from collections.abc import Callable
from itertools import product

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests import reference

pytest.importorskip("detectron2", reason="detectron2 is not installed")

from detectron2.modeling.backbone.swin import SwinTransformer

EMBED_DIM, DEPTHS, NUM_HEADS, MLP_RATIO = 8, (1, 2, 3, 2), (1, 2, 2, 4), 2.0
SIZES = {"embed_dim": EMBED_DIM, "depths": DEPTHS, "num_heads": NUM_HEADS, "mlp_ratio": MLP_RATIO}
LAYOUTS = ("detectron2", "swin", "swin-detection", "timm", "torchvision", "mmdetection")

Source = tuple[dict[str, Tensor], Callable[[Tensor], list[Tensor]]]


def source(layout: str, window_size: int, image_size: tuple[int, int]) -> Source:
    """A state dict, and the function from images to four normalised maps (B, C, H, W) that it stands for."""
    if layout == "timm":
        return _timm(window_size, image_size)
    if layout == "torchvision":
        return _torchvision(window_size)
    model = SwinTransformer(**SIZES, window_size=window_size, drop_path_rate=0.0)
    reference.randomise_(model).double().eval()
    if layout == "swin":
        # A classifier has no output norms.
        for i in range(4):
            nn.init.ones_(getattr(model, f"norm{i}").weight)
            nn.init.zeros_(getattr(model, f"norm{i}").bias)
    return renamed(model.state_dict(), layout), lambda image: list(model(image).values())


def renamed(weights: dict[str, Tensor], layout: str) -> dict[str, Tensor]:
    """Weights of Detectron2's SwinTransformer as Swin's own code and MMDetection save theirs."""
    weights = dict(weights)
    channels = max(value.shape[0] for name, value in weights.items() if name.startswith("norm"))
    if layout == "swin":
        weights = {name: value for name, value in weights.items() if not re.match(r"norm\d", name)}
        weights["layers.1.blocks.1.attn_mask"] = torch.zeros(4, 9, 9)
        weights["norm.weight"], weights["norm.bias"] = torch.ones(channels), torch.zeros(channels)
        weights["head.weight"], weights["head.bias"] = torch.zeros(5, channels), torch.zeros(5)
    elif layout == "swin-detection":
        early = (
            ("relative_position_bias_table", "rel_pos_embed_table"),
            ("relative_position_index", "relative_coords"),
            ("downsample.reduction", "downsample.channel_reduction"),
        )
        for new, old in early:
            weights = {name.replace(new, old): value for name, value in weights.items()}
    elif layout == "mmdetection":
        weights = {_mmdetection_name(name): _unfold_order(name, value) for name, value in weights.items()}
    if layout in ("swin-detection", "mmdetection"):
        weights = {f"backbone.{name}": value for name, value in weights.items()}
        weights["neck.lateral_convs.0.conv.weight"] = torch.zeros(4, channels // 8, 1, 1)
        weights["rpn_head.rpn_conv.weight"] = weights["roi_head.bbox_head.fc_cls.weight"] = torch.zeros(4, 4)
    return weights


def _mmdetection_name(name: str) -> str:
    name = name.replace("layers.", "stages.").replace("patch_embed.proj.", "patch_embed.projection.")
    name = name.replace(".attn.", ".attn.w_msa.").replace(".mlp.fc1.", ".ffn.layers.0.0.")
    return name.replace(".mlp.fc2.", ".ffn.layers.1.")


def _unfold_order(name: str, value: Tensor) -> Tensor:
    """A merging's 4C channels as ``nn.Unfold`` lays them: channel by channel, then row by row of the 2x2 cell."""
    if ".downsample." not in name:
        return value
    channels, result = value.shape[-1] // 4, torch.empty_like(value)
    for channel, row, column in product(range(channels), range(2), range(2)):
        result[..., 4 * channel + 2 * row + column] = value[..., (2 * column + row) * channels + channel]
    return result


def _normalised(x: Tensor) -> Tensor:
    return F.layer_norm(x, x.shape[-1:]).permute(0, 3, 1, 2)


def _timm(window_size: int, image_size: tuple[int, int]) -> Source:
    timm_swin = pytest.importorskip("timm.models.swin_transformer", reason="timm is not installed")
    model = timm_swin.SwinTransformer(
        img_size=image_size, window_size=window_size, num_classes=5, drop_path_rate=0.0, **SIZES
    )
    reference.randomise_(model).double().eval()

    def maps(image: Tensor) -> list[Tensor]:
        x, found = model.patch_embed(image), []
        for stage in model.layers:
            x = stage(x)
            found.append(_normalised(x))
        return found

    return model.state_dict(), maps


def _torchvision(window_size: int) -> Source:
    swin_module = pytest.importorskip("torchvision.models.swin_transformer", reason="torchvision is not installed")
    model = swin_module.SwinTransformer(
        patch_size=[4, 4],
        window_size=[window_size, window_size],
        num_classes=5,
        stochastic_depth_prob=0.0,
        **{**SIZES, "depths": list(DEPTHS), "num_heads": list(NUM_HEADS)},
    )
    reference.randomise_(model).double().eval()

    def maps(image: Tensor) -> list[Tensor]:
        x, found = image, []
        for i, part in enumerate(model.features):
            x = part(x)
            if i % 2:
                found.append(_normalised(x))
        return found

    return model.state_dict(), maps
