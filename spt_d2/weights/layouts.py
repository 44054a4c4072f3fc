"""
Layouts of Swin checkpoints, recognised by their keys and brought to the names of this project.

Names here are those of Swin's own code and of Detectron2's ``SwinTransformer``: ``patch_embed.{proj,norm}``,
``layers.{stage}.blocks.{block}.{norm1,attn,norm2,mlp}``, ``layers.{stage}.downsample`` at the end of a stage, and an
output norm ``norm{stage}`` for each feature map. What others call the same was read from the models they build:

==============  ==================================================================================================
swin            the same, with ``head``, ``norm`` and stored tables
swin-detection  the same under ``backbone.``, beside ``neck``, ``rpn_head``, ``roi_head``; early files call the table
                ``rel_pos_embed_table`` and the merging's matrix ``channel_reduction``
timm            ``downsample`` at the beginning of a stage, hence its number is larger by one; ``head.fc``
torchvision     ``features.{0, 1, 2, ...}``: patch embedding, then blocks and mergings in turn; ``mlp.0`` and ``mlp.3``
mmdetection     ``stages``, ``attn.w_msa``, ``ffn.layers``; mergings order their 4C channels as ``nn.Unfold`` does
dat             no Swin, but built alike (:mod:`spt_d2.weights.dat`)
==============  ==================================================================================================
"""

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass

from torch import Tensor

from spt_d2.weights.dat import FIRST_BLOCK, dat_to_native

LAYOUTS = {
    "detectron2": "Detectron2's SwinTransformer and this project",
    "swin": "Swin's classifiers",
    "swin-detection": "Swin's detectors",
    "timm": "timm",
    "torchvision": "torchvision",
    "mmdetection": "MMDetection",
    "dat": "DAT's authors",
}

# The first block's queries, keys and values: in every layout there, and nowhere else.
_FIRST_BLOCK = {
    "layers": "layers.0.blocks.0.attn.qkv.weight",
    "features": "features.1.0.attn.qkv.weight",
    "stages": "stages.0.blocks.0.attn.w_msa.qkv.weight",
    "dat": FIRST_BLOCK,
    "transformers": "encoder.layers.0.blocks.0.attention.self.query.weight",
}
_BACKBONE = re.compile(r"(patch_embed|layers\.\d+|norm\d+|output_gates)\.|absolute_pos_embed$")
_OTHER_PARTS = ("neck.", "rpn_head.", "roi_head.", "bbox_head.")


@dataclass(frozen=True)
class Layout:
    """
    Attributes:
        name: one of :data:`LAYOUTS`.
        prefix: what stands before the backbone's names, empty or ending with a dot.
    """

    name: str
    prefix: str


def detect_layout(names: Collection[str]) -> Layout | None:
    """
    Recognise a Swin backbone by the keys of a state dict.

    Args:
        names: all keys.

    Returns:
        None where there is no Swin backbone.

    Raises:
        ValueError: it holds several, or one that is not Swin's first version, or one in the layout of ``transformers``.
    """
    found = [
        (kind, name.removesuffix(first))
        for name in names
        for kind, first in _FIRST_BLOCK.items()
        if name == first or name.endswith("." + first)
    ]
    if not found:
        return None
    if len(found) > 1:
        raise ValueError(
            "detect_layout(names=) expects the weights of one backbone. Got several, under the prefixes "
            f"{[prefix for _, prefix in found]}.\nHINT: save the one that is wanted, and nothing else."
        )
    kind, prefix = found[0]
    if kind == "transformers":
        raise ValueError(
            "detect_layout(names=) expects a layout of "
            + ", ".join(LAYOUTS)
            + ". Got that of the package transformers.\nHINT: the same weights are to be had in timm's layout."
        )
    own = [name.removeprefix(prefix) for name in names if name.startswith(prefix)]
    if any(name.endswith("attn.logit_scale") or ".cpb_mlp." in name for name in own):
        raise ValueError(
            "detect_layout(names=) expects weights of the first version of Swin. Got Swin V2, whose attention "
            "(cosine similarity, a position bias from an MLP, norms after the branches) is another function."
        )
    if kind == "dat":
        return Layout("dat", prefix)
    if kind == "features":
        return Layout("torchvision", prefix)
    if kind == "stages":
        return Layout("mmdetection", prefix)
    mergings = {name.split(".")[1] for name in own if re.match(r"layers\.\d+\.downsample\.", name)}
    if mergings and "0" not in mergings:
        return Layout("timm", prefix)
    if prefix and any(name.startswith(_OTHER_PARTS) for name in names):
        return Layout("swin-detection", prefix)
    if any(name.startswith(("head.", "norm.")) for name in own):
        return Layout("swin", prefix)
    return Layout("detectron2", prefix)


def to_native(weights: Mapping[str, Tensor], layout: Layout) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """
    Give the backbone's weights the names, and the order of channels, that they have here.

    Args:
        weights: a state dict.
        layout: as :func:`detect_layout` found it.

    Returns:
        the backbone's entries by their names without a prefix, stored tables among them; and all others as they were.
    """
    if layout.name == "dat":
        return dat_to_native(weights, layout.prefix)
    backbone: dict[str, Tensor] = {}
    others: dict[str, Tensor] = {}
    for name, value in weights.items():
        bare = name.removeprefix(layout.prefix)
        native = _native_name(bare, layout.name) if name.startswith(layout.prefix) else None
        if native is None or not _BACKBONE.match(native):
            others[name] = value
            continue
        if layout.name == "mmdetection" and ".downsample." in native:
            value = _from_unfold(value)
        backbone[native] = value
    return backbone, others


def is_backbone_name(name: str) -> bool:
    """Whether a name without prefix belongs to a backbone of this project."""
    return _BACKBONE.match(name) is not None


def _native_name(name: str, layout: str) -> str | None:
    if layout == "torchvision":
        return _from_torchvision(name)
    if layout == "timm":
        return re.sub(r"^layers\.(\d+)\.downsample\.", lambda m: f"layers.{int(m[1]) - 1}.downsample.", name)
    if layout == "mmdetection":
        name = re.sub(r"^stages\.", "layers.", name).replace(".attn.w_msa.", ".attn.")
        name = name.replace(".ffn.layers.0.0.", ".mlp.fc1.").replace(".ffn.layers.1.", ".mlp.fc2.")
        return name.replace("patch_embed.projection.", "patch_embed.proj.")
    if layout == "swin-detection":
        name = name.replace(".rel_pos_embed_table", ".relative_position_bias_table")
        name = name.replace(".relative_coords", ".relative_position_index").replace(".atten_mask_matrix", ".attn_mask")
        return name.replace(".downsample.channel_reduction.", ".downsample.reduction.")
    return name


def _from_torchvision(name: str) -> str | None:
    if name.startswith("features.0."):
        return name.replace("features.0.0.", "patch_embed.proj.").replace("features.0.2.", "patch_embed.norm.")
    match = re.match(r"features\.(\d+)\.(.*)$", name)
    if match is None:
        return None
    place, rest = int(match[1]), match[2]
    if place % 2 == 0:
        return f"layers.{place // 2 - 1}.downsample.{rest}"
    block, _, rest = rest.partition(".")
    rest = rest.replace("mlp.0.", "mlp.fc1.").replace("mlp.3.", "mlp.fc2.")
    return f"layers.{place // 2}.blocks.{block}.{rest}"


def _from_unfold(value: Tensor) -> Tensor:
    """(..., 4C) in the order channel, row, column to Swin's column, row, channel."""
    return value.unflatten(-1, (-1, 2, 2)).transpose(-1, -3).flatten(-3)
