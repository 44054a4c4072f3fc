"""The paper's backbones in every reading (Sec. 3.1, App. B.2), counted without weights and without their configs."""

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from detectron2.modeling import build_model

from spt_d2 import get_config
from spt_d2.analysis.dynamic_swin_macs import training_macs
from spt_d2.analysis.hierarchy_macs import has_own_ratios, nominal_macs
from spt_d2.analysis.macs import Macs
from spt_d2.analysis.model_report import bottom_up, parameter_counts, selects
from spt_d2.modeling.backbone import DynamicSwin

# The paper's: height and width in pixels, and the shares kept in stages 3 and 4 (Sec. 4.2, Table 6).
IMAGE_SIZE = (800, 1280)
KEEP_RATIO: Mapping[int, float] = {3: 0.23, 4: 0.25}
# Blocks that the paper adds to the third stage.
EXTRA_BLOCKS = 4


@dataclass(frozen=True)
class Size:
    """Swin as published (Liu et al., 2021): C of the first stage, heads and blocks of each stage."""

    embed_dim: int
    num_heads: tuple[int, ...]
    depths: tuple[int, int, int, int]


SIZES = {
    "T": Size(96, (3, 6, 12, 24), (2, 2, 6, 2)),
    "S": Size(96, (3, 6, 12, 24), (2, 2, 18, 2)),
    "B": Size(128, (4, 8, 16, 32), (2, 2, 18, 2)),
}


@dataclass(frozen=True)
class Variant:
    """
    A backbone.

    Attributes:
        size: T, S or B.
        extra_blocks: in the third stage, more than Swin has.
        selects: whether it is SPT; else dense Swin.
        options: pairs of a key of ``MODEL.SPT`` and its value, where that is not the default.
    """

    size: str
    extra_blocks: int = 0
    selects: bool = True
    options: tuple[tuple[str, Any], ...] = ()

    @property
    def depths(self) -> tuple[int, int, int, int]:
        """Blocks of each stage."""
        first, second, third, fourth = SIZES[self.size].depths
        return first, second, third + self.extra_blocks, fourth

    def overrides(self) -> dict[str, Any]:
        """Keys of a config and their values."""
        size = SIZES[self.size]
        values = {
            "EMBED_DIM": size.embed_dim,
            "NUM_HEADS": list(size.num_heads),
            "DEPTHS": list(self.depths),
            **dict(self.options),
        }
        return {f"MODEL.{'SPT' if self.selects else 'SWIN'}.{key}": value for key, value in values.items()}


# By their names in config files.
VARIANTS = {
    "swin_t": Variant("T", selects=False),
    "swin_t16": Variant("T", EXTRA_BLOCKS, selects=False),
    "swin_s": Variant("S", selects=False),
    "swin_s28": Variant("S", EXTRA_BLOCKS, selects=False),
    "swin_b": Variant("B", selects=False),
    "swin_b28": Variant("B", EXTRA_BLOCKS, selects=False),
    "spt_t": Variant("T", EXTRA_BLOCKS),
    "spt_t12": Variant("T"),
    "spt_s": Variant("S", EXTRA_BLOCKS),
    "spt_b": Variant("B", EXTRA_BLOCKS),
}

# What the paper may have meant, and two that are ours: title, blocks more than Swin, options.
READINGS: tuple[tuple[str, int, tuple[tuple[str, Any], ...]], ...] = (
    ("as described: FFN on all tokens, out-projection on selected ones", EXTRA_BLOCKS, ()),
    ("out-projection on all tokens (eq. 9)", EXTRA_BLOCKS, (("PROJ_TOKENS", "all"),)),
    ("no extra blocks", 0, ()),
    ("no extra blocks, out-projection on all tokens", 0, (("PROJ_TOKENS", "all"),)),
    ("FFN on selected tokens only (ours)", EXTRA_BLOCKS, (("FFN_TOKENS", "selected"),)),
    ("FFN light: one Linear for tokens not selected (ours)", EXTRA_BLOCKS, (("FFN_TOKENS", "light"),)),
)

# What makes Base-RCNN-FPN.yaml, a Mask R-CNN, another detector. {} stands for spt or swin.
DETECTORS: Mapping[str, Mapping[str, Any]] = {
    "Mask R-CNN": {"MODEL.BACKBONE.NAME": "build_{}_fpn_backbone"},
    "Cascade Mask R-CNN": {
        "MODEL.BACKBONE.NAME": "build_{}_fpn_backbone",
        "MODEL.ROI_HEADS.NAME": "CascadeROIHeads",
        "MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG": True,
        "MODEL.ROI_BOX_HEAD.NUM_CONV": 4,
        "MODEL.ROI_BOX_HEAD.NUM_FC": 1,
        "MODEL.ROI_BOX_HEAD.NORM": "SyncBN",
        # CascadeROIHeads asks for as many as at inference.
        "MODEL.RPN.POST_NMS_TOPK_TRAIN": 1000,
    },
    "RetinaNet": {
        "MODEL.META_ARCHITECTURE": "SelectionRetinaNet",
        "MODEL.BACKBONE.NAME": "build_retinanet_{}_fpn_backbone",
        "MODEL.FPN.IN_FEATURES": ["res3", "res4", "res5"],
        "MODEL.SPT.OUT_FEATURES": ["res3", "res4", "res5"],
        "MODEL.SWIN.OUT_FEATURES": ["res3", "res4", "res5"],
        "MODEL.ANCHOR_GENERATOR.SIZES": [[x, x * 2 ** (1 / 3), x * 2 ** (2 / 3)] for x in (32, 64, 128, 256, 512)],
    },
}


@functools.cache
def build_detector(variant: Variant, detector: str = "Mask R-CNN") -> torch.nn.Module:
    """
    A detector of 80 classes on the meta device: of the right shapes, without weights. Built once.

    Args:
        variant: its backbone.
        detector: one of :data:`DETECTORS`.
    """
    cfg = get_config("Base-RCNN-FPN.yaml")
    values = {**DETECTORS[detector], **variant.overrides(), "MODEL.DEVICE": "meta"}
    values["MODEL.BACKBONE.NAME"] = values["MODEL.BACKBONE.NAME"].format("spt" if variant.selects else "swin")
    cfg.merge_from_list([part for pair in values.items() for part in pair])
    with torch.device("meta"):
        return build_model(cfg).eval()


@dataclass(frozen=True)
class Count:
    """
    Attributes:
        backbone: its parameters, without a pyramid.
        detector: parameters of the Mask R-CNN over it.
        kept: multiply-adds of the backbone at the keep ratios asked for.
        full: the same with every token kept.
        none: and with no token kept.
    """

    backbone: int
    detector: int
    kept: Macs
    full: Macs
    none: Macs


def count(
    variant: Variant, keep_ratio: Mapping[int, float] = KEEP_RATIO, image_size: tuple[int, int] = IMAGE_SIZE
) -> Count:
    """
    Count a backbone.

    Args:
        variant: what is counted.
        keep_ratio: ``{stage: share}`` of its stages that select.
        image_size: height and width in pixels.
    """
    model = build_detector(variant)
    parameters = parameter_counts(model)
    network = bottom_up(model)
    return Count(
        backbone=parameters["backbone"],
        detector=parameters["model"],
        kept=nominal_macs(network, image_size, keep_ratio).total,
        full=nominal_macs(network, image_size, 1.0).total,
        none=nominal_macs(network, image_size, 0.0).total,
    )


@functools.cache
def config_model(config: str) -> torch.nn.Module:
    """The model of a yaml config below ``configs/``, of the right shapes, without weights. Built once."""
    cfg = get_config(config)
    cfg.MODEL.DEVICE = "meta"
    with torch.device("meta"):
        return build_model(cfg).eval()


def config_parameters(config: str) -> int:
    """Parameters of the model of a config."""
    return parameter_counts(config_model(config))["model"]


@functools.cache
def config_costs(config: str, image_size: tuple[int, int] = IMAGE_SIZE) -> tuple[float, float] | None:
    """
    Multiply-adds of the backbone of a config: dense, or one whose ratios are part of it.

    Args:
        config: yaml below ``configs/``.
        image_size: height and width in pixels.

    Returns:
        at inference, and in the forward pass of training; None where the images decide, by a gate or their labels.
    """
    model = config_model(config)
    network = bottom_up(model)
    if selects(model) and not has_own_ratios(network):
        return None
    executed = nominal_macs(network, image_size, None).executed
    if isinstance(network, DynamicSwin):
        return executed, training_macs(network, image_size).executed
    return executed, executed


def detector_parameters(variant: Variant, detector: str) -> int:
    """
    Parameters of a detector of 80 classes over a backbone.

    What is not the backbone depends on its width alone, and is counted once for each width.
    """
    narrow = next(
        name
        for name, known in VARIANTS.items()
        if SIZES[known.size].embed_dim == SIZES[variant.size].embed_dim and not known.selects
    )
    rest = parameter_counts(build_detector(VARIANTS[narrow], detector))["model"]
    rest -= parameter_counts(build_detector(VARIANTS[narrow]))["backbone"]
    return rest + parameter_counts(build_detector(variant))["backbone"]
