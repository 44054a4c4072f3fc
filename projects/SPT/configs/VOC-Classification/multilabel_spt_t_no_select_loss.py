"""Row 2 of Table 7: gates that the task alone trains: the twin of the yaml config of this name."""

from .multilabel_spt_t import dataloader, lr_multiplier, model, optimizer, train

__all__ = ["dataloader", "lr_multiplier", "model", "optimizer", "train"]

model.supervise = False
