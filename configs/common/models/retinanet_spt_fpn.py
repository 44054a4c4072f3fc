"""RetinaNet with FPN over SPT-T: the twin of Base-RetinaNet-FPN.yaml."""

from detectron2.config import LazyCall as L
from detectron2.layers import ShapeSpec
from detectron2.modeling.anchor_generator import DefaultAnchorGenerator
from detectron2.modeling.backbone.fpn import LastLevelP6P7
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.modeling.matcher import Matcher
from detectron2.modeling.meta_arch.retinanet import RetinaNetHead

from spt_d2.modeling import SelectionFPN, SelectionRetinaNet

from .backbones import spt_t

model = L(SelectionRetinaNet)(
    backbone=L(SelectionFPN)(
        bottom_up=spt_t,
        in_features=["res3", "res4", "res5"],
        out_channels=256,
        top_block=L(LastLevelP6P7)(in_channels=768, out_channels="${..out_channels}"),
    ),
    head=L(RetinaNetHead)(
        input_shape=[L(ShapeSpec)(channels="${....backbone.out_channels}") for _ in range(5)],
        num_classes="${..num_classes}",
        conv_dims=[256, 256, 256, 256],
        num_anchors=9,
    ),
    anchor_generator=L(DefaultAnchorGenerator)(
        # Three sizes an octave.
        sizes=[[size, size * 2 ** (1 / 3), size * 2 ** (2 / 3)] for size in (32, 64, 128, 256, 512)],
        aspect_ratios=[0.5, 1.0, 2.0],
        strides=[8, 16, 32, 64, 128],
        offset=0.0,
    ),
    box2box_transform=L(Box2BoxTransform)(weights=[1.0, 1.0, 1.0, 1.0]),
    anchor_matcher=L(Matcher)(thresholds=[0.4, 0.5], labels=[0, -1, 1], allow_low_quality_matches=True),
    num_classes=80,
    head_in_features=["p3", "p4", "p5", "p6", "p7"],
    # RGB, ImageNet statistics, in units of 0-255.
    pixel_mean=[123.675, 116.28, 103.53],
    pixel_std=[58.395, 57.12, 57.375],
    input_format="RGB",
    return_selections=True,
)
# A map that the FPN does not read would leave its norm without a gradient.
model.backbone.bottom_up.out_features = ["res3", "res4", "res5"]
