"""Row 1 of Table 7: half of each image's tokens: the twin of the yaml config of this name."""

from .multilabel_spt_t import dataloader, lr_multiplier, model, optimizer, train

__all__ = ["dataloader", "lr_multiplier", "model", "optimizer", "train"]

model.backbone.update(select="topk", keep_ratio=0.5, multi_scale=False)
model.supervise = False
