"""Which shapes are there, nano: the twin of the yaml config of this name."""

from spt_d2 import get_config

model = get_config("common/models/spt_nano_multilabel.py").model
dataloader = get_config("common/data/shapes_multilabel.py").dataloader
optimizer = get_config("common/optim.py").AdamW
optimizer.lr = 0.001
lr_multiplier = get_config("common/schedule.py").nano
train = get_config("common/train.py").nano
train.output_dir = "output/multilabel-lazy"
