"""A stage of Swin blocks of which some have a gate (Liu et al., "SViT", WACV 2024)."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from spt_d2.layers.block import SwinBlock
from spt_d2.layers.gated_block import GatedSwinBlock
from spt_d2.layers.patch import PatchMerging
from spt_d2.layers.stage import run_block
from spt_d2.ops.budget import BudgetSelection
from spt_d2.ops.gumbel import EVEN, hard_gumbel
from spt_d2.ops.selection import select_tokens


class GatedStage(nn.Module):
    """
    Swin blocks, every second one shifted; each gate decides for its own block, over all tokens anew.

    Args:
        dim: C.
        depth: number of blocks.
        num_heads: h.
        window_size: M, in tokens.
        drop_path: rate of each block.
        downsample: whether a :class:`PatchMerging` to the next stage belongs to this one.
        stage: 1 to 4, for the record.
        targets: for each block the share of tokens that its gate should keep; None for a dense block.
        use_checkpoint: recompute activations in the backward pass, block by block.
        **block: further arguments of :class:`SwinBlock`.
    """

    def __init__(
        self,
        dim: int,
        depth: int,
        num_heads: int,
        window_size: int,
        drop_path: Sequence[float],
        downsample: bool,
        stage: int,
        targets: Sequence[float | None],
        use_checkpoint: bool = False,
        **block: Any,
    ):
        super().__init__()
        self.use_checkpoint, self.stage, self.targets = use_checkpoint, stage, tuple(targets)
        self.blocks = nn.ModuleList()
        for i in range(depth):
            kind = SwinBlock if self.targets[i] is None else GatedSwinBlock
            shift = window_size // 2 * (i % 2)
            self.blocks.append(kind(dim, num_heads, window_size, shift, drop_path=drop_path[i], **block))
        self.downsample = PatchMerging(dim) if downsample else None

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
        """
        selections: list[BudgetSelection] = []
        for i, (block, target) in enumerate(zip(self.blocks, self.targets)):
            if not isinstance(block, GatedSwinBlock):
                x = run_block(block, self.use_checkpoint, x)
                continue
            assert target is not None
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
