"""Mask R-CNN over DAT-T, 12 epochs of COCO: the twin of the yaml config of this name."""

from spt_d2 import get_config

model = get_config("common/models/spt_fpn.py").model
model.backbone.bottom_up = get_config("common/models/backbones.py").dat_t
model.backbone.bottom_up.drop_path_rate = 0.1
dataloader = get_config("common/data/coco.py").dataloader
optimizer = get_config("common/optim.py").AdamW
lr_multiplier = get_config("common/schedule.py").coco_1x
train = get_config("common/train.py").coco_1x
