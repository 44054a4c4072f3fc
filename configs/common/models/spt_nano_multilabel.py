"""Which of the four shapes are there, nano: the twin of VOC-Classification/Base-Shapes-nano.yaml."""

from .spt_multilabel import model

model.backbone.update(embed_dim=32, depths=[2, 2, 6, 2], num_heads=[2, 4, 8, 16], drop_path_rate=0.0)
model.num_classes = 4
