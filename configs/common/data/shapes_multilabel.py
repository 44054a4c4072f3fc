"""Shapes (datasets/README.md) for multi-label classification, at the size the nano models train on."""

from .voc_multilabel import dataloader

dataloader.train.dataset.names = "shapes_train"
dataloader.train.mapper.augmentations[0].update(short_edge_length=(224,), max_size=1333)
dataloader.train.update(total_batch_size=8, num_workers=1)
dataloader.test.dataset.names = "shapes_val"
dataloader.test.mapper.augmentations[0].update(short_edge_length=224, max_size=1333)
dataloader.test.num_workers = 1
