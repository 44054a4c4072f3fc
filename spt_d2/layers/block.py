"""One residual block per kind of attention: Swin's, and Select and Pack (Fig. 3a)."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from spt_d2.layers import chunked
from spt_d2.layers.chunked import runs_in_chunks
from spt_d2.layers.drop_path import DropPath
from spt_d2.layers.gate import SelectionGate, initial_gate_bias
from spt_d2.layers.linear import apply_linear
from spt_d2.layers.mlp import Mlp
from spt_d2.layers.observed import as_built, is_observed
from spt_d2.layers.select_pack_attention import SelectPackAttention, SelectPackOptions
from spt_d2.layers.window_attention import WindowAttention
from spt_d2.ops.gating import gating_factor, straight_through
from spt_d2.ops.packing import PackedLayout, pack_layout
from spt_d2.ops.padding import pad_layout
from spt_d2.ops.selection import select_tokens
from spt_d2.ops.shape_cache import is_traced


class SwinBlock(nn.Module):
    """
    Window attention and MLP, pre-norm (Liu et al., 2021).

    Args:
        dim: C.
        num_heads: h.
        window_size: M, in tokens.
        shift_size: 0, or M // 2.
        mlp_ratio: hidden channels of the MLP over C.
        qkv_bias: whether q, k, v have a bias.
        drop: dropout of the MLP and after the projection.
        attn_drop: dropout of the attention weights.
        drop_path: rate of stochastic depth.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        window_size: int = 7,
        shift_size: int = 0,
        mlp_ratio: float = 4.0,
        qkv_bias: bool = True,
        drop: float = 0.0,
        attn_drop: float = 0.0,
        drop_path: float = 0.0,
    ):
        super().__init__()
        self.norm1 = nn.LayerNorm(dim)
        self.attn = WindowAttention(dim, num_heads, window_size, shift_size, qkv_bias, attn_drop, drop)
        self.drop_path = DropPath(drop_path)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = Mlp(dim, int(dim * mlp_ratio), drop)

    def forward(self, x: Tensor, in_place: bool = False) -> Tensor:
        """
        On a CPU a few windows at a time, which does not call ``attn`` but does its work; over the whole map where a
        hook within the block would miss that, or another module has taken the place of one of its own.

        Args:
            x: (B, H, W, C).
            in_place: whether the result may be written into ``x``, where that is faster: at inference on a CPU.

        Returns:
            (B, H, W, C).
        """
        # A trace of chunks would be of one batch size.
        in_chunks = x.is_cpu and not is_traced() and self._is_as_built()
        return chunked.swin_block(self, x, in_place) if in_chunks else self.whole_map(x)

    def whole_map(self, x: Tensor) -> Tensor:
        """:meth:`forward` over all windows at once."""
        x = x + self.drop_path(self.attn(self.norm1(x)))
        return x + self.drop_path(self.mlp(self.norm2(x)))

    def _is_as_built(self) -> bool:
        parts = (self.norm1, self.attn, self.drop_path, self.norm2, self.mlp)
        kinds = (nn.LayerNorm, WindowAttention, DropPath, nn.LayerNorm, Mlp)
        return all(map(as_built, parts, kinds)) and not is_observed(*parts)


@dataclass(frozen=True)
class Decision:
    """
    A gate's decision on a batch.

    Attributes:
        score: (B, H, W) logits, after the maximum with the stage before (eq. 4).
        keep_mask: (B, H, W) bool.
        soft: (B, H, W) relaxed decision, in (0, 1).
        counts: tokens kept in each image, B integers, once a block has asked the device for them.
    """

    score: Tensor
    keep_mask: Tensor
    soft: Tensor
    counts: tuple[int, ...] | None = None


class SelectPackBlock(nn.Module):
    """
    Select tokens, pack them, attend among them, and run the FFN (Fig. 3a).

    Unselected tokens pass by the attention. The gate's factor acts on what enters attention only: the residual
    stream is not scaled, or the background would vanish before the detector sees it.

    Args:
        dim: C.
        num_heads: h.
        options: see :class:`SelectPackOptions`.
        shift_size: 0, or M // 2: the tokens' order, and window segments, follow the shifted windows.
        has_gate: False where the stage's first block decides for all.
        seed: of ``select="random"`` in evaluation; its own for each block of a network.
        mlp_ratio, qkv_bias, drop, attn_drop, drop_path: see :class:`SwinBlock`.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        options: SelectPackOptions,
        shift_size: int = 0,
        has_gate: bool = True,
        seed: int = 0,
        mlp_ratio: float = 4.0,
        qkv_bias: bool = True,
        drop: float = 0.0,
        attn_drop: float = 0.0,
        drop_path: float = 0.0,
    ):
        super().__init__()
        self.options, self.shift_size, self.seed = options, shift_size, seed
        self.pos_conv = None
        if options.position == "conv":
            self.pos_conv = nn.Conv2d(dim, dim, kernel_size=3, padding=1, groups=dim)
        self.norm1 = nn.LayerNorm(dim)
        self.gate = None
        if has_gate:
            bias = initial_gate_bias(options.gating, options.threshold, options.tau, options.gate_prior)
            self.gate = SelectionGate(dim, bias)
        self.attn = SelectPackAttention(dim, num_heads, options, qkv_bias, attn_drop)
        self.proj_drop = nn.Dropout(drop)
        self.drop_path = DropPath(drop_path)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = Mlp(dim, int(dim * mlp_ratio), drop)
        self.light = nn.Linear(dim, dim) if options.ffn_tokens == "light" else None

    def forward(
        self,
        x: Tensor,
        valid: Tensor,
        score_up: Tensor | None = None,
        labels: Tensor | None = None,
        decision: Decision | None = None,
    ) -> tuple[Tensor, Decision, PackedLayout]:
        """
        Args:
            x: (B, H, W, C).
            valid: (B, H, W) bool; other tokens are never selected.
            score_up: (B, H, W) logits of the stage before, pooled to this grid (eq. 4), or None.
            labels: (B, H, W) uint8 selection labels, read by ``select="oracle"`` only.
            decision: of the stage's first block, for blocks without a gate.

        Returns:
            (B, H, W, C), the decision that was followed, and how its tokens were packed.
        """
        if self.pos_conv is not None:
            x = x + self.pos_conv(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        normed = self.norm1(x)
        if self.gate is not None:
            decision = self._decide(self.gate(normed, x, self.norm1), valid, score_up, labels)
        elif decision is None:
            raise ValueError(
                "SelectPackBlock(has_gate=False) expects the decision of its stage's first block. Got none."
            )
        options = self.options
        layout = pack_layout(
            decision.keep_mask,
            container_size=options.container_length,
            window_size=options.window_size,
            shift_size=self.shift_size,
            order=options.order,
            segment=options.segment,
            counts=decision.counts,
        )
        decision = replace(decision, counts=layout.counts)
        if options.packing == "padded":
            layout = pad_layout(layout)
        x = self._add_attention(x, normed, layout, self._factor(decision, layout))
        return self._add_ffn(x, layout), decision, layout

    def _decide(self, score: Tensor, valid: Tensor, score_up: Tensor | None, labels: Tensor | None) -> Decision:
        if score_up is not None:
            score = torch.maximum(score, score_up)
        options = self.options
        keep_mask, soft = select_tokens(
            score,
            valid,
            select=options.select,
            threshold=options.threshold,
            tau=options.tau,
            noise=options.noise if self.training else "none",
            keep_ratio=options.keep_ratio,
            token_budget=0 if self.training else options.token_budget,
            labels=labels,
            seed=None if self.training else self.seed,
        )
        return Decision(score=score, keep_mask=keep_mask, soft=soft)

    def _factor(self, decision: Decision, layout: PackedLayout) -> Tensor | None:
        """(T,) factor of the packed tokens: gating (eq. 5), and in training the straight-through slope (eq. 6)."""
        options = self.options
        factor = None
        if options.gating != "none":
            score = decision.score.flatten().index_select(0, layout.keep_indices)
            factor = gating_factor(score, options.gating, options.threshold)
        if self.training:
            soft = decision.soft.flatten().index_select(0, layout.keep_indices)
            slope = straight_through(soft, decides=options.select in ("gate", "topk"))
            factor = slope if factor is None else factor * slope
        return factor

    def _add_attention(self, x: Tensor, normed: Tensor, layout: PackedLayout, factor: Tensor | None) -> Tensor:
        if self._attends_in_chunks(x, layout):
            return chunked.add_attention(x, normed, layout, factor, self.attn)
        flat = x.flatten(0, 2)
        tokens = normed.flatten(0, 2).index_select(0, layout.keep_indices)
        if factor is not None:
            tokens = tokens * factor.to(tokens.dtype)[:, None]
        attended = self.attn(layout.pad(tokens), layout.rows)
        if self.options.proj_tokens == "all":
            spread = attended.new_zeros(flat.shape[0], attended.shape[1])
            spread = spread.index_copy(0, layout.keep_indices, layout.unpad(attended))
            return x + self.drop_path(self.proj_drop(apply_linear(self.attn.proj, spread)).view(x.shape))
        branch = layout.unpad(self.proj_drop(apply_linear(self.attn.proj, attended)))
        branch = self.drop_path.packed(branch, layout.image_ids, x.shape[0])
        return flat.index_add(0, layout.keep_indices, branch.to(flat.dtype)).view(x.shape)

    def _attends_in_chunks(self, x: Tensor, layout: PackedLayout) -> bool:
        packed = self.options.packing == "containers" and self.options.proj_tokens == "selected"
        # A trace is to be of one size of map, not of so many chunks.
        if not packed or layout.is_ragged or layout.num_tokens == 0 or is_traced():
            return False
        parts = self.attn, self.proj_drop, self.drop_path
        kinds = SelectPackAttention, nn.Dropout, DropPath
        return all(map(as_built, parts, kinds)) and runs_in_chunks(x, *parts)

    def _add_ffn(self, x: Tensor, layout: PackedLayout) -> Tensor:
        if self.options.ffn_tokens == "all":
            parts, kinds = (self.drop_path, self.norm2, self.mlp), (DropPath, nn.LayerNorm, Mlp)
            if all(map(as_built, parts, kinds)) and runs_in_chunks(x, *parts):
                return chunked.add_mlp(x, self.norm2, self.mlp)
            return x + self.drop_path(chunked.ffn(x, self.norm2, self.mlp))
        flat = x.flatten(0, 2)
        keep, skip = layout.keep_indices, layout.skipped_indices
        # One sample for both kinds of token: an image's branch is dropped whole.
        factor = self.drop_path.sample(x.shape[0], x)
        kept = chunked.ffn(layout.pad(flat.index_select(0, keep)), self.norm2, self.mlp)
        out = flat.index_add(0, keep, self._per_image(layout.unpad(kept), keep, factor, x))
        if self.light is not None:
            skipped = apply_linear(self.light, self.norm2(flat.index_select(0, skip)))
            out = out.index_add(0, skip, self._per_image(skipped, skip, factor, x))
        return out.view(x.shape)

    @staticmethod
    def _per_image(branch: Tensor, indices: Tensor, factor: Tensor | None, x: Tensor) -> Tensor:
        """Scale (T, C) tokens at flat ``indices`` by their image's factor, in the dtype of the residual stream."""
        if factor is not None:
            branch = branch * factor[indices // (x.shape[1] * x.shape[2]), None]
        return branch.to(x.dtype)
