"""Which shapes are there, nano and dense: the twin of the yaml config of this name."""

from spt_d2 import get_config

from .multilabel_spt_nano_shapes import dataloader, lr_multiplier, model, optimizer, train

__all__ = ["dataloader", "lr_multiplier", "model", "optimizer", "train"]

model.backbone = get_config("common/models/backbones.py").swin_t
model.backbone.update(embed_dim=32, num_heads=[2, 4, 8, 16], drop_path_rate=0.0, out_features=["res5"])
train.output_dir = "output/multilabel-dense-lazy"
