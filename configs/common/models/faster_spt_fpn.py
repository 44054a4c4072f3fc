"""Faster R-CNN with FPN over SPT-T: spt_fpn.py without its mask head."""

from .spt_fpn import model

model.roi_heads.update(mask_in_features=None, mask_pooler=None, mask_head=None)
