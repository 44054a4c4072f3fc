"""The demo with oracle selection (Fig. 4): the twin of the yaml config of this name."""

from .mask_rcnn_spt_nano_fpn_demo import dataloader, lr_multiplier, model, optimizer, train

__all__ = ["dataloader", "lr_multiplier", "model", "optimizer", "train"]

model.backbone.bottom_up.select = "oracle"
model.supervise = False
train.output_dir = "output/demo-oracle-lazy"
