"""Backbones, FPN and meta-architectures, registered with Detectron2."""

try:
    import detectron2  # noqa: F401  asked for its ImportError alone
except ImportError as error:
    raise ImportError(
        "spt_d2.modeling needs detectron2, which is not on the package index under its own name.\n"
        "HINT: see INSTALL.md; spt_d2.ops and spt_d2.layers need torch only."
    ) from error

from spt_d2.modeling.backbone import (
    DAT,
    SPT,
    DynamicSwin,
    SparseViT,
    SvitGatedSwin,
    Swin,
    ViT,
    build_dat_backbone,
    build_dynamic_swin_backbone,
    build_sparse_vit_backbone,
    build_spt_backbone,
    build_svit_gated_swin_backbone,
    build_swin_backbone,
    build_vit_backbone,
)
from spt_d2.modeling.fpn import (
    SelectionFPN,
    build_dat_fpn_backbone,
    build_dynamic_swin_fpn_backbone,
    build_retinanet_dat_fpn_backbone,
    build_retinanet_dynamic_swin_fpn_backbone,
    build_retinanet_sparse_vit_fpn_backbone,
    build_retinanet_spt_fpn_backbone,
    build_retinanet_svit_gated_swin_fpn_backbone,
    build_retinanet_swin_fpn_backbone,
    build_sparse_vit_fpn_backbone,
    build_spt_fpn_backbone,
    build_svit_gated_swin_fpn_backbone,
    build_swin_fpn_backbone,
)
from spt_d2.modeling.meta_arch import (
    MultiLabelClassifier,
    SelectionGeneralizedRCNN,
    SelectionMultiLabelClassifier,
    SelectionPanopticFPN,
    SelectionRetinaNet,
)
from spt_d2.modeling.simple_pyramid import (
    SelectionSimplePyramid,
    build_retinanet_vit_fpn_backbone,
    build_vit_fpn_backbone,
)

__all__ = [
    "DAT",
    "SPT",
    "DynamicSwin",
    "MultiLabelClassifier",
    "SelectionFPN",
    "SelectionGeneralizedRCNN",
    "SelectionMultiLabelClassifier",
    "SelectionPanopticFPN",
    "SelectionRetinaNet",
    "SelectionSimplePyramid",
    "SparseViT",
    "SvitGatedSwin",
    "Swin",
    "ViT",
    "build_dat_backbone",
    "build_dat_fpn_backbone",
    "build_dynamic_swin_backbone",
    "build_dynamic_swin_fpn_backbone",
    "build_retinanet_dat_fpn_backbone",
    "build_retinanet_dynamic_swin_fpn_backbone",
    "build_retinanet_sparse_vit_fpn_backbone",
    "build_retinanet_spt_fpn_backbone",
    "build_retinanet_svit_gated_swin_fpn_backbone",
    "build_retinanet_swin_fpn_backbone",
    "build_retinanet_vit_fpn_backbone",
    "build_sparse_vit_backbone",
    "build_sparse_vit_fpn_backbone",
    "build_spt_backbone",
    "build_spt_fpn_backbone",
    "build_svit_gated_swin_backbone",
    "build_svit_gated_swin_fpn_backbone",
    "build_swin_backbone",
    "build_swin_fpn_backbone",
    "build_vit_backbone",
    "build_vit_fpn_backbone",
]
