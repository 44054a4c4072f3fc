"""Faster R-CNN over DynamicSwin-T, 36 epochs of BDD-S: the twin of the yaml config of this name."""

from spt_d2 import get_config

model = get_config("common/models/faster_spt_fpn.py").model
model.backbone.bottom_up = get_config("common/models/backbones.py").dynamic_swin_t
model.roi_heads.num_classes = 10
dataloader = get_config("common/data/bdd_s.py").dataloader
optimizer = get_config("common/optim.py").AdamW
lr_multiplier = get_config("common/schedule.py").bdd100k_3x
train = get_config("common/train.py").bdd100k_3x
