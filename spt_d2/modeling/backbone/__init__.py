"""Backbones: dense Swin, the Select and Pack Transformer, the plain ViT, and peers."""

from spt_d2.modeling.backbone.spt import SPT, build_spt_backbone
from spt_d2.modeling.backbone.svit_gated_swin import SvitGatedSwin, build_svit_gated_swin_backbone
from spt_d2.modeling.backbone.swin import Swin, build_swin_backbone
from spt_d2.modeling.backbone.vit import ViT, build_vit_backbone

__all__ = [
    "SPT",
    "SvitGatedSwin",
    "Swin",
    "ViT",
    "build_spt_backbone",
    "build_svit_gated_swin_backbone",
    "build_swin_backbone",
    "build_vit_backbone",
]
