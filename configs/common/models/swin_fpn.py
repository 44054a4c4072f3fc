"""Mask R-CNN with FPN over dense Swin-T: the baseline of spt_fpn.py, which it equals in everything else."""

from .backbones import swin_t
from .spt_fpn import model

model.backbone.bottom_up = swin_t
