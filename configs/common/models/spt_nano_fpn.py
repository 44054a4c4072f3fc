"""The nano Mask R-CNN of Shapes: the twin of Shapes-InstanceSegmentation/mask_rcnn_spt_nano_fpn_demo.yaml."""

from .spt_fpn import model

model.backbone.bottom_up.update(embed_dim=32, depths=[2, 2, 6, 2], num_heads=[2, 4, 8, 16], drop_path_rate=0.0)
model.backbone.out_channels = 64
model.proposal_generator.head.num_anchors = 1
model.proposal_generator.anchor_generator.update(sizes=[[16], [32], [64], [128], [256]], aspect_ratios=[1.0])
model.proposal_generator.update(batch_size_per_image=128, pre_nms_topk=(400, 400), post_nms_topk=(150, 150))
model.roi_heads.update(num_classes=4, batch_size_per_image=64)
model.roi_heads.box_head.fc_dims = [256, 256]
model.roi_heads.mask_head.conv_dims = [64, 64, 64]
