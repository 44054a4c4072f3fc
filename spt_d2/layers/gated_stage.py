"""A stage of Swin blocks of which some have a gate (Liu et al., "SViT", WACV 2024)."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from spt_d2.layers.block import SwinBlock
from spt_d2.layers.gated_block import GatedSwinBlock
from spt_d2.layers.stage import Stage, run_block
from spt_d2.ops.budget import BudgetSelection
from spt_d2.ops.gumbel import EVEN, hard_gumbel
from spt_d2.ops.selection import select_tokens


class GatedStage(Stage):
    """
    Swin blocks, every second one shifted; each gate decides for its own block, over all tokens anew.

    Args:
        stage: 1 to 4, for the record.
        targets: for each block the share of tokens that its gate should keep; None for a dense block.
        **arguments: of :class:`Stage`, and further ones of :class:`SwinBlock`.
    """

    def __init__(self, *, stage: int, targets: Sequence[float | None], **arguments: Any):
        self.stage, self.targets = stage, tuple(targets)
        super().__init__(**arguments)

    def _build_block(self, number: int, **arguments: Any) -> nn.Module:
        return SwinBlock(**arguments) if self.targets[number] is None else GatedSwinBlock(**arguments)

    def keep_ratio_of(self, block: int) -> float | None:
        """The share of tokens that a block's gate should keep; None for a dense block."""
        return self.targets[block]

    def forward(self, x: Tensor, valid: Tensor) -> tuple[Tensor, list[BudgetSelection]]:
        """
        Args:
            x: (B, H, W, C).
            valid: (B, H, W) bool; other tokens are never kept by a gate.

        Returns:
            (B, H, W, C), before the merging, and one selection per gate.

        Raises:
            ValueError: a block with a gate was put where the stage has a dense one.
        """
        selections: list[BudgetSelection] = []
        for i, (block, target) in enumerate(zip(self.blocks, self.targets)):
            if not isinstance(block, GatedSwinBlock):
                x = run_block(block, self.use_checkpoint, x)
                continue
            if target is None:
                raise ValueError(
                    f"GatedStage expects a block with a gate only where targets= has a share. Got one as block {i}.\n"
                    f"  targets: {self.targets}"
                )
            score = run_block(block.gate, self.use_checkpoint, x)
            if self.training:
                keep_mask, policy = hard_gumbel(score, valid)
                layout = None
                x = run_block(block, self.use_checkpoint, x, keep_mask, policy)
            else:
                keep_mask, _ = select_tokens(score, valid, threshold=EVEN)
                policy = keep_mask.to(score.dtype)
                layout = block.attn.layout(keep_mask)
                x = block.packed(x, layout)
            selections.append(
                BudgetSelection(
                    stage=self.stage,
                    block=i,
                    stride=2 ** (self.stage + 1),
                    score=score,
                    keep_mask=keep_mask,
                    valid=valid,
                    layout=layout,
                    policy=policy,
                    target=target,
                )
            )
        return x, selections
