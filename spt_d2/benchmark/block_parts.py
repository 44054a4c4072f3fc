"""What of a Select and Pack block is selection: its work taken apart, timed piece by piece beside the block."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from spt_d2.benchmark.cases import Case
from spt_d2.benchmark.planting import KeepRatio
from spt_d2.benchmark.record import Row
from spt_d2.benchmark.steps import DTYPES
from spt_d2.layers.block import SelectPackBlock
from spt_d2.layers.chunked import add_mlp, runs_in_chunks
from spt_d2.layers.linear import apply_linear
from spt_d2.ops.attention import block_diagonal_mask, container_attention, in_containers, uses_xformers
from spt_d2.ops.packing import PackedLayout, pack_layout
from spt_d2.ops.selection import select_tokens

PARTS = ("gate", "select", "pack", "unpack")
# Of a block that can be taken apart.
OPTIONS = {
    "position": "none",
    "gating": "none",
    "ffn_tokens": "all",
    "proj_tokens": "selected",
    "packing": "containers",
}


class BlockParts:
    """
    A block's work, taken apart: the arithmetic of a Transformer block, and what selection adds to it.

    The parts are those of the rectangular form, or, where xformers' kernels do the attention, of the packed sequence.

    Args:
        block: with the options of :data:`OPTIONS`; in evaluation mode.
        x: (B, H, W, C) its input.
        valid, score_up: as the block takes them.

    Raises:
        ValueError: another option, under which a block does other work than these parts; a block without a gate.
    """

    def __init__(self, block: SelectPackBlock, x: Tensor, valid: Tensor, score_up: Tensor):
        other = {
            name: getattr(block.options, name) for name in OPTIONS if getattr(block.options, name) != OPTIONS[name]
        }
        if other:
            raise ValueError(
                "BlockParts(block=) expects the options that the parts are taken apart by.\n"
                + "\n".join(f"  {name}: {value} (expected {OPTIONS[name]})" for name, value in other.items())
            )
        if block.gate is None:
            raise ValueError("BlockParts(block=) expects a block with a gate. Got one that follows its stage's first.")
        self.block, self.x, self.valid, self.score_up = block, x, valid, score_up
        self.normed = block.norm1(x)
        self.score = self.gate()
        self.keep_mask = self.select()
        self.layout, self.tokens = self.pack()
        self.qkv = block.attn.qkv(self.tokens).view(self.layout.num_tokens, 3, block.attn.num_heads, -1)
        self.rectangular = not uses_xformers(self.qkv[:, 0], has_bias=False, backend=block.attn.backend)
        self.filled = self.fill()
        self.attended = self.attend()
        self.branch = block.attn.proj(self.empty())

    def gate(self) -> Tensor:
        """Logits (eq. 4)."""
        assert self.block.gate is not None
        return torch.maximum(self.block.gate(self.normed), self.score_up)

    def select(self) -> Tensor:
        """The keep rule (eq. 6)."""
        options = self.block.options
        keep_mask, _ = select_tokens(
            self.score,
            self.valid,
            select=options.select,
            threshold=options.threshold,
            tau=options.tau,
            token_budget=options.token_budget,
        )
        return keep_mask

    def pack(self) -> tuple[PackedLayout, Tensor]:
        """The layout, and the gathered tokens."""
        options = self.block.options
        layout = pack_layout(
            self.keep_mask,
            container_size=options.container_length,
            window_size=options.window_size,
            shift_size=self.block.shift_size,
            order=options.order,
            segment=options.segment,
        )
        return layout, self.normed.flatten(0, 2).index_select(0, layout.keep_indices)

    def fill(self) -> Any:
        """Queries, keys and values laid into containers, three of (R, h, L, d), and their mask; or xformers' mask."""
        if not self.rectangular:
            return block_diagonal_mask(self.layout, self.x.device)
        # The layout computes its slots once, and would have them from the last round.
        layout = PackedLayout(**{name: getattr(self.layout, name) for name in PackedLayout.__dataclass_fields__})
        return [in_containers(t, layout) for t in self.qkv.unbind(1)], layout.container_mask

    def attend(self) -> Tensor:
        """Attention, (R, L, h, d) in containers; or (T, C)."""
        if not self.rectangular:
            return self.block.attn(self.tokens, self.layout)
        (q, k, v), mask = self.filled
        return container_attention(q, k, v, mask).transpose(1, 2)

    def empty(self) -> Tensor:
        """(T, C): attended tokens, taken out of the containers."""
        return self.layout.empty_containers(self.attended).flatten(1) if self.rectangular else self.attended

    def put_back(self) -> Tensor:
        """The branch added to its tokens' residual stream."""
        branch = self.branch.to(self.x.dtype)
        return self.x.flatten(0, 2).index_add(0, self.layout.keep_indices, branch).view(self.x.shape)

    def selection(self) -> None:
        """Everything that a block of packed tokens would do without."""
        self.gate()
        self.select()
        self.pack()
        self.fill()
        self.empty()
        self.put_back()

    def arithmetic(self) -> Tensor:
        """Everything else: norms, projections and attention of the packed tokens, and the FFN."""
        block = self.block
        block.norm1(self.x)
        if self.rectangular:
            # Elsewhere attend() does it.
            apply_linear(block.attn.qkv, self.tokens)
        self.attend()
        # As many tokens as are kept, whichever.
        apply_linear(block.attn.proj, self.tokens)
        if runs_in_chunks(self.x, block.drop_path, block.norm2, block.mlp):
            # Written into, as the block does with what it has just made.
            return add_mlp(self.x.clone(), block.norm2, block.mlp)
        return self.x + block.mlp(block.norm2(self.x))

    def pieces(self) -> dict[str, Callable[[], object]]:
        """Each of :data:`PARTS`; containers are filled in packing, and emptied in unpacking."""
        runs = (
            self.gate,
            self.select,
            lambda: (self.pack(), self.fill()),
            lambda: (self.empty(), self.put_back()),
        )
        return dict(zip(PARTS, runs))


def block_cases(
    block: SelectPackBlock,
    inputs: tuple[Tensor, Tensor, Tensor],
    plant: Callable[[], None],
    entry: Callable[..., Any],
    number: int,
    keep_ratio: KeepRatio,
    shared: Mapping[str, Any],
) -> list[Case]:
    """
    A block, what of it is selection and what is arithmetic, and the parts of the former; in inference.

    Args:
        block: planted.
        inputs: of the block: x, valid, score_up.
        plant: plants the share.
        entry: makes an entry of a network and a call, and says what it runs under.
        number: of the stage, for the names.
        keep_ratio: that is planted.
        shared: fields of all cases.
    """
    plant()
    reduced = torch.autocast(inputs[0].device.type, DTYPES[shared["dtype"]], enabled=shared["dtype"] != "float32")
    with torch.no_grad(), reduced:
        parts = BlockParts(block.eval(), *inputs)
    runs: dict[str, Callable[[], object]] = {
        "spa_block": lambda: block(*inputs),
        "selection": parts.selection,
        "arithmetic": parts.arithmetic,
        **parts.pieces(),
    }
    # The block is what its parts are compared with.
    return [
        Case(
            entry=entry(block, run, prepare=plant),
            name=f"{name}{number}" if name == "spa_block" else f"{name} of spa_block{number}",
            keep_ratio=keep_ratio,
            is_peer=name == "spa_block",
            group=f"block{number} at {keep_ratio}",
            **shared,
        )
        for name, run in runs.items()
    ]


def shares(rows: Sequence[Row]) -> list[str]:
    """
    What of each block is selection, in percent of the block's time in the same round: one line for each.

    Two measures: gate, select, pack and unpack timed by themselves, without their neighbours' data in the cache; and
    the block's time beyond that of its arithmetic, which holds whatever the block does besides.
    """
    blocks: dict[tuple, dict[str, Row]] = {}
    for row in rows:
        part, _, block = row.name.rpartition(" of ")
        if block.startswith("spa_block"):
            key = block, str(row.keep_ratio), row.batch, row.image_size
            blocks.setdefault(key, {})[part] = row
    lines = []
    for (block, keep_ratio, batch, (height, width)), parts in blocks.items():
        percents = {part: _percent(parts[part]) for part in ("selection", "arithmetic", *PARTS)}
        alone, rest = percents["selection"], percents["arithmetic"]
        each = ", ".join(f"{part} {percents[part][1]:.1f}" for part in PARTS)
        lines.append(
            f"{block} at keep {keep_ratio}, batch {batch}, {height}x{width}: gate, select, pack and unpack take "
            f"{alone[1]:.1f} % ({alone[0]:.1f} to {alone[2]:.1f}; {each}) of its time, run by themselves; beyond its "
            f"arithmetic it takes {100 - rest[1]:.1f} % ({100 - rest[2]:.1f} to {100 - rest[0]:.1f})"
        )
    return lines


def _percent(row: Row) -> tuple[float, float, float]:
    """Quartiles of a part's share in its block."""
    assert row.ratio_to_fastest_peer is not None and row.ratio_quartiles is not None
    low, high = row.ratio_quartiles
    return 100 / high, 100 / row.ratio_to_fastest_peer, 100 / low
