"""SPT-T for a data set of one's own: the twin of the yaml config of this name."""

from spt_d2 import get_config

model = get_config("common/models/faster_spt_fpn.py").model
dataloader = get_config("common/data/custom.py").dataloader
optimizer = get_config("common/optim.py").AdamW
lr_multiplier = get_config("common/schedule.py").custom_t
train = get_config("common/train.py").custom_t
datasets = {"custom": []}
