"""SViT's gates (Liu et al., WACV 2024) on the hierarchy of Swin."""

import itertools
from collections.abc import Sequence
from typing import Any

from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY
from torch import Tensor, nn

from spt_d2.layers.gated_stage import GatedStage
from spt_d2.modeling.backbone.spt import warn_unsupervised
from spt_d2.modeling.backbone.swin import Swin, swin_arguments
from spt_d2.ops.budget import BudgetSelection, budget_loss, shared_targets
from spt_d2.ops.selection import BlockSelection


class SvitGatedSwin(Swin):
    """
    Swin with a gate per block, after SViT's code (uzh-rpg/svit), whose own backbone is a plain ViT.

    A token that a gate skips passes by the block, attention and FFN, and stays on the map: a later block may keep it.
    Gates are held to a budget, not to labels: their shares, averaged over the batch, are drawn to targets. In training
    every token is computed and kept ones are sampled; in evaluation those with the larger logit are packed, and only
    they are computed. So training costs as much as dense Swin, and the gates.

    Padding is never kept and does not count, which the authors' code does not know.

    Args:
        depths: blocks per stage.
        gated_stages: the stages with gates, any of 1 to 4.
        dense_blocks: number of blocks without a gate at the beginning of the first of them. SViT leaves the first
            quarter of its blocks dense: a gate needs features to judge by.
        keep_ratios: targets, each for an equal part of the gates in order (SViT: for thirds).
        budget_weight: of the budget loss.
        **swin: arguments of :class:`Swin`.
    """

    takes_any_patch_size = False

    def __init__(
        self,
        *,
        depths: Sequence[int] = (2, 2, 6, 2),
        gated_stages: Sequence[int] = (3, 4),
        dense_blocks: int = 2,
        keep_ratios: Sequence[float] = (0.7, 0.49, 0.343),
        budget_weight: float = 4.0,
        **swin,
    ):
        stages = tuple(sorted(set(gated_stages)))
        if not stages or not all(1 <= stage <= len(depths) for stage in stages):
            raise ValueError(
                f"SvitGatedSwin(gated_stages=) expects some of 1 to {len(depths)}. Got {tuple(gated_stages)}.\n"
                "HINT: a backbone with no such stage is Swin (build_swin_backbone)."
            )
        if not 0 <= dense_blocks < depths[stages[0] - 1]:
            raise ValueError(
                f"SvitGatedSwin(dense_blocks=) expects 0 to {depths[stages[0] - 1] - 1}, for stage {stages[0]} has "
                f"gates. Got {dense_blocks}."
            )
        gates = sum(depths[stage - 1] for stage in stages) - dense_blocks
        ratios = tuple(keep_ratios)
        if not 1 <= len(ratios) <= gates or not all(0.0 < ratio <= 1.0 for ratio in ratios):
            raise ValueError(
                f"SvitGatedSwin(keep_ratios=) expects 1 to {gates} fractions in (0, 1], for {gates} gates. "
                f"Got {ratios}."
            )
        # Set before the constructor of Swin, which calls _build_stage.
        self.gated_stages, self.dense_blocks, self.keep_ratios = stages, dense_blocks, ratios
        targets = iter([*[None] * dense_blocks, *shared_targets(gates, ratios)])
        self.targets = {stage: tuple(itertools.islice(targets, depths[stage - 1])) for stage in stages}
        super().__init__(depths=depths, **swin)
        self.budget_weight = budget_weight

    def _build_stage(self, number: int, **arguments) -> nn.Module:
        if number not in self.gated_stages:
            return super()._build_stage(number, **arguments)
        return GatedStage(stage=number, targets=self.targets[number], **arguments)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """:meth:`Swin.forward`; every token counts as valid, and no loss holds the budget."""
        if self.training:
            warn_unsupervised("SvitGatedSwin")
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
            image_sizes: (height, width) in pixels of each image without its padding. None: every token is valid.
            labels: not read; gates learn from the task and the budget.

        Returns:
            feature maps as :meth:`forward` gives them, and one selection for each gate, in their order.
        """
        selections: list[BlockSelection] = []

        def run(i: int, stage: Any, x: Tensor) -> Tensor:
            if not isinstance(stage, GatedStage):
                return stage(x)
            x, new = stage(x, self._valid_tokens(i, x, image_sizes))
            selections.extend(new)
            return x

        return self._through_stages(x, run), selections

    def selection_losses(self, selections: Sequence[BudgetSelection]) -> dict[str, Tensor]:
        """
        What the meta-architecture adds to the detector's losses.

        Args:
            selections: of a training pass.

        Returns:
            ``loss_budget``, weighted.
        """
        return {"loss_budget": self.budget_weight * budget_loss(selections)}


@BACKBONE_REGISTRY.register()
def build_svit_gated_swin_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> SvitGatedSwin:
    """Swin with SViT's gates from ``MODEL.SVIT_GATED_SWIN``."""
    node = cfg.MODEL.SVIT_GATED_SWIN
    return SvitGatedSwin(
        gated_stages=tuple(node.GATED_STAGES),
        dense_blocks=node.DENSE_BLOCKS,
        keep_ratios=tuple(node.KEEP_RATIOS),
        budget_weight=node.BUDGET_WEIGHT,
        **swin_arguments(node, cfg, input_shape),
    )
