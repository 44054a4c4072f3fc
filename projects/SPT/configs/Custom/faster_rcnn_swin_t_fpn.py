"""Swin-T for a data set of one's own: the twin of the yaml config of this name."""

from spt_d2 import get_config

from .faster_rcnn_spt_t_fpn import dataloader, datasets, lr_multiplier, model, optimizer, train

__all__ = ["dataloader", "datasets", "lr_multiplier", "model", "optimizer", "train"]

model.backbone.bottom_up = get_config("common/models/backbones.py").swin_t
