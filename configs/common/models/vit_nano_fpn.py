"""The nano Mask R-CNN of Shapes over a plain ViT, its last six blocks selecting: Base-Shapes-nano-vit.yaml's twin."""

from .spt_nano_fpn import model
from .vit_fpn import model as _vit

model.backbone = _vit.backbone
model.backbone.out_channels = 64
model.backbone.net.update(embed_dim=128, depth=9, num_heads=4, spa_blocks=[3, 4, 5, 6, 7, 8], drop_path_rate=0.0)
