"""Row 2 of Table 7, on the sparse images of PASCAL VOC 2012: the twin of the yaml config of this name."""

from .multilabel_spt_t_sparse import dataloader, lr_multiplier, model, optimizer, train

__all__ = ["dataloader", "lr_multiplier", "model", "optimizer", "train"]

model.supervise = False
