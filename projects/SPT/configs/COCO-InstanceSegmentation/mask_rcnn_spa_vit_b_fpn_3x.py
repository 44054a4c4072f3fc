"""Mask R-CNN over ViT-B, eight of its blocks selecting, 36 epochs of COCO: the twin of the yaml config of this name."""

from spt_d2 import get_config

model = get_config("common/models/vit_fpn.py").model
dataloader = get_config("common/data/coco.py").dataloader
dataloader.train.mapper.strides = dataloader.test.mapper.strides = [16]
optimizer = get_config("common/optim.py").AdamW
lr_multiplier = get_config("common/schedule.py").coco_3x
train = get_config("common/train.py").coco_3x
