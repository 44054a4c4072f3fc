"""Hierarchical backbones: dense Swin and the Select and Pack Transformer."""

from spt_d2.modeling.backbone.spt import SPT, build_spt_backbone
from spt_d2.modeling.backbone.swin import Swin, build_swin_backbone

__all__ = ["SPT", "Swin", "build_spt_backbone", "build_swin_backbone"]
