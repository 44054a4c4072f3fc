"""Mask R-CNN over SPT-T, oracle selection (Fig. 4), 36 epochs of COCO: the twin of the yaml config of this name."""

from .mask_rcnn_spt_t_fpn_3x import dataloader, lr_multiplier, model, optimizer, train

__all__ = ["dataloader", "lr_multiplier", "model", "optimizer", "train"]

model.backbone.bottom_up.select = "oracle"
model.supervise = False
