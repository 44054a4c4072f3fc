"""Mask R-CNN over ViT-B, its last eight blocks selecting: the twin of mask_rcnn_spa_vit_b_fpn_3x.yaml."""

from detectron2.config import LazyCall as L
from detectron2.modeling.backbone.fpn import LastLevelMaxPool

from spt_d2.modeling import SelectionSimplePyramid, ViT

from .spt_fpn import model

model.backbone = L(SelectionSimplePyramid)(
    net=L(ViT)(
        embed_dim=768,
        depth=12,
        num_heads=12,
        drop_path_rate=0.1,
        # An empty list makes it dense.
        spa_blocks=[4, 5, 6, 7, 8, 9, 10, 11],
        segment="image",
    ),
    out_channels=256,
    top_block=L(LastLevelMaxPool)(),
    norm="LN",
)
