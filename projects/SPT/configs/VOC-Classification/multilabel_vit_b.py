"""Fig. 4, plain ViT: attention among all tokens: the twin of the yaml config of this name."""

from spt_d2 import get_config

from .multilabel_spt_t import dataloader, lr_multiplier, model, optimizer, train

__all__ = ["dataloader", "lr_multiplier", "model", "optimizer", "train"]

model.backbone = get_config("common/models/vit_fpn.py").model.backbone.net
model.backbone.update(spa_blocks=[], segment="container")
model.feature = "res4"
