"""The Select and Pack Transformer (Sec. 3.1, Fig. 2)."""

import functools
import logging
from collections.abc import Sequence
from typing import Any

from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY
from torch import Tensor, nn

from spt_d2.layers.gate import OutputGate, initial_gate_bias
from spt_d2.layers.select_pack_attention import SelectPackOptions
from spt_d2.layers.stage import SelectPackStage, SwinStage
from spt_d2.modeling.backbone.swin import Swin, swin_arguments
from spt_d2.ops.selection import BlockSelection, pool_scores

logger = logging.getLogger(__name__)


class SPT(Swin):
    """
    A Swin hierarchy whose ``spa_stages`` spend attention on selected tokens only.

    Args:
        spa_stages: the stages made of Select and Pack blocks, any of 1 to 4 (the paper: 3 and 4; Table 6).
        multi_scale: whether a stage's scores join the next stage's by maximum (eq. 4). Where the stage before the first
            of them has no gates, an extra gate scores its output (eq. 1).
        select_pack: how tokens are selected and packed; its window size is the backbone's.
        **swin: arguments of :class:`Swin`.
    """

    takes_any_patch_size = False

    def __init__(
        self,
        *,
        spa_stages: Sequence[int] = (3, 4),
        multi_scale: bool = True,
        depths: Sequence[int] = (2, 2, 10, 2),
        window_size: int = 7,
        container_size: int = 0,
        gate: str = "per_block",
        gating: str = "none",
        select: str = "gate",
        keep_ratio: float = 0.25,
        token_budget: int = 0,
        threshold: float = 0.05,
        tau: float = 1.0,
        noise: str = "none",
        gate_prior: float = 0.1,
        order: str = "window",
        segment: str = "container",
        packing: str = "containers",
        position: str = "none",
        proj_tokens: str = "selected",
        ffn_tokens: str = "all",
        attention_backend: str = "auto",
        **swin,
    ):
        stages = tuple(sorted(set(spa_stages)))
        if not stages or not all(1 <= stage <= len(depths) for stage in stages):
            raise ValueError(
                f"spa_stages expects some of 1 to {len(depths)}. Got {tuple(spa_stages)}.\n"
                "HINT: a backbone with no such stage is Swin (build_swin_backbone)."
            )
        # Set before the constructor of Swin, which calls _build_stage.
        self.spa_stages = stages
        self.options = SelectPackOptions(
            window_size=window_size,
            container_size=container_size,
            gate=gate,
            gating=gating,
            select=select,
            keep_ratio=keep_ratio,
            token_budget=token_budget,
            threshold=threshold,
            tau=tau,
            noise=noise,
            gate_prior=gate_prior,
            order=order,
            segment=segment,
            packing=packing,
            position=position,
            proj_tokens=proj_tokens,
            ffn_tokens=ffn_tokens,
            attention_backend=attention_backend,
        )
        super().__init__(depths=depths, window_size=window_size, **swin)
        self.multi_scale = multi_scale
        bias = initial_gate_bias(gating, threshold, tau, gate_prior)
        self.output_gates = nn.ModuleDict(
            {
                f"stage{stage - 1}": OutputGate(self._out_feature_channels[self._stage_names[stage - 2]], bias)
                for stage in stages
                if multi_scale and stage > 1 and stage - 1 not in stages
            }
        )

    def _build_stage(self, number: int, **arguments) -> nn.Module:
        if number not in self.spa_stages:
            return SwinStage(**arguments)
        del arguments["window_size"]
        return SelectPackStage(options=self.options, stage=number, **arguments)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """:meth:`Swin.forward`; every token counts as valid, and nobody supervises the gates."""
        if self.training:
            warn_unsupervised("SPT")
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
            image_sizes: (height, width) in pixels of each image without its padding; tokens wholly in padding are then
                never selected. None: every token is valid.
            labels: ``{stride: (B, H, W) uint8}`` selection labels, read by ``select="oracle"`` only.

        Returns:
            feature maps as :meth:`forward` gives them, and the selections of all gates in the order taken.
        """
        selections: list[BlockSelection] = []
        score_up: Tensor | None = None

        def run(i: int, stage: Any, x: Tensor) -> Tensor:
            nonlocal score_up
            stride = self._out_feature_strides[self._stage_names[i]]
            new: list[BlockSelection] = []
            if isinstance(stage, SelectPackStage):
                valid = self._valid_tokens(i, x, image_sizes)
                x, new = stage(x, valid, score_up, None if labels is None else labels.get(stride))
            else:
                x = stage(x)
                if f"stage{i + 1}" in self.output_gates:
                    score, valid = self.output_gates[f"stage{i + 1}"](x), self._valid_tokens(i, x, image_sizes)
                    new = [BlockSelection(i + 1, None, stride, score, None, valid, None)]
            score_up = pool_scores(new[-1].score, new[-1].valid) if new and self.multi_scale else None
            selections.extend(new)
            return x

        return self._through_stages(x, run), selections


@functools.lru_cache(maxsize=8)
def warn_unsupervised(backbone: str) -> None:
    """Warn once in the life of the process that a kind of backbone trains its gates by the task alone."""
    logger.warning(
        "The %s backbone is trained through its plain forward(): no selection loss supervises its gates.\n"
        "HINT: MODEL.META_ARCHITECTURE SelectionGeneralizedRCNN (or SelectionRetinaNet, SelectionPanopticFPN, "
        "SelectionMultiLabelClassifier) adds it.",
        backbone,
    )


def select_pack_arguments(node: CfgNode) -> dict:
    """What ``MODEL.SPT`` says of selection and packing, as fields of :class:`SelectPackOptions`; no window size."""
    return {
        "container_size": node.CONTAINER_SIZE,
        "gate": node.GATE,
        "gating": node.GATING,
        "select": node.SELECT,
        "keep_ratio": node.KEEP_RATIO,
        "token_budget": node.TOKEN_BUDGET,
        "threshold": node.THRESHOLD,
        "tau": node.TAU,
        "noise": node.NOISE,
        "gate_prior": node.GATE_PRIOR,
        "order": node.ORDER,
        "segment": node.SEGMENT,
        "packing": node.PACKING,
        "position": node.POSITION,
        "proj_tokens": node.PROJ_TOKENS,
        "ffn_tokens": node.FFN_TOKENS,
        "attention_backend": node.ATTENTION_BACKEND,
    }


@BACKBONE_REGISTRY.register()
def build_spt_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> SPT:
    """The Select and Pack Transformer from ``MODEL.SPT``."""
    node = cfg.MODEL.SPT
    return SPT(
        spa_stages=tuple(node.SPA_STAGES),
        multi_scale=node.MULTI_SCALE,
        **select_pack_arguments(node),
        **swin_arguments(node, cfg, input_shape),
    )
