"""Mask R-CNN with FPN over dense Swin-T: the baseline of spt_fpn.py, which it equals in everything else."""

from detectron2.config import LazyCall as L

from spt_d2.modeling import Swin

from .spt_fpn import model

model.backbone.bottom_up = L(Swin)(
    embed_dim=96,
    depths=[2, 2, 6, 2],
    num_heads=[3, 6, 12, 24],
    drop_path_rate=0.2,
    out_features=["res2", "res3", "res4", "res5"],
)
