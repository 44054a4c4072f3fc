"""Backbones: dense Swin, the Select and Pack Transformer and its peers, and the plain ViT."""

from spt_d2.modeling.backbone.dat import DAT, build_dat_backbone
from spt_d2.modeling.backbone.spt import SPT, build_spt_backbone
from spt_d2.modeling.backbone.swin import Swin, build_swin_backbone
from spt_d2.modeling.backbone.vit import ViT, build_vit_backbone

__all__ = [
    "DAT",
    "SPT",
    "Swin",
    "ViT",
    "build_dat_backbone",
    "build_spt_backbone",
    "build_swin_backbone",
    "build_vit_backbone",
]
