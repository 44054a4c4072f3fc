"""The simple feature pyramid of a plain backbone (ViTDet), and its registered builders."""

from collections.abc import Sequence

from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, SimpleFeaturePyramid
from detectron2.modeling.backbone.fpn import LastLevelMaxPool, LastLevelP6P7
from torch import Tensor, nn

from spt_d2.modeling.backbone import ViT, build_vit_backbone
from spt_d2.ops.selection import BlockSelection


class SelectionSimplePyramid(SimpleFeaturePyramid):
    """
    Detectron2's :class:`SimpleFeaturePyramid` (Li et al., 2022) that hands through the selections of its network.

    Each level comes from the one map of ``net`` by itself, at stride 16: deconvolutions for ``p2`` and ``p3``, a
    pooling for ``p5``. Detectron2's own misspells a key of its padding, so that images never are padded for it.

    Args:
        net: a plain backbone with one map at stride 16.
        out_channels: of every level.
        scale_factors: strides of the levels as factors of 1 / 16, falling by halves; some of 4, 2, 1, 0.5.
        top_block: makes further levels from ``p5``, or None.
        norm: of the levels' convolutions; ViTDet takes ``LN``.
    """

    def __init__(
        self,
        net: ViT,
        out_channels: int,
        scale_factors: Sequence[float] = (4.0, 2.0, 1.0, 0.5),
        top_block: nn.Module | None = None,
        norm: str = "LN",
    ):
        ((name, shape),) = net.output_shape().items()
        if shape.stride != 16:
            raise ValueError(
                f"SelectionSimplePyramid(net=) expects a map at stride 16. Got stride {shape.stride}.\n"
                "HINT: MODEL.VIT.PATCH_SIZE 16 (patch_size=16)."
            )
        super().__init__(net, name, out_channels, tuple(scale_factors), top_block, norm)
        for level in self.stages:
            for i, layer in enumerate(level):
                # Without a norm, Detectron2 leaves a None where one would be, which cannot be called.
                if layer is None:
                    level[i] = nn.Identity()

    @property
    def bottom_up(self) -> ViT:
        """The network below, by the name that an FPN gives it."""
        return self.net

    @property
    def size_divisibility(self) -> int:
        """Stride of ``p5``: every level then covers the padded image exactly."""
        return self._size_divisibility

    @property
    def padding_constraints(self) -> dict[str, int]:
        return {"size_divisibility": self._size_divisibility}

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """(B, channels, height, width) images, sides multiples of 32, to ``p2`` ... ``p6``."""
        return self.fuse(self.net(x))

    def forward_with_selections(
        self,
        x: Tensor,
        image_sizes: Sequence[tuple[int, int]] | None = None,
        labels: dict[int, Tensor] | None = None,
    ) -> tuple[dict[str, Tensor], list[BlockSelection]]:
        """As the network's ``forward_with_selections``, its map made into levels."""
        features, selections = self.net.forward_with_selections(x, image_sizes, labels)
        return self.fuse(features), selections

    def fuse(self, bottom_up_features: dict[str, Tensor]) -> dict[str, Tensor]:
        """
        The second half of Detectron2's ``SimpleFeaturePyramid.forward``, which runs its network inside.

        Args:
            bottom_up_features: ``{name: (B, channels, H, W)}``.
        """
        levels = [stage(bottom_up_features[self.in_feature]) for stage in self.stages]
        if self.top_block is not None:
            levels.extend(self.top_block(levels[self._out_features.index(self.top_block.in_feature)]))
        return dict(zip(self._out_features, levels))


@BACKBONE_REGISTRY.register()
def build_vit_fpn_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> SelectionSimplePyramid:
    """A plain ViT with levels p2 to p6, p6 by max pooling: for R-CNN heads."""
    return SelectionSimplePyramid(
        build_vit_backbone(cfg, input_shape),
        cfg.MODEL.FPN.OUT_CHANNELS,
        top_block=LastLevelMaxPool(),
        norm=cfg.MODEL.FPN.NORM,
    )


@BACKBONE_REGISTRY.register()
def build_retinanet_vit_fpn_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> SelectionSimplePyramid:
    """A plain ViT with levels p3 to p7, p6 and p7 by convolution from p5: for RetinaNet."""
    channels = cfg.MODEL.FPN.OUT_CHANNELS
    return SelectionSimplePyramid(
        build_vit_backbone(cfg, input_shape),
        channels,
        scale_factors=(2.0, 1.0, 0.5),
        top_block=LastLevelP6P7(channels, channels, in_feature="p5"),
        norm=cfg.MODEL.FPN.NORM,
    )
