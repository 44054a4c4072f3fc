"""Swin blocks that run a share of their windows and leave the others as they are (SparseViT; Chen et al., 2023)."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from spt_d2.layers.block import SwinBlock
from spt_d2.layers.chunked import ffn
from spt_d2.layers.linear import apply_linear
from spt_d2.layers.stage import Stage, run_block
from spt_d2.ops.selection import valid_tokens
from spt_d2.ops.window_selection import (
    WindowSelection,
    choose_windows,
    count_windows,
    kept_windows,
    rank_windows,
    spread_ratios,
    token_activations,
    window_mask,
    window_scores,
    window_tokens,
)
from spt_d2.ops.windows import relative_position_index, shifted_window_mask


class SparseWindowBlock(SwinBlock):
    """
    A :class:`~spt_d2.layers.block.SwinBlock` that may be told which windows to run.

    Chosen windows are gathered before the first norm and take the whole block, FFN included; tokens of other windows
    pass unchanged. With every window chosen it computes what Swin's block does: slots of padding are zero behind the
    first norm, as there. (The published code pads before the norm, so that padding attends as the norm's bias.)
    """

    # Another interface than SwinBlock's: its stage calls it, and no one else.
    def forward(self, x: Tensor, chosen: Tensor | None = None) -> Tensor:  # type: ignore[override]
        """
        Args:
            x: (B, H, W, C).
            chosen: (K,) long, windows of the flattened (B * nW), none twice; None runs all of them as Swin does.

        Returns:
            (B, H, W, C).
        """
        if chosen is None:
            return super().forward(x)
        batch, height, width, channels = x.shape
        window_size, shift_size, total = self.attn.window_size, self.attn.shift_size, height * width
        slots, _ = window_tokens(height, width, window_size, shift_size, x.device)
        image, place = chosen // slots.shape[0], chosen % slots.shape[0]
        tokens = slots[place]
        is_padding = tokens == total
        # Padding reads from, and writes to, one row behind the last: no count of it has to be asked of the device.
        index = torch.where(is_padding, batch * total, tokens + (image * total)[:, None]).flatten()
        buffer = torch.cat((x.flatten(0, 2), x.new_zeros(1, channels)))
        windows = buffer.index_select(0, index).view(-1, window_size**2, channels)
        normed = self.norm1(windows).masked_fill(is_padding[..., None], 0.0)
        size = (height + -height % window_size, width + -width % window_size)
        windows = windows + self._drop(self._attend(normed, place, size), image, batch)
        windows = windows + self._drop(ffn(windows, self.norm2, self.mlp), image, batch)
        buffer = buffer.index_copy_(0, index, windows.flatten(0, 1).to(buffer.dtype))
        return buffer[:-1].view(x.shape)

    def _drop(self, branch: Tensor, image: Tensor, batch: int) -> Tensor:
        """Stochastic depth of (K, M^2, C) windows, an image's windows together."""
        factor = self.drop_path.sample(batch, branch)
        return branch if factor is None else branch * factor[image, None, None]

    def _attend(self, windows: Tensor, place: Tensor, padded_size: tuple[int, int]) -> Tensor:
        """Attention of (K, M^2, C) windows at (K,) places of the map, with their rows of the shifted mask."""
        attn = self.attn
        number, tokens, channels = windows.shape
        heads = (attn.num_heads, channels // attn.num_heads)
        q, k, v = apply_linear(attn.qkv, windows).view(number, tokens, 3, *heads).permute(2, 0, 3, 1, 4)
        rows = relative_position_index(attn.window_size, windows.device).flatten()
        bias = attn.relative_position_bias_table[rows].view(1, tokens, tokens, -1).permute(0, 3, 1, 2).to(q.dtype)
        if attn.shift_size:
            mask = shifted_window_mask(padded_size, attn.window_size, attn.shift_size, q.device, q.dtype, place)
            bias = bias + mask[:, None]
        dropout = attn.attn_drop if self.training else 0.0
        if q.is_cpu and torch.is_grad_enabled() and bias.requires_grad:
            # No fused CPU kernel differentiates a bias.
            weights = (q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1) + bias
            out = F.dropout(weights.softmax(dim=-1), dropout) @ v
        else:
            out = F.scaled_dot_product_attention(q, k, v, attn_mask=bias.expand(number, -1, -1, -1), dropout_p=dropout)
        return attn.proj_drop(apply_linear(attn.proj, out.transpose(1, 2).reshape(number, tokens, channels)))


class SparseWindowStage(Stage):
    """
    Swin blocks, every second one shifted, that run the windows of largest activations.

    Activations are measured once, on the map that the first pruning block is given; one order of the plain windows and
    one of the shifted ones then hold for all blocks, so that deeper blocks run some of the windows of those before.
    A block of ratio 0 decides nothing and is Swin's.

    Args:
        depth: number of blocks.
        window_size: M, in tokens.
        stage: 1 to 4, for the record.
        pruning_ratios: share of windows that are not run; see :func:`spt_d2.ops.window_selection.spread_ratios`.
        sampled_from: ratios of which training draws one for every two blocks, sorted, anew in every forward pass and
            for the whole batch (sparsity-aware adaptation, Sec. 3.3); empty trains at ``pruning_ratios``.
        **arguments: of :class:`Stage`, and further ones of :class:`SwinBlock`.
    """

    def __init__(
        self,
        *,
        depth: int,
        window_size: int,
        stage: int,
        pruning_ratios: Sequence[float] = (0.0,),
        sampled_from: Sequence[float] = (),
        **arguments: Any,
    ):
        super().__init__(depth=depth, window_size=window_size, **arguments)
        self.stage, self.window_size = stage, window_size
        self.pruning_ratios = spread_ratios(pruning_ratios, depth, f"pruning_ratios of stage {stage}")
        self.sampled_from = tuple(sampled_from)

    def _build_block(self, number: int, **arguments: Any) -> SparseWindowBlock:
        return SparseWindowBlock(**arguments)

    def keep_ratio_of(self, block: int) -> float | None:
        """The share of windows that a block runs; None for one that runs them all."""
        return 1.0 - self.pruning_ratios[block] if self.pruning_ratios[block] else None

    def forward(
        self, x: Tensor, stride: int, image_sizes: Sequence[tuple[int, int]] | None = None
    ) -> tuple[Tensor, list[WindowSelection]]:
        """
        Args:
            x: (B, H, W, C).
            stride: pixels per token.
            image_sizes: (height, width) in pixels of each image without its padding; windows wholly in padding are then
                never run by a block that prunes. None: every token is valid.

        Returns:
            (B, H, W, C), before the merging, and a selection for every block of a ratio above 0.
        """
        selections: list[WindowSelection] = []
        chooser: _Chooser | None = None
        for i, (block, ratio) in enumerate(zip(self.blocks, self._ratios())):
            shift_size = self.window_size // 2 * (i % 2)
            if ratio == 0.0:
                x = run_block(block, self.use_checkpoint, x)
                continue
            chooser = chooser or _Chooser(x, stride, image_sizes, self.window_size)
            chosen, counts = chooser.choose(shift_size, ratio)
            score, keep_mask, whole = chooser.describe(shift_size, chosen, counts)
            x = run_block(block, self.use_checkpoint, x, None if whole else chosen)
            selections.append(
                WindowSelection(
                    stage=self.stage,
                    block=i,
                    stride=stride,
                    score=score,
                    keep_mask=keep_mask,
                    valid=chooser.valid,
                    layout=None,
                    window_counts=counts,
                    window_size=self.window_size,
                )
            )
        return x, selections

    def _ratios(self) -> tuple[float, ...]:
        """Of each block in this forward pass."""
        if not (self.training and self.sampled_from):
            return self.pruning_ratios
        depth = len(self.blocks)
        # On the host whatever the default device is, for they decide how many windows there will be.
        drawn = torch.randint(len(self.sampled_from), (-(-depth // 2),), device="cpu").tolist()
        return spread_ratios(sorted(self.sampled_from[i] for i in drawn), depth, "sampled ratios")


class _Chooser:
    """The windows of a stage's map in the order of their scores, found when they are first asked for."""

    def __init__(self, x: Tensor, stride: int, image_sizes: Sequence[tuple[int, int]] | None, window_size: int):
        self.stride, self.image_sizes, self.window_size = stride, image_sizes, window_size
        self.valid = valid_tokens(image_sizes, x.shape[1:3], stride, x.shape[0], x.device)
        self._activations = token_activations(x, self.valid)
        self._ranked: dict[int, tuple[Tensor, Tensor, list[int]]] = {}

    def _rank(self, shift_size: int) -> tuple[Tensor, Tensor, list[int]]:
        """Order (B, nW), scores (B, H, W) of the tokens' windows, and the number of windows of each image."""
        if shift_size not in self._ranked:
            batch, height, width = self.valid.shape
            slots, windows = window_tokens(height, width, self.window_size, shift_size, self.valid.device)
            scores = window_scores(self._activations, slots)
            order = rank_windows(scores, self.valid, windows)
            counts = count_windows(self.image_sizes, (height, width), self.stride, batch, self.window_size, shift_size)
            self._ranked[shift_size] = order, scores[:, windows].view_as(self.valid), counts
        return self._ranked[shift_size]

    def choose(self, shift_size: int, ratio: float) -> tuple[Tensor, tuple[int, ...]]:
        """Windows (K,) at a pruning ratio, and their number in each image."""
        order, _, counts = self._rank(shift_size)
        kept = tuple(kept_windows(count, ratio) for count in counts)
        return choose_windows(order, kept), kept

    def describe(self, shift_size: int, chosen: Tensor, counts: tuple[int, ...]) -> tuple[Tensor, Tensor, bool]:
        """Scores and decisions (B, H, W), and whether these are all windows of the batch."""
        order, score, _ = self._rank(shift_size)
        _, height, width = self.valid.shape
        _, windows = window_tokens(height, width, self.window_size, shift_size, self.valid.device)
        keep_mask = window_mask(chosen, windows, self.valid, order.shape[1])
        return score, keep_mask, all(count == order.shape[1] for count in counts)
