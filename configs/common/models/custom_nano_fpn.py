"""A nano Faster R-CNN for a data set of one's own: the twin of Custom/Base-Custom-nano.yaml."""

from .spt_nano_fpn import model

model.proposal_generator.head.num_anchors = 3
model.proposal_generator.anchor_generator.aspect_ratios = [0.5, 1.0, 2.0]
# Set from the training json.
model.roi_heads.num_classes = 80
model.roi_heads.update(mask_in_features=None, mask_pooler=None, mask_head=None)
