"""Select and Pack, nano, for a data set of one's own: the twin of the yaml config of this name."""

from spt_d2 import get_config

model = get_config("common/models/custom_nano_fpn.py").model
dataloader = get_config("common/data/custom_nano.py").dataloader
optimizer = get_config("common/optim.py").AdamW
optimizer.lr = 0.001
lr_multiplier = get_config("common/schedule.py").custom_nano
train = get_config("common/train.py").custom_nano
datasets = {"custom": []}
