"""Shapes (datasets/README.md), at the size the nano models train on."""

from .coco import dataloader

dataloader.train.dataset.update(names="shapes_train", filter_empty=False)
# Its images are smaller than the crop.
dataloader.train.mapper.augmentations.pop(0)
dataloader.train.mapper.augmentations[0].short_edge_length = (224,)
dataloader.train.update(total_batch_size=8, num_workers=1)
dataloader.test.dataset.names = "shapes_val"
dataloader.test.mapper.augmentations[0].short_edge_length = 224
dataloader.test.num_workers = 1
