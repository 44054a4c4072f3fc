"""DynamicSwin-T on the sparse images of PASCAL VOC 2012: the twin of the yaml config of this name."""

from spt_d2 import get_config

from .multilabel_spt_t_sparse import dataloader, lr_multiplier, model, optimizer, train

__all__ = ["dataloader", "lr_multiplier", "model", "optimizer", "train"]

model.backbone = get_config("common/models/backbones.py").dynamic_swin_t
model.backbone.out_features = ["res5"]
