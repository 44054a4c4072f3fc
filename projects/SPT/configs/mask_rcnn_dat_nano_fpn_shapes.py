"""DAT under the demo's recipe: the twin of configs/Shapes-InstanceSegmentation/mask_rcnn_dat_nano_fpn.yaml."""

from spt_d2 import get_config

model = get_config("common/models/spt_nano_fpn.py").model
model.backbone.bottom_up = get_config("common/models/backbones.py").dat_t
model.backbone.bottom_up.update(embed_dim=32, num_heads=[2, 4, 8, 16], groups=[1, 1, 2, 4], drop_path_rate=0.0)
dataloader = get_config("common/data/shapes.py").dataloader
optimizer = get_config("common/optim.py").AdamW
optimizer.lr = 0.001
lr_multiplier = get_config("common/schedule.py").nano
train = get_config("common/train.py").train
train.update(output_dir="output/dat-lazy", max_iter=900, seed=0, eval_period=0)
train.checkpointer.period = 450
train.clip_gradients.enabled = True
