"""BDD100K's detection task (datasets/README.md), images resized and cropped as COCO's."""

from .coco_boxes import dataloader

dataloader.train.dataset.names = "bdd100k_train"
dataloader.test.dataset.names = "bdd100k_val"
