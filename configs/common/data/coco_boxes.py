"""COCO for detectors of boxes. Labels of the gates are drawn from masks all the same, where there are any."""

from .coco import dataloader

dataloader.train.mapper.use_instance_mask = False
dataloader.evaluator.tasks = ["bbox"]
