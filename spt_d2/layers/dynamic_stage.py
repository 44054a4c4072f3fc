"""A stage of DynamicSwin: predictors between blocks, each deciding for those up to the next (Rao et al., 2023)."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from spt_d2.layers.block import SwinBlock
from spt_d2.layers.dynamic_block import DynamicBlock, merge
from spt_d2.layers.stage import Stage, run_block
from spt_d2.layers.token_predictor import TokenPredictor
from spt_d2.ops.dynamic_selection import DynamicSelection
from spt_d2.ops.gumbel import hard_gumbel
from spt_d2.ops.selection import select_tokens


class DynamicStage(Stage):
    """
    Swin blocks up to the first predictor, blocks with two FFNs after it; every second block shifted.

    Each predictor scores all tokens anew: one that was skipped may be kept again. In training a decision is sampled,
    and its ratio is the loss's affair; in evaluation an image keeps the ceil(ratio * valid tokens) of highest score.

    Args:
        stage: 1 to 4, for the record.
        predictor_blocks: numbers of the blocks that have a predictor before them, ascending.
        keep_ratios: share of valid tokens that each predictor is to keep.
        **arguments: of :class:`Stage`, and further ones of :class:`SwinBlock`.
    """

    def __init__(
        self,
        *,
        dim: int,
        stage: int,
        predictor_blocks: Sequence[int],
        keep_ratios: Sequence[float],
        **arguments: Any,
    ):
        self.stage = stage
        self.predictor_blocks, self.keep_ratios = tuple(predictor_blocks), tuple(keep_ratios)
        super().__init__(dim=dim, **arguments)
        self.score_predictor = nn.ModuleList(TokenPredictor(dim) for _ in self.predictor_blocks)

    def _build_block(self, number: int, **arguments: Any) -> SwinBlock:
        return SwinBlock(**arguments) if number < self.predictor_blocks[0] else DynamicBlock(**arguments)

    def keep_ratio_of(self, block: int) -> float | None:
        """The share of tokens that a block gives its full FFN by the stage's own ratios; None before the first."""
        ratio = None
        for place, candidate in zip(self.predictor_blocks, self.keep_ratios):
            ratio = candidate if place <= block else ratio
        return ratio

    def forward(self, x: Tensor, valid: Tensor) -> tuple[Tensor, list[DynamicSelection]]:
        """
        Args:
            x: (B, H, W, C).
            valid: (B, H, W) bool; other tokens take the light FFN.

        Returns:
            (B, H, W, C), before the merging, and one selection for every block from the first predictor on.
        """
        for block in self.blocks[: self.predictor_blocks[0]]:
            x = run_block(block, self.use_checkpoint, x)
        return self._sampled(x, valid) if self.training else self._ranked(x, valid)

    def _sampled(self, x: Tensor, valid: Tensor) -> tuple[Tensor, list[DynamicSelection]]:
        """Training: every token through both FFNs."""
        # Before the first decision both results of a token are itself.
        slow = fast = x
        mask = x.new_ones(*x.shape[:3], 1)
        selections: list[DynamicSelection] = []
        for i in range(self.predictor_blocks[0], len(self.blocks)):
            if i in self.predictor_blocks:
                predictor = self.score_predictor[self.predictor_blocks.index(i)]
                # As the decision before this one has it; the blocks below read both results by the new one.
                score = run_block(predictor, self.use_checkpoint, merge(slow, fast, mask), valid)
                keep_mask, policy = hard_gumbel(score, valid)
                mask = policy[..., None].to(x.dtype)
            slow, fast = run_block(self.blocks[i], self.use_checkpoint, slow, fast, mask)
            selections.append(self._record(i, score, keep_mask, valid, policy))
        return merge(slow, fast, mask), selections

    def _ranked(self, x: Tensor, valid: Tensor) -> tuple[Tensor, list[DynamicSelection]]:
        """Evaluation: each token through its own FFN; one device sync for each decision."""
        selections: list[DynamicSelection] = []
        for i in range(self.predictor_blocks[0], len(self.blocks)):
            if i in self.predictor_blocks:
                number = self.predictor_blocks.index(i)
                score = self.score_predictor[number](x, valid)
                keep_mask, _ = select_tokens(score, valid, select="topk", keep_ratio=self.keep_ratios[number])
                # Kept tokens first, each kind in its order; nonzero() would wait for the device twice.
                order = torch.argsort(keep_mask.flatten().logical_not().to(torch.uint8), stable=True)
                keep, skip = order.tensor_split([int(keep_mask.sum())])
            block = self.blocks[i]
            if not isinstance(block, DynamicBlock):
                raise TypeError(
                    "DynamicStage expects blocks of its own behind a predictor: at inference they run on some tokens.\n"
                    f"  block {i}: {type(block).__name__} (expected DynamicBlock)"
                )
            x = block.sparse(x, keep, skip)
            selections.append(self._record(i, score, keep_mask, valid, keep_mask.to(score.dtype)))
        return x, selections

    def _record(self, block: int, score: Tensor, keep_mask: Tensor, valid: Tensor, policy: Tensor) -> DynamicSelection:
        target = self.keep_ratio_of(block)
        assert target is not None
        return DynamicSelection(
            stage=self.stage,
            block=block,
            stride=2 ** (self.stage + 1),
            score=score,
            keep_mask=keep_mask,
            valid=valid,
            layout=None,
            policy=policy,
            target=target,
            leads=block in self.predictor_blocks,
        )
