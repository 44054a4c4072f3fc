"""FPN over a backbone that selects, and its registered builders."""

from collections.abc import Sequence

import torch.nn.functional as F
from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, FPN
from detectron2.modeling.backbone.fpn import LastLevelMaxPool, LastLevelP6P7
from torch import Tensor

from spt_d2.modeling.backbone import (
    Swin,
    build_dat_backbone,
    build_dynamic_swin_backbone,
    build_sparse_vit_backbone,
    build_spt_backbone,
    build_svit_gated_swin_backbone,
    build_swin_backbone,
)
from spt_d2.ops.selection import BlockSelection


class SelectionFPN(FPN):
    """
    Detectron2's :class:`FPN` that hands through the selections of its bottom-up network.

    Args: see :class:`detectron2.modeling.FPN`.
    """

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """(B, channels, height, width) images to ``p2`` ... ``p6``."""
        return self.fuse(self.bottom_up(x))

    def forward_with_selections(
        self,
        x: Tensor,
        image_sizes: Sequence[tuple[int, int]] | None = None,
        labels: dict[int, Tensor] | None = None,
    ) -> tuple[dict[str, Tensor], list[BlockSelection]]:
        """As the bottom-up network's ``forward_with_selections``, its maps fused."""
        features, selections = self.bottom_up.forward_with_selections(x, image_sizes, labels)
        return self.fuse(features), selections

    def fuse(self, bottom_up_features: dict[str, Tensor]) -> dict[str, Tensor]:
        """
        The top-down half of Detectron2's ``FPN.forward``, which runs its bottom-up network inside.

        Args:
            bottom_up_features: ``{name: (B, channels, H, W)}``.
        """
        top_down = None
        results: list[Tensor] = []
        for name, lateral, output in zip(reversed(self.in_features), self.lateral_convs, self.output_convs):
            fused = lateral(bottom_up_features[name])
            if top_down is not None:
                fused = fused + F.interpolate(top_down, scale_factor=2.0, mode="nearest")
                fused = fused / 2 if self._fuse_type == "avg" else fused
            results.insert(0, output(fused))
            top_down = fused
        if self.top_block is not None:
            source = self.top_block.in_feature
            known = source in bottom_up_features
            results.extend(
                self.top_block(bottom_up_features[source] if known else results[self._out_features.index(source)])
            )
        return dict(zip(self._out_features, results))


def _fpn(cfg: CfgNode, bottom_up: Swin, retinanet: bool) -> SelectionFPN:
    channels = cfg.MODEL.FPN.OUT_CHANNELS
    if retinanet:
        top_block = LastLevelP6P7(bottom_up.output_shape()["res5"].channels, channels)
    else:
        top_block = LastLevelMaxPool()
    return SelectionFPN(
        bottom_up=bottom_up,
        in_features=cfg.MODEL.FPN.IN_FEATURES,
        out_channels=channels,
        norm=cfg.MODEL.FPN.NORM,
        top_block=top_block,
        fuse_type=cfg.MODEL.FPN.FUSE_TYPE,
    )


@BACKBONE_REGISTRY.register()
def build_spt_fpn_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> SelectionFPN:
    """SPT with FPN levels p2 to p6, p6 by max pooling: for R-CNN heads."""
    return _fpn(cfg, build_spt_backbone(cfg, input_shape), retinanet=False)


@BACKBONE_REGISTRY.register()
def build_retinanet_spt_fpn_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> SelectionFPN:
    """SPT with FPN levels up to p7, p6 and p7 by convolution: for RetinaNet."""
    return _fpn(cfg, build_spt_backbone(cfg, input_shape), retinanet=True)


@BACKBONE_REGISTRY.register()
def build_swin_fpn_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> SelectionFPN:
    """Dense Swin with FPN levels p2 to p6."""
    return _fpn(cfg, build_swin_backbone(cfg, input_shape), retinanet=False)


@BACKBONE_REGISTRY.register()
def build_retinanet_swin_fpn_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> SelectionFPN:
    """Dense Swin with FPN levels up to p7."""
    return _fpn(cfg, build_swin_backbone(cfg, input_shape), retinanet=True)


@BACKBONE_REGISTRY.register()
def build_dat_fpn_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> SelectionFPN:
    """DAT with FPN levels p2 to p6."""
    return _fpn(cfg, build_dat_backbone(cfg, input_shape), retinanet=False)


@BACKBONE_REGISTRY.register()
def build_retinanet_dat_fpn_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> SelectionFPN:
    """DAT with FPN levels up to p7."""
    return _fpn(cfg, build_dat_backbone(cfg, input_shape), retinanet=True)


@BACKBONE_REGISTRY.register()
def build_dynamic_swin_fpn_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> SelectionFPN:
    """DynamicSwin with FPN levels p2 to p6."""
    return _fpn(cfg, build_dynamic_swin_backbone(cfg, input_shape), retinanet=False)


@BACKBONE_REGISTRY.register()
def build_retinanet_dynamic_swin_fpn_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> SelectionFPN:
    """DynamicSwin with FPN levels up to p7."""
    return _fpn(cfg, build_dynamic_swin_backbone(cfg, input_shape), retinanet=True)


@BACKBONE_REGISTRY.register()
def build_sparse_vit_fpn_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> SelectionFPN:
    """SparseViT with FPN levels p2 to p6."""
    return _fpn(cfg, build_sparse_vit_backbone(cfg, input_shape), retinanet=False)


@BACKBONE_REGISTRY.register()
def build_retinanet_sparse_vit_fpn_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> SelectionFPN:
    """SparseViT with FPN levels up to p7."""
    return _fpn(cfg, build_sparse_vit_backbone(cfg, input_shape), retinanet=True)


@BACKBONE_REGISTRY.register()
def build_svit_gated_swin_fpn_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> SelectionFPN:
    """Swin with SViT's gates, with FPN levels p2 to p6."""
    return _fpn(cfg, build_svit_gated_swin_backbone(cfg, input_shape), retinanet=False)


@BACKBONE_REGISTRY.register()
def build_retinanet_svit_gated_swin_fpn_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> SelectionFPN:
    """Swin with SViT's gates, with FPN levels up to p7."""
    return _fpn(cfg, build_svit_gated_swin_backbone(cfg, input_shape), retinanet=True)
