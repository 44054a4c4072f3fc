"""Which shapes are there, nano: the twin of configs/VOC-Classification/multilabel_spt_nano_shapes.yaml."""

from spt_d2 import get_config

model = get_config("common/models/spt_multilabel.py").model
model.backbone.update(embed_dim=32, depths=[2, 2, 6, 2], num_heads=[2, 4, 8, 16], drop_path_rate=0.0)
model.num_classes = 4
dataloader = get_config("common/data/shapes_multilabel.py").dataloader
optimizer = get_config("common/optim.py").AdamW
optimizer.lr = 0.001
lr_multiplier = get_config("common/schedule.py").nano
train = get_config("common/train.py").train
train.update(output_dir="output/multilabel-lazy", max_iter=900, seed=0, eval_period=0)
train.checkpointer.period = 450
train.clip_gradients.enabled = True
