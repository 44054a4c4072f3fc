"""Names and shapes of DAT's own checkpoints, classifiers' and detectors', brought to those of this project."""

import re
from collections.abc import Mapping

import torch
from torch import Tensor

# The first block's queries, keys and values.
FIRST_BLOCK = "stages.0.attns.0.proj_qkv.weight"

_NAMES = (
    (r"patch_proj\.0\.", "patch_embed.proj."),
    (r"patch_proj\.1\.norm\.", "patch_embed.norm."),
    (r"norms\.(\d+)\.norm\.", r"norm\1."),
    (r"down_projs\.(\d+)\.0\.", r"layers.\1.downsample.reduction."),
    (r"down_projs\.(\d+)\.1\.norm\.", r"layers.\1.downsample.norm."),
    (r"stages\.(\d+)\.mlps\.(\d+)\.chunk\.linear([12])\.", r"layers.\1.blocks.\2.mlp.fc\3."),
    (r"stages\.(\d+)\.attns\.(\d+)\.", r"layers.\1.blocks.\2.attn."),
)
_PARTS = (
    (".attn.proj_qkv.", ".attn.qkv."),
    (".attn.proj_out.", ".attn.proj."),
    (".attn.conv_offset.0.", ".attn.offset.depthwise."),
    (".attn.conv_offset.1.norm.", ".attn.offset.norm."),
    (".attn.conv_offset.3.", ".attn.offset.proj."),
    (".attn.rpe_table", ".attn.relative_position_bias_table"),
)
_NORM = re.compile(r"stages\.(\d+)\.layer_norms\.(\d+)\.norm\.(.*)$")
_QKV = re.compile(r"\.attn\.proj_([qkv])\.")


def dat_to_native(weights: Mapping[str, Tensor], prefix: str) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """
    The backbone of a checkpoint of DAT, as :class:`~spt_d2.modeling.backbone.DAT` names it.

    Queries, keys and values, three convolutions there, become one linear layer; convolutions of 1x1, and those of 2x2
    between stages, become linear layers.

    Args:
        weights: a state dict.
        prefix: what stands before the backbone's names.

    Returns:
        the backbone's entries by their names without a prefix, and all others as they were.
    """
    backbone: dict[str, Tensor] = {}
    others: dict[str, Tensor] = {}
    parts: dict[str, dict[str, Tensor]] = {}
    for name, value in weights.items():
        native = _native_name(name.removeprefix(prefix)) if name.startswith(prefix) else None
        if native is None:
            others[name] = value
        elif match := _QKV.search(native):
            parts.setdefault(_QKV.sub(".attn.qkv.", native), {})[match[1]] = _as_linear(value)
        else:
            backbone[native] = value if ".depthwise." in native or native.startswith("patch") else _as_linear(value)
    for native, found in parts.items():
        backbone[native] = torch.cat([found[part] for part in "qkv"])
    return backbone, others


def _native_name(name: str) -> str | None:
    """None outside of the backbone."""
    if match := _NORM.match(name):
        block, which = divmod(int(match[2]), 2)
        return f"layers.{match[1]}.blocks.{block}.norm{which + 1}.{match[3]}"
    for pattern, replacement in _NAMES:
        native, found = re.subn("^" + pattern, replacement, name)
        if found:
            for theirs, ours in _PARTS:
                native = native.replace(theirs, ours)
            return native
    return None


def _as_linear(value: Tensor) -> Tensor:
    """The weight of a convolution over cells of tokens as that of a linear layer; anything else as it is."""
    # Column by column within the cell, as PatchMerging reads it.
    return value.permute(0, 3, 2, 1).flatten(1) if value.dim() == 4 else value
