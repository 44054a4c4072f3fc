"""A stage: blocks of one resolution, and the merging that follows them."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from spt_d2.layers.block import Decision, SelectPackBlock, SwinBlock
from spt_d2.layers.observed import as_built, is_observed
from spt_d2.layers.patch import PatchMerging
from spt_d2.layers.select_pack_attention import SelectPackOptions
from spt_d2.ops.selection import BlockSelection


class Stage(nn.Module):
    """
    Blocks of one resolution, every second one shifted, and the merging that follows them.

    What kind of blocks they are is a subclass's affair, and how they run.

    Args:
        dim: C.
        depth: number of blocks.
        num_heads: h.
        window_size: M, in tokens.
        drop_path: rate of each block.
        downsample: whether a :class:`PatchMerging` to the next stage belongs to this one.
        use_checkpoint: recompute activations in the backward pass, block by block.
        **block: further arguments of the blocks.
    """

    def __init__(
        self,
        dim: int,
        depth: int,
        num_heads: int,
        window_size: int,
        drop_path: Sequence[float],
        downsample: bool,
        use_checkpoint: bool = False,
        **block: Any,
    ):
        super().__init__()
        self.use_checkpoint = use_checkpoint
        self.blocks = nn.ModuleList(
            self._build_block(
                i,
                dim=dim,
                num_heads=num_heads,
                window_size=window_size,
                shift_size=window_size // 2 * (i % 2),
                drop_path=drop_path[i],
                **block,
            )
            for i in range(depth)
        )
        self.downsample = self._build_merging(dim) if downsample else None

    def _build_block(self, number: int, **arguments: Any) -> nn.Module:
        """Block ``number``, from 0; subclasses choose another, and set what they choose by before this constructor."""
        return SwinBlock(**arguments)

    def _build_merging(self, dim: int) -> PatchMerging:
        return PatchMerging(dim)


class SwinStage(Stage):
    """Dense window attention blocks (:class:`SwinBlock`)."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, C) to (B, H, W, C), before the merging."""
        reuses = x.is_cpu and not torch.is_grad_enabled()
        for i, block in enumerate(self.blocks):
            # A map for every block would be mapped into memory anew each time. The first block's input is others'.
            in_place = (True,) if reuses and i > 0 and not is_shared(self.blocks[i - 1], block) else ()
            x = run_block(block, self.use_checkpoint, x, *in_place)
        return x


class SelectPackStage(Stage):
    """
    Select and Pack blocks, every second one over the shifted order.

    Args:
        options: of selection and packing; the window size is theirs.
        stage: 1 to 4, for the record.
        **arguments: of :class:`Stage`, and further ones of :class:`SelectPackBlock`.
    """

    def __init__(self, *, options: SelectPackOptions, stage: int, **arguments: Any):
        self.options, self.stage = options, stage
        super().__init__(window_size=options.window_size, **arguments)

    def _build_block(self, number: int, **arguments: Any) -> SelectPackBlock:
        # It is the options'.
        del arguments["window_size"]
        has_gate = self.options.gate == "per_block" or number == 0
        return SelectPackBlock(options=self.options, has_gate=has_gate, seed=1000 * self.stage + number, **arguments)

    def forward(
        self, x: Tensor, valid: Tensor, score_up: Tensor | None = None, labels: Tensor | None = None
    ) -> tuple[Tensor, list[BlockSelection]]:
        """
        Args:
            x: (B, H, W, C).
            valid: (B, H, W) bool.
            score_up: (B, H, W) logits of the stage before, pooled to this grid, or None (eq. 4).
            labels: (B, H, W) uint8, for ``select="oracle"``.

        Returns:
            (B, H, W, C), before the merging, and one selection per block.
        """
        selections: list[BlockSelection] = []
        decision: Decision | None = None
        for i, block in enumerate(self.blocks):
            x, decision, layout = run_block(block, self.use_checkpoint, x, valid, score_up, labels, decision)
            selections.append(
                BlockSelection(
                    stage=self.stage,
                    block=i,
                    stride=2 ** (self.stage + 1),
                    score=decision.score,
                    keep_mask=decision.keep_mask,
                    valid=valid,
                    layout=layout,
                )
            )
        return x, selections


def is_shared(before: nn.Module, after: nn.Module) -> bool:
    """Whether others may hold the map that one block gave and the next is given: a hook, or what wraps a block."""
    return not (as_built(before, SwinBlock) and as_built(after, SwinBlock)) or is_observed(before, after)


def run_block(block: nn.Module, use_checkpoint: bool, *inputs: Any) -> Any:
    """Call a block; under ``use_checkpoint`` its activations are recomputed in the backward pass."""
    if use_checkpoint and block.training and torch.is_grad_enabled():
        return checkpoint(block, *inputs, use_reentrant=False)
    return block(*inputs)
