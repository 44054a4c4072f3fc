"""Fig. 4, window attention among object tokens alone: the twin of the yaml config of this name."""

from .multilabel_spt_t import dataloader, lr_multiplier, model, optimizer, train

__all__ = ["dataloader", "lr_multiplier", "model", "optimizer", "train"]

model.backbone.update(select="oracle", segment="window", position="relative_bias", multi_scale=False)
model.supervise = False
