"""The Deformable Attention Transformer, a peer of SPT that looks at samples of the map where SPT looks at tokens."""

from collections.abc import Sequence

from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY
from torch import nn

from spt_d2.layers.deformable_attention import DeformableOptions
from spt_d2.layers.deformable_stage import DeformableStage
from spt_d2.modeling.backbone.swin import Swin, swin_arguments


class DAT(Swin):
    """
    Deformable Attention Transformer (Xia et al., CVPR 2022), as released in 2022; not its successor DAT++.

    Stages attend in turn within windows and beyond them: by shifted windows, and in ``deformable_stages`` to samples at
    positions that depend on the image. Nothing is selected, every token is processed, and each attends to all samples:
    the cost is quadratic in the pixels of an image, as N^2 / r^2 pairs at a stride r of samples. The stride of the
    third stage is what makes large images affordable: the released classifiers have 1 there, and 2 is what comes near
    to the multiply-adds published for detectors.

    Sequences have a value for each stage; those of other stages than ``deformable_stages`` are not read.

    Args:
        deformable_stages: any of 1 to 4.
        groups: of channels and heads, each with samples of its own; divisors of ``num_heads``.
        offset_kernels: sides of the offset network's depthwise convolution, in tokens; odd.
        offset_strides: r, in tokens.
        offset_range: the most that a sample moves, in halves of its cell; 0 for no such bound, samples are then held
            within the map.
        pretrain_image_size: pixels of the square images whose maps tables of displacements are as fine as; they are
            stretched over maps of other sizes.
        **swin: arguments of :class:`Swin`.
    """

    takes_any_patch_size = False

    def __init__(
        self,
        *,
        deformable_stages: Sequence[int] = (3, 4),
        depths: Sequence[int] = (2, 2, 6, 2),
        groups: Sequence[int] = (1, 1, 3, 6),
        offset_kernels: Sequence[int] = (9, 7, 5, 3),
        offset_strides: Sequence[int] = (8, 4, 2, 1),
        offset_range: float = 2.0,
        pretrain_image_size: int = 224,
        **swin,
    ):
        stages = tuple(sorted(set(deformable_stages)))
        if not stages or not all(1 <= stage <= len(depths) for stage in stages):
            raise ValueError(
                f"deformable_stages expects some of 1 to {len(depths)}. Got {tuple(deformable_stages)}.\n"
                "HINT: a backbone with no such stage is Swin (build_swin_backbone)."
            )
        if not len(groups) == len(offset_kernels) == len(offset_strides) == len(depths):
            raise ValueError(
                "DAT expects one value for each stage.\n"
                f"  depths        : {tuple(depths)}\n  groups        : {tuple(groups)}\n"
                f"  offset_kernels: {tuple(offset_kernels)}\n  offset_strides: {tuple(offset_strides)}"
            )
        # Set before the constructor of Swin, which calls _build_stage.
        self.deformable_stages = stages
        self.options = {
            stage: DeformableOptions(
                groups=groups[stage - 1],
                kernel_size=offset_kernels[stage - 1],
                stride=offset_strides[stage - 1],
                offset_range=offset_range,
                table_size=-(-pretrain_image_size // 2 ** (stage + 1)),
            )
            for stage in stages
        }
        super().__init__(depths=depths, **swin)

    def _build_stage(self, number: int, **arguments) -> nn.Module:
        return DeformableStage(options=self.options.get(number), **arguments)


@BACKBONE_REGISTRY.register()
def build_dat_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> DAT:
    """The Deformable Attention Transformer from ``MODEL.DAT``."""
    node = cfg.MODEL.DAT
    return DAT(
        deformable_stages=tuple(node.DEFORMABLE_STAGES),
        groups=tuple(node.GROUPS),
        offset_kernels=tuple(node.OFFSET_KERNELS),
        offset_strides=tuple(node.OFFSET_STRIDES),
        offset_range=node.OFFSET_RANGE,
        pretrain_image_size=node.PRETRAIN_IMAGE_SIZE,
        **swin_arguments(node, cfg, input_shape),
    )
