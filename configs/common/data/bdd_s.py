"""BDD-S, the images of BDD100K whose objects cover less than 25 % of the pixels."""

from .bdd100k import dataloader

dataloader.train.dataset.names = "bdd100k_sparse_train"
dataloader.test.dataset.names = "bdd100k_sparse_val"
