"""A plain ViT, nano, with oracle selection (Fig. 4): the twin of the yaml config of this name."""

from .mask_rcnn_spa_vit_nano_fpn import dataloader, lr_multiplier, model, optimizer, train

__all__ = ["dataloader", "lr_multiplier", "model", "optimizer", "train"]

model.backbone.net.select = "oracle"
model.supervise = False
train.output_dir = "output/spa-vit-oracle-lazy"
