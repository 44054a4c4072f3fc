"""
Pad the kept tokens of every image to as many as the fullest image of the batch keeps.

It is how variable counts are batched where nothing packs them, and what the paper's Fig. 1 argues against. Results are
those of the packed tokens, whatever the segments; the cost is that of the empty slots, in every projection and in
attention. It is here to be measured.

Shape shorthand in this module:

    B: images    N: tokens of an image's grid    T: kept tokens of the batch    P: the most tokens kept of an image
    L: container size    R: containers of a row
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import cached_property

import torch
from torch import Tensor

from spt_d2.ops.packing import PackedLayout
from spt_d2.ops.segments import next_fit

PACKINGS = ("containers", "padded")


@dataclass(frozen=True)
class PaddedLayout(PackedLayout):
    """
    A layout whose tokens are worked on in B rows of P slots, one image a row, the empty slots behind its tokens.

    Its attributes are those of the layout that was padded.
    """

    @property
    def row_length(self) -> int:
        """P."""
        return max(self.counts, default=0)

    @cached_property
    def row_places(self) -> Tensor:
        """(T,) long: the place of each packed token among the B * P slots."""
        shifts, offset = [], 0
        for image, count in enumerate(self.counts):
            shifts.append(image * self.row_length - offset)
            offset += count
        shift = torch.tensor(shifts, dtype=torch.long).to(self.device, non_blocking=True)
        return torch.arange(self.num_tokens, device=self.device) + shift[self.image_ids]

    @cached_property
    def rows(self) -> PackedLayout:
        """
        The layout of all B * P slots, to attend by.

        An image's segments stay what they are, in containers that are counted from the start of its row; every row has
        the R containers that the longest one needs (ceil(P / L) under ``segment="container"``). Empty slots take what
        room they leave, as segments of their own. Under ``segment="image"`` a row is one container, of P.

        An empty slot stands at its image's first token, for there has to be one: nobody reads what becomes of it.
        """
        height, width = self.grid_size
        batch, length = len(self.counts), self.row_length
        size = self.container_size or max(length, 1)
        seqlens, starts, num_containers = _row_containers(self._image_segments(), length, size)
        places = torch.arange(batch, device=self.device)[:, None].expand(batch, length) * (height * width)
        return PackedLayout(
            keep_indices=places.flatten().index_copy(0, self.row_places, self.keep_indices),
            counts=(length,) * batch,
            seqlens=tuple(seqlens),
            segment_starts=tuple(starts),
            container_size=size,
            num_containers=num_containers,
            grid_size=self.grid_size,
        )

    def pad(self, tokens: Tensor) -> Tensor:
        """(T, ...) packed tokens to the (B * P, ...) slots of the rows, zeros in the empty ones."""
        rows = tokens.new_zeros(len(self.counts) * self.row_length, *tokens.shape[1:])
        return rows.index_copy(0, self.row_places, tokens)

    def unpad(self, rows: Tensor) -> Tensor:
        """(B * P, ...) slots of the rows to (T, ...) packed tokens; inverse of :meth:`pad`."""
        return rows.index_select(0, self.row_places)

    @property
    def executed_pairs(self) -> int:
        """Query-key pairs of the rectangular form over rows, B * R * L^2."""
        return self.rows.executed_pairs

    def _image_segments(self) -> list[list[int]]:
        """Lengths of the segments of each image."""
        lengths, images = iter(self.seqlens), []
        for count in self.counts:
            own: list[int] = []
            while count:
                own.append(next(lengths))
                count -= own[-1]
            images.append(own)
        return images


def pad_layout(layout: PackedLayout) -> PaddedLayout:
    """The same tokens and segments, to be worked on in rows as long as the batch's fullest image; no host copy."""
    return PaddedLayout(**{field.name: getattr(layout, field.name) for field in fields(layout)})


def _row_containers(images: Sequence[Sequence[int]], length: int, size: int) -> tuple[list[int], list[int], int]:
    """
    Segments of rows, those of the empty slots included.

    Args:
        images: lengths of each image's segments.
        length: P.
        size: L.

    Returns:
        lengths of the segments in the order of the B * P slots, the slot of the containers at which each starts, and
        B * R containers.
    """
    placed = [next_fit(own, size) for own in images]
    per_row = max((containers for _, containers in placed), default=0)
    seqlens: list[int] = []
    starts: list[int] = []
    for row, (own, (own_starts, _)) in enumerate(zip(images, placed)):
        first, filled = row * per_row * size, [0] * per_row
        for start, count in zip(own_starts, own):
            filled[start // size] = start % size + count
        seqlens += own
        starts += [first + start for start in own_starts]
        # The rooms behind the tokens of each container; together they hold what is left of the row.
        left = length - sum(own)
        for container, used in enumerate(filled):
            room = min(size - used, left)
            if room:
                seqlens.append(room)
                starts.append(first + container * size + used)
                left -= room
    return seqlens, starts, len(images) * per_row
