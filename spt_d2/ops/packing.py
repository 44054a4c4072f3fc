"""
Pack the selected tokens of a batch into one sequence of segments, and into containers of fixed length (Sec. 3.2).

A *segment* is a run of packed tokens that attend to each other. The packed sequence (T tokens) with the lengths of its
segments is what a block-diagonal attention kernel takes. The rectangular form lays the same sequence into containers of
L slots, (R, L), with a mask; both describe the same function. Segments of whole images have no rectangular form: their
lengths differ as much as images do, and each is attended to by itself.

Shape shorthand in this module:

    B: images    H, W: token grid    N = H * W    C: channels    T: selected tokens in the batch
    S: segments    L: container size    R: containers
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import torch
from torch import Tensor

from spt_d2.ops.segments import counts_between, next_fit, own_containers, shared_containers, whole_images
from spt_d2.ops.windows import token_order

SEGMENTS = ("container", "shared", "window", "image")


@dataclass(frozen=True)
class PackedLayout:
    """
    Where the selected tokens of a batch lie in the packed sequence and in the containers.

    Attributes:
        keep_indices: (T,) long, into the flattened (B * N) tokens, in packed order: image after image.
        counts: tokens kept in each image, B integers.
        seqlens: length of each segment, none of them 0; they sum to T.
        segment_starts: slot (of the R * L) at which each segment starts.
        container_size: L; 0 under ``segment="image"``, where each segment is a container of its own length.
        num_containers: R.
        grid_size: (H, W).
    """

    keep_indices: Tensor
    counts: tuple[int, ...]
    seqlens: tuple[int, ...]
    segment_starts: tuple[int, ...]
    container_size: int
    num_containers: int
    grid_size: tuple[int, int]

    @property
    def num_tokens(self) -> int:
        return self.keep_indices.shape[0]

    @property
    def device(self) -> torch.device:
        return self.keep_indices.device

    @cached_property
    def segment_ids(self) -> Tensor:
        """(T,) long: the segment each packed token belongs to."""
        lengths = torch.tensor(self.seqlens, dtype=torch.long, device="cpu").to(self.device, non_blocking=True)
        return torch.repeat_interleave(lengths, output_size=self.num_tokens)

    @cached_property
    def image_ids(self) -> Tensor:
        """(T,) long: the image each packed token belongs to."""
        height, width = self.grid_size
        return self.keep_indices // (height * width)

    @cached_property
    def skipped_indices(self) -> Tensor:
        """(B * N - T,) long: the tokens that were not kept, in raster order."""
        height, width = self.grid_size
        total = len(self.counts) * height * width
        skipped = torch.ones(total, dtype=torch.bool, device=self.device).index_fill_(0, self.keep_indices, False)
        return _true_places(skipped, torch.arange(total, device=self.device), total - self.num_tokens)

    @cached_property
    def coordinates(self) -> Tensor:
        """(T, 2) long: (row, column) of each packed token on its grid."""
        height, width = self.grid_size
        place = self.keep_indices % (height * width)
        return torch.stack((place // width, place % width), dim=-1)

    @property
    def is_ragged(self) -> bool:
        """Whether containers differ in length (``segment="image"``); there are no slots then."""
        return self.container_size == 0

    @cached_property
    def slots(self) -> Tensor:
        """(T,) long: slot of each packed token among the R * L slots of the containers."""
        if self.is_ragged:
            raise ValueError("PackedLayout expects containers of one length to lay tokens into. Got segment='image'.")
        starts, offset = [], 0
        for start, length in zip(self.segment_starts, self.seqlens):
            starts.append(start - offset)
            offset += length
        shift = torch.tensor(starts, dtype=torch.long, device="cpu").to(self.device, non_blocking=True)
        return torch.arange(self.num_tokens, device=self.device) + shift[self.segment_ids]

    @cached_property
    def slot_segments(self) -> Tensor:
        """(R, L) long: the segment in each slot, -1 where the slot is empty."""
        segments = torch.full((self.num_containers * self.container_size,), -1, dtype=torch.long, device=self.device)
        segments[self.slots] = self.segment_ids
        return segments.view(self.num_containers, self.container_size)

    @cached_property
    def slot_tokens(self) -> Tensor:
        """(R, L) long: the packed token in each slot; in an empty one the last of its container, or token 0."""
        tokens = torch.full((self.num_containers * self.container_size,), -1, dtype=torch.long, device=self.device)
        tokens[self.slots] = torch.arange(self.num_tokens, device=self.device)
        tokens = tokens.view(self.num_containers, self.container_size)
        return torch.where(tokens < 0, tokens.amax(dim=1, keepdim=True).clamp(min=0), tokens)

    @cached_property
    def container_mask(self) -> Tensor:
        """
        (R, 1, L, L) bool, True where a query slot may attend to a key slot.

        Empty slots see each other: a row of a softmax with nothing to see would be NaN, and nobody reads theirs.
        """
        segments = self.slot_segments
        return (segments[:, None, :] == segments[:, :, None]).unsqueeze(1)

    def fill_containers(self, tokens: Tensor) -> Tensor:
        """(T, ...) packed tokens to (R, L, ...) containers, zeros in the empty slots."""
        slots = tokens.new_zeros(self.num_containers * self.container_size, *tokens.shape[1:])
        slots = slots.index_copy(0, self.slots, tokens)
        return slots.view(self.num_containers, self.container_size, *tokens.shape[1:])

    def empty_containers(self, containers: Tensor) -> Tensor:
        """(R, L, ...) containers to (T, ...) packed tokens; inverse of :meth:`fill_containers`."""
        return containers.flatten(0, 1).index_select(0, self.slots)

    def split(self, parts: int) -> "list[PackedLayout]":
        """The layouts of as many parts of the containers, one after the other; their sizes differ by at most one."""
        if self.is_ragged or not 1 <= parts <= self.num_containers:
            raise ValueError(
                f"PackedLayout.split(parts=) expects 1 to {self.num_containers} parts, of containers of one length. "
                f"Got {parts}" + (" and segment='image'." if self.is_ragged else ".")
            )
        if any(after < before for before, after in pairwise(self.segment_starts)):
            raise ValueError(
                "PackedLayout.split expects containers that are filled in packed order. Got rows of a padded layout, "
                "where empty slots lie behind the tokens of each container.\nHINT: split what was padded."
            )
        layouts, first, segment, token = [], 0, 0, 0
        for part in range(parts):
            number = self.num_containers // parts + (part < self.num_containers % parts)
            start, end = segment, (first + number) * self.container_size
            while segment < len(self.seqlens) and self.segment_starts[segment] < end:
                segment += 1
            seqlens = self.seqlens[start:segment]
            behind = token + sum(seqlens)
            layouts.append(
                PackedLayout(
                    keep_indices=self.keep_indices[token:behind],
                    counts=counts_between(self.counts, token, behind),
                    seqlens=seqlens,
                    segment_starts=tuple(
                        place - first * self.container_size for place in self.segment_starts[start:segment]
                    ),
                    container_size=self.container_size,
                    num_containers=number,
                    grid_size=self.grid_size,
                )
            )
            first, token = first + number, behind
        return layouts

    @property
    def rows(self) -> "PackedLayout":
        """The layout to attend by: this one, unless its tokens are padded (:mod:`spt_d2.ops.padding`)."""
        return self

    def pad(self, tokens: Tensor) -> Tensor:
        """(T, ...) packed tokens to what projections and attention run on: nothing but them, unless padded."""
        return tokens

    def unpad(self, rows: Tensor) -> Tensor:
        """Inverse of :meth:`pad`."""
        return rows

    @property
    def executed_pairs(self) -> int:
        """Query-key pairs of the rectangular form, R * L^2; segment by segment where there is none."""
        return self.useful_pairs if self.is_ragged else self.num_containers * self.container_size**2

    @property
    def useful_pairs(self) -> int:
        """Query-key pairs within segments, the sum of squared lengths: what the block-diagonal form computes."""
        return sum(length * length for length in self.seqlens)

    def share_of(self, image: int) -> float:
        """Share of the pairs that is put down to an image: by its tokens; under ``segment="image"`` its own pairs."""
        count = self.counts[image]
        if self.is_ragged:
            # Pairs grow as the square of an image's tokens, which no other image shares.
            return count * count / max(self.useful_pairs, 1)
        return count / max(self.num_tokens, 1)


def pack_layout(
    keep_mask: Tensor,
    *,
    container_size: int,
    window_size: int,
    shift_size: int = 0,
    order: str = "window",
    segment: str = "container",
    counts: Sequence[int] | None = None,
) -> PackedLayout:
    """
    Lay out the tokens marked in ``keep_mask`` (Sec. 3.2, Fig. 3b).

    One device-to-host copy is made, of the number of kept tokens per image (per window under ``segment="window"``),
    unless it is given.

    Args:
        keep_mask: (B, H, W) bool.
        container_size: L, in tokens; the paper takes window_size squared. Not read under ``segment="image"``.
        window_size: M, in tokens.
        shift_size: 0, or M // 2 in odd blocks: another order of the tokens, never a roll of features.
        order: ``window`` (a container holds neighbours) or ``raster``.
        segment: which tokens attend to each other. ``container``: containers are counted from each image's first
            token, so an image's result never depends on its batch. ``shared``: containers are counted over the whole
            batch and cut where two images meet. ``window``: kept tokens of one (shifted) window; containers
            take whole windows, next-fit. ``image``: all kept tokens of an image, as in a plain ViT.
        counts: kept tokens of each image, where they are known: of another layout of the same ``keep_mask``. Not read
            under ``segment="window"``.

    Raises:
        ValueError: unknown ``segment`` or ``order``; windows in raster order, or larger than a container.
    """
    if keep_mask.dim() != 3 or keep_mask.dtype != torch.bool:
        raise ValueError(
            "pack_layout(keep_mask=) expects one decision per token.\n"
            f"  expected: (B, H, W) torch.bool\n  got     : {tuple(keep_mask.shape)} {keep_mask.dtype}"
        )
    check_segment(segment, order, container_size, window_size)
    b, h, w = keep_mask.shape
    places, windows, num_windows = token_order(h, w, window_size, shift_size, order, keep_mask.device)
    kept = keep_mask.flatten(1)[:, places]

    if segment == "window":
        per_window = torch.zeros(b, num_windows, dtype=torch.long, device=kept.device)
        per_window.index_add_(1, windows, kept.long())
        lengths = per_window.tolist()
        counts = [sum(row) for row in lengths]
        seqlens = [length for row in lengths for length in row if length]
        starts, num_containers = next_fit(seqlens, container_size)
    else:
        counts = kept.sum(dim=1).tolist() if counts is None else counts
        if segment == "container":
            seqlens, starts, num_containers = own_containers(counts, container_size)
        elif segment == "image":
            seqlens, starts, num_containers = whole_images(counts)
        else:
            seqlens, starts, num_containers = shared_containers(counts, container_size)

    raster = (places[None, :] + torch.arange(b, device=kept.device)[:, None] * (h * w)).flatten()
    return PackedLayout(
        keep_indices=_true_places(kept.flatten(), raster, sum(counts)),
        counts=tuple(counts),
        seqlens=tuple(seqlens),
        segment_starts=tuple(starts),
        container_size=0 if segment == "image" else container_size,
        num_containers=num_containers,
        grid_size=(h, w),
    )


def check_segment(segment: str, order: str, container_size: int, window_size: int) -> None:
    """Raise ValueError where ``segment`` is unknown or cannot be had with the order and the sizes."""
    if segment not in SEGMENTS:
        raise ValueError(f"segment expects one of {SEGMENTS}. Got {segment!r}.")
    if container_size < 1:
        raise ValueError(f"container_size expects at least 1 token. Got {container_size}.")
    if segment == "window" and order != "window":
        raise ValueError(
            f"segment='window' expects order='window', where a window's tokens are neighbours. Got {order!r}."
        )
    if segment == "window" and container_size < window_size**2:
        raise ValueError(
            "segment='window' puts whole windows into containers.\n"
            f"  window_size^2 : {window_size**2}\n  container_size: {container_size} (expected at least as many)"
        )


def _true_places(flags: Tensor, places: Tensor, total: int) -> Tensor:
    """(K,) bool and (K,) long to the (total,) places whose flag is set, in order; makes no host copy."""
    # A scatter to the running count stands in for nonzero(), which would ask the device for the count once more.
    # Places that are not flagged all write to one slot past the end.
    target = torch.where(flags, flags.cumsum(0) - 1, total)
    return torch.empty(total + 1, dtype=torch.long, device=flags.device).scatter_(0, target, places)[:total]
