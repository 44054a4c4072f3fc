"""
Weights of plain ViTs from elsewhere, under the names of :class:`~spt_d2.modeling.ViT`.

============================  ================================================  ========================================
here                          timm, MAE, DeiT, Detectron2's ``ViT``             torchvision
============================  ================================================  ========================================
``patch_embed.proj``          the same                                          ``conv_proj``
``pos_embed``                 the same, a row for the class token before it     ``encoder.pos_embedding``, likewise
``blocks.N.norm1``            the same                                          ``encoder.layers.encoder_layer_N.ln_1``
``blocks.N.attn.qkv``         the same                                          ``...self_attention.in_proj_{...}``
``blocks.N.attn.proj``        the same                                          ``...self_attention.out_proj``
``blocks.N.norm2``            the same                                          ``...ln_2``
``blocks.N.mlp.fc1``, fc2     the same                                          ``...mlp.0``, 3 (``linear_1``, 2)
``norm``                      the same (ViTDet's have none)                     ``encoder.ln``
============================  ================================================  ========================================

Gates, and a light FFN, have no counterpart elsewhere and keep their start. Class tokens, heads and decoders are
dropped. ``MODEL.WEIGHTS`` takes such a file as it is.
"""

import re
from collections.abc import Mapping

import torch
from torch import Tensor

from spt_d2.ops.positions import resize_positions

# Names of torchvision, in the order in which they are rewritten.
_RENAMED = (
    (r"^conv_proj\.", "patch_embed.proj."),
    (r"^encoder\.pos_embedding$", "pos_embed"),
    (r"^encoder\.ln\.", "norm."),
    (r"^encoder\.layers\.encoder_layer_(\d+)\.", r"blocks.\1."),
    (r"^(blocks\.\d+)\.ln_([12])\.", r"\1.norm\2."),
    (r"^(blocks\.\d+)\.self_attention\.in_proj_", r"\1.attn.qkv."),
    (r"^(blocks\.\d+)\.self_attention\.out_proj\.", r"\1.attn.proj."),
    (r"^(blocks\.\d+)\.mlp\.(?:0|linear_1)\.", r"\1.mlp.fc1."),
    (r"^(blocks\.\d+)\.mlp\.(?:3|linear_2)\.", r"\1.mlp.fc2."),
)
# The convolution that makes patches: here and at timm, at torchvision.
_PATCHES = ("patch_embed.proj.weight", "conv_proj.weight")
# What does not act on the map of patches once the class token is gone.
_DROPPED = re.compile(
    r"^(cls_token|class_token|dist_token|mask_token|heads?(_dist)?\.|fc_norm\.|pre_logits\.|decoder_|decoder\.)"
)
_KNOWN = re.compile(
    r"^(pos_embed|patch_embed\.proj\.(weight|bias)|norm\.(weight|bias)"
    r"|blocks\.\d+\.(norm1|norm2|attn\.qkv|attn\.proj|mlp\.fc1|mlp\.fc2)\.(weight|bias))$"
)
# What only this project's blocks have: a checkpoint of another detector here, or for another image size.
_OWN = re.compile(r"^blocks\.\d+\.(gate\.proj|light|pos_conv)\.(weight|bias)$")
# Without these a ViT is not the one that was trained. Biases may be missing, and the last norm, which ViTDet's lack.
_NEEDED = re.compile(r"^(pos_embed|patch_embed\.proj\.weight|blocks\.\d+\.(norm1|norm2|attn|mlp)\..*weight)$")


def vit_state_dict(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """
    Translate the weights of a ViT.

    Args:
        weights: a state dict in one of the layouts above, or a checkpoint that holds it under ``model`` or
            ``state_dict``; prefixes such as ``module.`` or ``backbone.net.`` are found by the patch embedding.

    Returns:
        a state dict of :class:`~spt_d2.modeling.ViT`, with gates where it is this project's own; position embeddings
        without the class token's row.

    Raises:
        ValueError: no ViT, or one with parameters that have no place here (layer scale, relative positions, register
            tokens, norms of queries and keys, an added norm): without them it would be another function.
    """
    for key in ("model", "state_dict"):
        if isinstance(weights.get(key), Mapping):
            weights = weights[key]  # type: ignore[assignment]
    prefix = _prefix(weights)
    translated: dict[str, Tensor] = {}
    unknown = []
    for full_name, value in weights.items():
        if not full_name.startswith(prefix):
            continue
        name = full_name.removeprefix(prefix)
        for pattern, replacement in _RENAMED:
            name = re.sub(pattern, replacement, name)
        if _KNOWN.match(name) or _OWN.match(name):
            translated[name] = torch.as_tensor(value)
        elif not _DROPPED.match(name):
            unknown.append(full_name)
    if unknown:
        shown = "".join(f"  {name}\n" for name in unknown[:5])
        raise ValueError(
            "vit_state_dict(weights=) expects a ViT of plain pre-norm blocks. "
            f"Got {len(unknown)} parameters that have no place in one, such as\n{shown}"
            "HINT: vit_base_patch16_224 of timm, MAE's ViT-B and torchvision's vit_b_16 are of this kind."
        )
    if "pos_embed" in translated:
        translated["pos_embed"] = _of_patches(translated["pos_embed"])
    return translated


def vit_checkpoint(weights: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """
    :func:`vit_state_dict` under the names of a whole model, its positions resized to the grid that model learns.

    Args:
        weights: see :func:`vit_state_dict`.
        wanted: state dict of a ViT, or of a detector over one.

    Raises:
        ValueError: a model without a ViT, or with one of other width, depth or patches.
    """
    places = [name for name in wanted if name == "pos_embed" or name.endswith(".pos_embed")]
    if len(places) != 1:
        raise ValueError(f"vit_checkpoint(wanted=) expects a model with one ViT. Got {len(places)} of its 'pos_embed'.")
    prefix = places[0].removesuffix("pos_embed")
    translated = vit_state_dict(weights)
    if "pos_embed" in translated:
        side = round(wanted[places[0]].shape[1] ** 0.5)
        translated["pos_embed"] = resize_positions(translated["pos_embed"], (side, side)).flatten(1, 2)
    named = {
        prefix + name: value for name, value in translated.items() if prefix + name in wanted or not _OWN.match(name)
    }
    misfits = [
        f"  {name}: {tuple(value.shape)} in the checkpoint, "
        + (f"{tuple(wanted[name].shape)} here" if name in wanted else "none here")
        for name, value in named.items()
        if name not in wanted or wanted[name].shape != value.shape
    ]
    misfits += [
        f"  {name}: none in the checkpoint, {tuple(value.shape)} here"
        for name, value in wanted.items()
        if name.startswith(prefix) and _NEEDED.match(name.removeprefix(prefix)) and name not in named
    ]
    if misfits:
        raise ValueError(
            "vit_checkpoint expects weights of the model's width, depth and patches (MODEL.VIT). Got\n"
            + "\n".join(misfits[:5])
        )
    return named


def fit_vit(weights: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> dict[str, Tensor] | None:
    """
    :func:`vit_checkpoint` where there is something to translate.

    Returns:
        what to load, or None: the model has no ViT, or the weights have none, or have the model's own names and shapes.
        Where only the positions are of another grid, the other parts of the detector are handed on as they are.

    Raises:
        ValueError: as :func:`vit_checkpoint`.
    """
    places = [name for name in wanted if name == "pos_embed" or name.endswith(".pos_embed")]
    if len(places) != 1:
        return None
    own = {name.removeprefix("module."): value for name, value in weights.items()}
    if places[0] in own and own[places[0]].shape == wanted[places[0]].shape:
        return None
    if not any(name == patch or name.endswith(f".{patch}") for name in weights for patch in _PATCHES):
        return None
    fitted = vit_checkpoint(weights, wanted)
    prefix = places[0].removesuffix("pos_embed")
    if places[0] in own:
        fitted.update({name: value for name, value in own.items() if not name.startswith(prefix)})
    return fitted


def _prefix(weights: Mapping[str, Tensor]) -> str:
    """What stands before the names of the ViT itself."""
    for own in _PATCHES:
        found = [name.removesuffix(own) for name in weights if name == own or name.endswith(f".{own}")]
        if len(found) == 1:
            return found[0]
    raise ValueError(
        "vit_state_dict(weights=) expects the state dict of one ViT, with 'patch_embed.proj.weight' "
        f"(torchvision: 'conv_proj.weight'). Got {len(weights)} entries, such as {list(weights)[:3]}."
    )


def _of_patches(positions: Tensor) -> Tensor:
    """(1, k + n * n, C) without the k = 0, 1 or 2 rows of class and distillation tokens, which come first."""
    rows = positions.shape[1]
    extra = next((k for k in range(3) if round((rows - k) ** 0.5) ** 2 == rows - k), 0)
    return positions[:, extra:]
