"""SparseViT: Swin that skips the windows of small activations (Chen et al., CVPR 2023)."""

from collections.abc import Sequence
from typing import Any

from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY
from torch import Tensor, nn

from spt_d2.layers.sparse_window import SparseWindowStage
from spt_d2.modeling.backbone.swin import Swin, swin_arguments
from spt_d2.ops.selection import BlockSelection
from spt_d2.ops.window_selection import spread_ratios

# What the published search and its adaptation draw ratios from.
RATIO_CHOICES = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8)
# The published configuration of 42 ms where the dense one takes 48 (672 x 672 px, batches of 4, RTX A6000).
PRUNING_RATIOS = ((0.3,), (0.0,), (0.1, 0.2, 0.2), (0.0,))


class SparseViT(Swin):
    """
    A Swin hierarchy whose blocks run the windows of largest activations (Sec. 3). No parameter is added to Swin's.

    Args:
        pruning_ratios: for each stage the share of windows that its blocks skip, in [0, 1), not decreasing: a value for
            each block, or fewer, spread over the blocks (:func:`spt_d2.ops.window_selection.spread_ratios`). All 0 is
            dense Swin.
        sample_ratios: whether training draws ratios from ``ratio_choices`` in every forward pass instead, one for every
            two blocks (sparsity-aware adaptation, Sec. 3.3).
        ratio_choices: in [0, 1).
        **swin: arguments of :class:`Swin`.
    """

    takes_any_patch_size = False

    def __init__(
        self,
        *,
        pruning_ratios: Sequence[Sequence[float]] = PRUNING_RATIOS,
        sample_ratios: bool = False,
        ratio_choices: Sequence[float] = RATIO_CHOICES,
        depths: Sequence[int] = (2, 2, 6, 2),
        **swin,
    ):
        if len(pruning_ratios) != len(depths):
            raise ValueError(
                "pruning_ratios expects the ratios of each stage.\n"
                f"  pruning_ratios: {[list(ratios) for ratios in pruning_ratios]}\n  depths        : {tuple(depths)}"
            )
        if not ratio_choices or not all(0.0 <= ratio < 1.0 for ratio in ratio_choices):
            raise ValueError(f"ratio_choices expects shares of windows in [0, 1). Got {tuple(ratio_choices)}.")
        # Set before the constructor of Swin, which calls _build_stage.
        self._given_ratios = [tuple(ratios) for ratios in pruning_ratios]
        self.ratio_choices = tuple(float(ratio) for ratio in ratio_choices)
        self.sample_ratios = sample_ratios
        super().__init__(depths=depths, **swin)

    def _build_stage(self, number: int, **arguments) -> nn.Module:
        return SparseWindowStage(
            stage=number,
            pruning_ratios=self._given_ratios[number - 1],
            sampled_from=self.ratio_choices if self.sample_ratios else (),
            **arguments,
        )

    def _stages(self) -> list[SparseWindowStage]:
        return [stage for stage in self.layers if isinstance(stage, SparseWindowStage)]

    @property
    def pruning_ratios(self) -> tuple[tuple[float, ...], ...]:
        """The share of windows that each block skips, by stage."""
        return tuple(stage.pruning_ratios for stage in self._stages())

    def set_pruning_ratios(self, pruning_ratios: Sequence[Sequence[float]]) -> None:
        """
        Skip other shares from now on; the weights stay.

        Args:
            pruning_ratios: as the constructor takes them.

        Raises:
            ValueError: another number of stages, or ratios that a stage cannot have; nothing is then changed.
        """
        if len(pruning_ratios) != len(self.layers):
            raise ValueError(
                f"set_pruning_ratios expects the ratios of {len(self.layers)} stages. Got {len(pruning_ratios)}."
            )
        spread = [
            spread_ratios(ratios, len(stage.blocks), f"pruning_ratios of stage {i}")
            for i, (stage, ratios) in enumerate(zip(self._stages(), pruning_ratios), start=1)
        ]
        for stage, ratios in zip(self._stages(), spread):
            stage.pruning_ratios = ratios

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """:meth:`Swin.forward`; every token counts as valid."""
        return self.forward_with_selections(x)[0]

    def forward_with_selections(
        self,
        x: Tensor,
        image_sizes: Sequence[tuple[int, int]] | None = None,
        labels: dict[int, Tensor] | None = None,
    ) -> tuple[dict[str, Tensor], list[BlockSelection]]:
        """
        Args:
            x: (B, in_channels, height, width) normalised and padded images.
            image_sizes: (height, width) in pixels of each image without its padding; see
                :class:`~spt_d2.layers.sparse_window.SparseWindowStage`.
            labels: not read.

        Returns:
            feature maps as :meth:`forward` gives them, and the selections of all blocks that skip windows.
        """
        selections: list[BlockSelection] = []

        def run(i: int, stage: Any, x: Tensor) -> Tensor:
            x, new = stage(x, self._out_feature_strides[self._stage_names[i]], image_sizes)
            selections.extend(new)
            return x

        return self._through_stages(x, run), selections

    def selection_losses(self, selections: Sequence[BlockSelection]) -> dict[str, Tensor]:
        """None: scores are activations, and nothing supervises them."""
        return {}


@BACKBONE_REGISTRY.register()
def build_sparse_vit_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> SparseViT:
    """SparseViT from ``MODEL.SPARSE_VIT``."""
    node = cfg.MODEL.SPARSE_VIT
    return SparseViT(
        pruning_ratios=[tuple(ratios) for ratios in node.PRUNING_RATIOS],
        sample_ratios=node.SAMPLE_RATIOS,
        ratio_choices=tuple(node.RATIO_CHOICES),
        **swin_arguments(node, cfg, input_shape),
    )
