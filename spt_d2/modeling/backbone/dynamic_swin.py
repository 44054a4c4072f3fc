"""DynamicSwin: Swin whose third stage gives most tokens a light FFN (Rao et al., T-PAMI 2023)."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY
from torch import Tensor, nn

from spt_d2.layers.dynamic_stage import DynamicStage
from spt_d2.modeling.backbone.spt import warn_unsupervised
from spt_d2.modeling.backbone.swin import STAGE_NAMES, Swin, swin_arguments
from spt_d2.modeling.backbone.teacher import Teacher
from spt_d2.ops.dynamic_selection import DynamicSelection, keep_ratio_loss, map_distance
from spt_d2.ops.selection import BlockSelection, valid_tokens

# The only stage with predictors, and what each keeps less than the one before.
STAGE, STEP = 3, 0.2


class DynamicSwin(Swin):
    """
    Dynamic spatial sparsification of Swin, after the authors' code (raoyongming/DynamicViT, models/dyswin.py).

    Predictors in stage 3 score all tokens; those kept take the MLP, the others LayerNorm and one linear layer.
    Attention stays dense. Names of parameters are the published ones, so that the authors' checkpoints load.

    Images may have any size and be padded, which the authors' code does not know: padding is never kept, and does not
    count. Their distillation compares classes too (a KL term), for which a detector has no counterpart: what remains of
    it is the squared distance of the last map from the teacher's.

    Args:
        depths: blocks per stage, at least three stages.
        predictor_blocks: numbers of the blocks of stage 3, from 0, with a predictor before them; published are 1, 2, 3
            at depth 6 and 2, 4, 6 at depth 18.
        keep_ratio: rho, the share of tokens that the first predictor keeps; each further one keeps 0.2 less.
        ratio_weight: of the squared distance between the shares kept and to be kept, the mean over predictors.
        teacher_weights: file of a dense Swin of the same sizes to learn from; empty for none. It costs a forward pass
            of it in training.
        distill_weight: of the squared distance from the teacher's last map.
        **swin: arguments of :class:`Swin`.
    """

    takes_any_patch_size = False

    def __init__(
        self,
        *,
        depths: Sequence[int] = (2, 2, 6, 2),
        predictor_blocks: Sequence[int] = (1, 2, 3),
        keep_ratio: float = 0.7,
        ratio_weight: float = 10.0,
        teacher_weights: str = "",
        distill_weight: float = 0.5,
        out_features: Sequence[str] = STAGE_NAMES,
        **swin,
    ):
        places = tuple(predictor_blocks)
        depth = depths[STAGE - 1] if len(depths) >= STAGE else 0
        if not places or list(places) != sorted(set(places)) or not 0 <= places[0] <= places[-1] < depth:
            raise ValueError(
                "DynamicSwin(predictor_blocks=) expects ascending numbers of blocks of stage 3. "
                f"Got {places} for depths {tuple(depths)}."
            )
        # Rounded, or 0.7 - 0.4 would be a little less than 0.3, and a token be missing.
        ratios = tuple(round(keep_ratio - STEP * i, 6) for i in range(len(places)))
        if not 0 < ratios[-1] <= ratios[0] <= 1:
            raise ValueError(f"DynamicSwin(keep_ratio=) expects ratios in (0, 1], each {STEP} less. Got {ratios}.")
        if teacher_weights and STAGE_NAMES[len(depths) - 1] not in out_features:
            raise ValueError(
                f"DynamicSwin(teacher_weights=) expects the map {STAGE_NAMES[len(depths) - 1]!r}, which is compared "
                f"with the teacher's. Got out_features {tuple(out_features)}."
            )
        # Set before the constructor of Swin, which calls _build_stage.
        self.predictor_blocks, self.keep_ratios = places, ratios
        super().__init__(depths=depths, out_features=out_features, **swin)
        self.ratio_weight, self.distill_weight = ratio_weight, distill_weight
        self.teacher: Teacher | None = None
        if teacher_weights:
            last = (STAGE_NAMES[len(depths) - 1],)
            self.teacher = Teacher(teacher_weights, depths=tuple(depths), out_features=last, **swin)

    def _build_stage(self, number: int, **arguments) -> nn.Module:
        if number != STAGE:
            return super()._build_stage(number, **arguments)
        return DynamicStage(
            stage=number, predictor_blocks=self.predictor_blocks, keep_ratios=self.keep_ratios, **arguments
        )

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """:meth:`Swin.forward`; every token counts as valid, and no loss holds the ratios."""
        if self.training:
            warn_unsupervised("DynamicSwin")
        return self._maps(x, None)[0]

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
            labels: not read; nothing here is learned from objects but the detector's own losses.

        Returns:
            feature maps as :meth:`forward` gives them, and a selection for each block from the first predictor on.
        """
        features, selections = self._maps(x, image_sizes)
        if self.training and self.teacher is not None:
            name = self._stage_names[-1]
            own, stride = features[name], self._out_feature_strides[name]
            valid = valid_tokens(image_sizes, own.shape[-2:], stride, x.shape[0], x.device)
            distance = map_distance(own, self.teacher.last_map(x), valid)
            selections[-1] = dataclasses.replace(selections[-1], distillation=distance)
        return features, [*selections]

    def _maps(
        self, x: Tensor, image_sizes: Sequence[tuple[int, int]] | None
    ) -> tuple[dict[str, Tensor], list[DynamicSelection]]:
        selections: list[DynamicSelection] = []

        def run(i: int, stage: Any, x: Tensor) -> Tensor:
            if not isinstance(stage, DynamicStage):
                return stage(x)
            x, new = stage(x, self._valid_tokens(i, x, image_sizes))
            selections.extend(new)
            return x

        return self._through_stages(x, run), selections

    def selection_losses(self, selections: Sequence[DynamicSelection]) -> dict[str, Tensor]:
        """
        What the meta-architecture adds to the detector's losses.

        Args:
            selections: of a training pass.

        Returns:
            ``loss_keep_ratio``, and ``loss_distill`` where there is a teacher; both weighted.
        """
        decisions = [selection for selection in selections if selection.leads]
        distances = torch.stack([keep_ratio_loss(s.policy, s.valid, s.target) for s in decisions])
        losses = {"loss_keep_ratio": self.ratio_weight * distances.mean()}
        distance = selections[-1].distillation
        if distance is not None:
            losses["loss_distill"] = self.distill_weight * distance
        return losses


@BACKBONE_REGISTRY.register()
def build_dynamic_swin_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> DynamicSwin:
    """DynamicSwin from ``MODEL.DYNAMIC_SWIN``."""
    node = cfg.MODEL.DYNAMIC_SWIN
    return DynamicSwin(
        predictor_blocks=tuple(node.PREDICTOR_BLOCKS),
        keep_ratio=node.KEEP_RATIO,
        ratio_weight=node.RATIO_WEIGHT,
        teacher_weights=node.TEACHER_WEIGHTS,
        distill_weight=node.DISTILL_WEIGHT,
        **swin_arguments(node, cfg, input_shape),
    )
