"""Cascade Mask R-CNN with FPN over SPT-T: the twin of Base-Cascade-RCNN-FPN.yaml. How Swin's differs is said there."""

from detectron2.config import LazyCall as L
from detectron2.layers import ShapeSpec
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.modeling.matcher import Matcher
from detectron2.modeling.roi_heads import CascadeROIHeads, FastRCNNConvFCHead, FastRCNNOutputLayers

from .spt_fpn import model

model.proposal_generator.update(post_nms_topk=(2000, 1000), smooth_l1_beta=1 / 9)
for _single in ("box_head", "box_predictor", "proposal_matcher"):
    del model.roi_heads[_single]
model.roi_heads.update(
    _target_=CascadeROIHeads,
    box_heads=[
        L(FastRCNNConvFCHead)(
            input_shape=L(ShapeSpec)(channels="${.....backbone.out_channels}", height=7, width=7),
            conv_dims=[256, 256, 256, 256],
            fc_dims=[1024],
            conv_norm="SyncBN",
        )
        for _ in range(3)
    ],
    box_predictors=[
        L(FastRCNNOutputLayers)(
            input_shape=L(ShapeSpec)(channels=1024),
            test_score_thresh=0.05,
            box2box_transform=L(Box2BoxTransform)(weights=(_xy, _xy, _wh, _wh)),
            cls_agnostic_bbox_reg=True,
            box_reg_loss_type="giou",
            loss_weight={"loss_box_reg": 10.0},
            num_classes="${...num_classes}",
        )
        for _xy, _wh in ((10, 5), (20, 10), (30, 15))
    ],
    proposal_matchers=[
        L(Matcher)(thresholds=[_iou], labels=[0, 1], allow_low_quality_matches=False) for _iou in (0.5, 0.6, 0.7)
    ],
)
