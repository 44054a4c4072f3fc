"""Mask R-CNN over ViT-B, oracle selection (Fig. 4), 36 epochs of COCO: the twin of the yaml config of this name."""

from .mask_rcnn_spa_vit_b_fpn_3x import dataloader, lr_multiplier, model, optimizer, train

__all__ = ["dataloader", "lr_multiplier", "model", "optimizer", "train"]

model.backbone.net.select = "oracle"
model.supervise = False
