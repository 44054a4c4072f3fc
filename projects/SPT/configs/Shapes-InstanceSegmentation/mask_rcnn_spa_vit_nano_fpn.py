"""A plain ViT, nano, its last six blocks selecting: the twin of the yaml config of this name."""

from spt_d2 import get_config

model = get_config("common/models/vit_nano_fpn.py").model
dataloader = get_config("common/data/shapes.py").dataloader
dataloader.train.mapper.strides = dataloader.test.mapper.strides = [16]
optimizer = get_config("common/optim.py").AdamW
optimizer.lr = 0.001
lr_multiplier = get_config("common/schedule.py").nano
train = get_config("common/train.py").nano
train.output_dir = "output/spa-vit-lazy"
