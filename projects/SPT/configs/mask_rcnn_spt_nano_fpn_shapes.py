"""The demo's model and recipe: the twin of configs/Shapes-InstanceSegmentation/mask_rcnn_spt_nano_fpn_demo.yaml."""

from spt_d2 import get_config

model = get_config("common/models/spt_nano_fpn.py").model
dataloader = get_config("common/data/shapes.py").dataloader
optimizer = get_config("common/optim.py").AdamW
optimizer.lr = 0.001
lr_multiplier = get_config("common/schedule.py").nano
train = get_config("common/train.py").train
train.update(output_dir="output/demo-lazy", max_iter=900, seed=0, eval_period=0)
train.checkpointer.period = 450
train.clip_gradients.enabled = True
