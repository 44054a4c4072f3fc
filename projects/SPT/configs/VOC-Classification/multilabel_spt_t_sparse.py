"""SPT-T on the sparse images of PASCAL VOC 2012: the twin of the yaml config of this name."""

from .multilabel_spt_t import dataloader, lr_multiplier, model, optimizer, train

__all__ = ["dataloader", "lr_multiplier", "model", "optimizer", "train"]

dataloader.train.dataset.names = "voc_2012_multilabel_sparse_train"
dataloader.test.dataset.names = "voc_2012_multilabel_sparse_val"
