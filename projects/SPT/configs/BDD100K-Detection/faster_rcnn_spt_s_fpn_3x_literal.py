"""Faster R-CNN over SPT-S, 36 epochs of BDD100K, read literally: the twin of the yaml config of this name."""

from spt_d2 import get_config

from .faster_rcnn_spt_s_fpn_3x import dataloader, lr_multiplier, model, optimizer, train

__all__ = ["dataloader", "lr_multiplier", "model", "optimizer", "train"]

model.backbone.bottom_up.update(get_config("common/models/backbones.py").literal)
model.update(get_config("common/models/backbones.py").literal_loss)
