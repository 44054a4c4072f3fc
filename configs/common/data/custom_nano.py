"""A COCO-format data set of one's own, boxes, at the size of a CPU: the twin of Custom/Base-Custom-nano.yaml."""

from .custom import dataloader

dataloader.train.mapper.augmentations.pop(0)
dataloader.train.mapper.augmentations[0].update(short_edge_length=(288, 320, 352, 384), max_size=672)
dataloader.train.update(total_batch_size=4, num_workers=1)
dataloader.test.mapper.augmentations[0].update(short_edge_length=352, max_size=672)
dataloader.test.num_workers = 1
