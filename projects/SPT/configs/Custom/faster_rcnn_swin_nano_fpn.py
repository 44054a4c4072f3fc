"""Dense Swin, nano, for a data set of one's own: the twin of the yaml config of this name."""

from spt_d2 import get_config

from .faster_rcnn_spt_nano_fpn import dataloader, datasets, lr_multiplier, model, optimizer, train

__all__ = ["dataloader", "datasets", "lr_multiplier", "model", "optimizer", "train"]

model.backbone.bottom_up = get_config("common/models/backbones.py").swin_t
model.backbone.bottom_up.update(embed_dim=32, num_heads=[2, 4, 8, 16], drop_path_rate=0.0)
