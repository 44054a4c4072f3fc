"""The demo, read literally: the twin of the yaml config of this name."""

from spt_d2 import get_config

from .mask_rcnn_spt_nano_fpn_demo import dataloader, lr_multiplier, model, optimizer, train

__all__ = ["dataloader", "lr_multiplier", "model", "optimizer", "train"]

model.backbone.bottom_up.update(get_config("common/models/backbones.py").literal)
model.update(get_config("common/models/backbones.py").literal_loss)
train.output_dir = "output/demo-literal-lazy"
