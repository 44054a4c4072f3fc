"""Faster R-CNN over DynamicSwin-B, 36 epochs of BDD100K: the twin of the yaml config of this name."""

from spt_d2 import get_config

model = get_config("common/models/faster_spt_fpn.py").model
model.backbone.bottom_up = get_config("common/models/backbones.py").dynamic_swin_b
model.backbone.bottom_up.drop_path_rate = 0.3
model.roi_heads.num_classes = 10
dataloader = get_config("common/data/bdd100k.py").dataloader
optimizer = get_config("common/optim.py").AdamW
lr_multiplier = get_config("common/schedule.py").bdd100k_3x
train = get_config("common/train.py").bdd100k_3x
