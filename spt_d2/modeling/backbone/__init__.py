"""Backbones: dense Swin, the Select and Pack Transformer, the plain ViT, and what SPT is compared with."""

from spt_d2.modeling.backbone.dat import DAT, build_dat_backbone
from spt_d2.modeling.backbone.dynamic_swin import DynamicSwin, build_dynamic_swin_backbone
from spt_d2.modeling.backbone.sparse_vit import SparseViT, build_sparse_vit_backbone
from spt_d2.modeling.backbone.spt import SPT, build_spt_backbone
from spt_d2.modeling.backbone.svit_gated_swin import SvitGatedSwin, build_svit_gated_swin_backbone
from spt_d2.modeling.backbone.swin import Swin, build_swin_backbone
from spt_d2.modeling.backbone.vit import ViT, build_vit_backbone

__all__ = [
    "DAT",
    "SPT",
    "DynamicSwin",
    "SparseViT",
    "SvitGatedSwin",
    "Swin",
    "ViT",
    "build_dat_backbone",
    "build_dynamic_swin_backbone",
    "build_sparse_vit_backbone",
    "build_spt_backbone",
    "build_svit_gated_swin_backbone",
    "build_swin_backbone",
    "build_vit_backbone",
]
