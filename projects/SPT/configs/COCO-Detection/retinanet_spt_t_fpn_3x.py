"""RetinaNet over SPT-T, 36 epochs of COCO: the twin of the yaml config of this name."""

from spt_d2 import get_config

model = get_config("common/models/retinanet_spt_fpn.py").model
dataloader = get_config("common/data/coco_boxes.py").dataloader
optimizer = get_config("common/optim.py").AdamW
lr_multiplier = get_config("common/schedule.py").coco_3x
train = get_config("common/train.py").coco_3x
