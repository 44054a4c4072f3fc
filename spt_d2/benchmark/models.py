"""The backbones of this project that are timed, built from a config, all with the weights of one dense Swin."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_backbone
from torch import Tensor, nn

from spt_d2 import get_config
from spt_d2.model_zoo.variants import EXTRA_BLOCKS, VARIANTS, Variant
from spt_d2.weights import fit_to_model

OWN: Mapping[str, Variant] = {
    **{name: VARIANTS[name] for name in ("swin_t", "swin_t16", "spt_t12", "spt_t")},
    "spt_t_light": Variant("T", EXTRA_BLOCKS, options=(("FFN_TOKENS", "light"),)),
    "spt_t_selected": Variant("T", EXTRA_BLOCKS, options=(("FFN_TOKENS", "selected"),)),
}


@dataclass(frozen=True)
class Geometry:
    """What a dense Swin of anyone's make is built from; see :class:`spt_d2.modeling.backbone.swin.Swin`."""

    embed_dim: int
    depths: tuple[int, ...]
    num_heads: tuple[int, ...]
    window_size: int
    mlp_ratio: float


def variant_config(name: str, overrides: Mapping[str, Any], detector: bool = False) -> CfgNode:
    """
    The config of one of :data:`OWN`, a Mask R-CNN. No drop path, which implementations spend differently.

    Args:
        name: of the backbone.
        overrides: keys and values over the variant's.
        detector: whether the backbone is wanted under a pyramid, or by itself.

    Raises:
        ValueError: another name.
    """
    if name not in OWN:
        raise ValueError(f"A backbone of this project expects one of {', '.join(OWN)}. Got {name!r}.")
    variant = OWN[name]
    cfg = get_config("Base-RCNN-FPN.yaml")
    kind = "spt" if variant.selects else "swin"
    values = {
        "MODEL.DEVICE": "cpu",
        "MODEL.SPT.DROP_PATH_RATE": 0.0,
        "MODEL.SWIN.DROP_PATH_RATE": 0.0,
        **variant.overrides(),
        **overrides,
        "MODEL.BACKBONE.NAME": f"build_{kind}_fpn_backbone" if detector else f"build_{kind}_backbone",
    }
    cfg.merge_from_list([part for pair in values.items() for part in pair])
    return cfg


def dense_geometry(overrides: Mapping[str, Any]) -> Geometry:
    """Of ``swin_t`` under overrides: what peers are built as."""
    node = variant_config("swin_t", overrides).MODEL.SWIN
    return Geometry(node.EMBED_DIM, tuple(node.DEPTHS), tuple(node.NUM_HEADS), node.WINDOW_SIZE, node.MLP_RATIO)


def dense_weights(overrides: Mapping[str, Any], seed: int = 0) -> dict[str, Tensor]:
    """The state dict of a ``swin_t`` as it is initialised."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build_backbone(variant_config("swin_t", overrides)).state_dict()


def build_own(name: str, overrides: Mapping[str, Any], weights: Mapping[str, Tensor]) -> nn.Module:
    """
    A backbone of this project on the CPU.

    Args:
        name: one of :data:`OWN`.
        overrides: keys and values over the variant's.
        weights: of a dense Swin. Further blocks start as the identity, and tables without a place are left out: see
            :mod:`spt_d2.weights.fit`.
    """
    model = build_backbone(variant_config(name, overrides))
    load_dense(model, weights)
    return model


def load_dense(model: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Give a backbone the weights of a dense Swin, as far as it has a place for them."""
    fitted, _ = fit_to_model(dict(weights), model.state_dict())
    model.load_state_dict(fitted, strict=False)
