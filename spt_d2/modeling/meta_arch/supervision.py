"""What a meta-architecture adds for a backbone that selects: labels, loss, figures, and selections on request."""

import torch
from detectron2.config import CfgNode
from detectron2.structures import ImageList
from detectron2.utils.events import get_event_storage
from torch import Tensor, nn

from spt_d2.ops.labels import stack_selection_labels
from spt_d2.ops.losses import REDUCTIONS, selection_counts, selection_loss
from spt_d2.ops.selection import BlockSelection, split_selections


class SelectionSupervision(nn.Module):
    """
    Selection loss (eq. 10), figures for the log, and the output key ``selection``.

    A mixin for classes whose ``backbone`` has ``forward_with_selections``; arguments it does not know go on.

    Args:
        backbone: with ``forward_with_selections(x, image_sizes, labels)``.
        loss_weight: alpha of the selection loss.
        loss_reduction: ``mean`` or ``sum``; see :func:`spt_d2.ops.losses.selection_loss`.
        pos_weight: weight of object tokens in the loss.
        supervise: False trains the gates by the task's gradient alone (Tables 6 and 7 without L_select).
        return_selections: whether outputs at inference carry an
            :class:`~spt_d2.ops.selection.ImageSelection` under ``selection``.
        log_period: iterations between two records of keep ratio, retention and density.
        **kwargs: of the stock meta-architecture.
    """

    def __init__(
        self,
        *,
        backbone: nn.Module,
        loss_weight: float = 0.1,
        loss_reduction: str = "mean",
        pos_weight: float = 1.0,
        supervise: bool = True,
        return_selections: bool = False,
        log_period: int = 20,
        **kwargs,
    ):
        if not hasattr(backbone, "forward_with_selections"):
            raise TypeError(
                f"{type(self).__name__}(backbone=) expects a backbone with forward_with_selections(). "
                f"Got {type(backbone).__name__}.\n"
                "HINT: build_spt_fpn_backbone and build_swin_fpn_backbone have it; any other backbone runs under "
                "Detectron2's own meta-architecture."
            )
        if loss_reduction not in REDUCTIONS:
            raise ValueError(f"loss_reduction expects one of {REDUCTIONS}. Got {loss_reduction!r}.")
        super().__init__(backbone=backbone, **kwargs)
        self.loss_weight, self.loss_reduction, self.pos_weight = loss_weight, loss_reduction, pos_weight
        self.supervise, self.return_selections, self.log_period = supervise, return_selections, log_period

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict:
        node = cfg.MODEL.SPT
        return {
            # Of the stock class that follows this mixin.
            **super().from_config(cfg),  # type: ignore[misc]
            "loss_weight": node.LOSS_WEIGHT,
            "loss_reduction": node.LOSS_REDUCTION,
            "pos_weight": node.POS_WEIGHT,
            "supervise": node.SUPERVISE,
            "return_selections": node.RETURN_SELECTIONS,
            "log_period": node.LOG_PERIOD,
        }

    def select_features(
        self, images: ImageList, batched_inputs: list[dict]
    ) -> tuple[dict[str, Tensor], list[BlockSelection], dict[int, Tensor] | None]:
        """Feature maps, selections, and the batch's labels where every input has them."""
        labels = None
        if all("selection_labels" in x for x in batched_inputs):
            labels = stack_selection_labels(
                [x["selection_labels"] for x in batched_inputs], tuple(images.tensor.shape[-2:]), images.tensor.device
            )
        features, selections = self.backbone.forward_with_selections(images.tensor, images.image_sizes, labels)
        return features, selections, labels

    def selection_losses(self, selections: list[BlockSelection], labels: dict[int, Tensor] | None) -> dict[str, Tensor]:
        """
        One weighted loss per stage that has gates, the sum over its gates; records figures once per period.

        A backbone with ``selection_losses(selections)`` has losses of its own, not from labels: they are taken as they
        are, whatever ``supervise`` says.

        Raises:
            ValueError: no labels, or none at a gate's stride.
        """
        losses: dict[str, Tensor] = {}
        if not selections:
            return losses
        network = getattr(self.backbone, "bottom_up", self.backbone)
        if hasattr(network, "selection_losses"):
            losses = network.selection_losses(selections)
        elif self.supervise:
            for selection in selections:
                key = f"loss_select_stage{selection.stage}"
                loss = selection_loss(
                    selection.score,
                    self._label(labels, selection.stride),
                    selection.valid,
                    reduction=self.loss_reduction,
                    pos_weight=self.pos_weight,
                )
                losses[key] = losses.get(key, 0.0) + self.loss_weight * loss
        self._record(selections, labels)
        return losses

    def _label(self, labels: dict[int, Tensor] | None, stride: int) -> Tensor:
        if labels is None:
            raise ValueError(
                f"{type(self).__name__} expects 'selection_labels' in every training input. Got none.\n"
                "HINT: use SelectionDatasetMapper, or supervise=False (MODEL.SPT.SUPERVISE False)."
            )
        if stride not in labels:
            raise ValueError(
                f"{type(self).__name__} expects selection labels at stride {stride}. Got strides {sorted(labels)}.\n"
                "HINT: name it in INPUT.SPT.STRIDES."
            )
        return labels[stride]

    @torch.no_grad()
    def _record(self, selections: list[BlockSelection], labels: dict[int, Tensor] | None) -> None:
        """Keep ratio, retention and density per stage into the event storage; the only device sync is made here."""
        storage = get_event_storage()
        if storage.iter % self.log_period:
            return
        totals: dict[int, Tensor] = {}
        for selection in selections:
            if selection.keep_mask is None:
                continue
            label = (labels or {}).get(selection.stride)
            if label is None:
                # Nothing is known of any token: retention and density are then not recorded.
                label = torch.full_like(selection.valid, 255, dtype=torch.uint8)
            counts = selection_counts(selection.keep_mask, label, selection.valid)
            row = torch.stack((counts.tokens, counts.kept, counts.objects, counts.kept_objects, counts.judged))
            totals[selection.stage] = totals.get(selection.stage, 0) + row
        for stage, row in totals.items():
            tokens, kept, objects, kept_objects, judged = row.tolist()
            # smoothing_hint=False: the log shows the latest value, for a median would lag behind a falling ratio.
            storage.put_scalar(f"selection/stage{stage}/keep_ratio", kept / max(tokens, 1), smoothing_hint=False)
            if objects:
                storage.put_scalar(f"selection/stage{stage}/retention", kept_objects / objects, smoothing_hint=False)
            if judged:
                storage.put_scalar(f"selection/stage{stage}/density", kept_objects / judged, smoothing_hint=False)

    def attach_selections(self, outputs: list[dict], selections: list[BlockSelection], images: ImageList) -> list[dict]:
        """Add the key ``selection`` to each output, where asked for."""
        if self.return_selections:
            split = split_selections(selections, images.image_sizes, tuple(images.tensor.shape[-2:]))
            for output, selection in zip(outputs, split):
                output["selection"] = selection
        return outputs
