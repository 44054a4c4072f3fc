"""A dense plain ViT, nano: the twin of the yaml config of this name."""

from .mask_rcnn_spa_vit_nano_fpn import dataloader, lr_multiplier, model, optimizer, train

__all__ = ["dataloader", "lr_multiplier", "model", "optimizer", "train"]

model.backbone.net.spa_blocks = []
train.output_dir = "output/vit-lazy"
