"""
Where segments of packed tokens lie in containers: reckoned on the host, from the number of tokens that are kept.

The functions that lay out tell the length of each segment, the slot at which it starts, and the number of containers.
"""

from collections.abc import Sequence


def counts_between(counts: Sequence[int], start: int, end: int) -> tuple[int, ...]:
    """Of the packed tokens ``start`` to ``end``, how many are each image's."""
    between, offset = [], 0
    for count in counts:
        between.append(max(min(offset + count, end) - max(offset, start), 0))
        offset += count
    return tuple(between)


def own_containers(counts: Sequence[int], size: int) -> tuple[list[int], list[int], int]:
    """Every image starts a container of its own: at most one partial container an image."""
    seqlens: list[int] = []
    for count in counts:
        seqlens += [size] * (count // size)
        if count % size:
            seqlens.append(count % size)
    return seqlens, [i * size for i in range(len(seqlens))], len(seqlens)


def whole_images(counts: Sequence[int]) -> tuple[list[int], list[int], int]:
    """A segment an image, one behind the other; images with nothing kept have none."""
    seqlens = [count for count in counts if count]
    return seqlens, [sum(seqlens[:i]) for i in range(len(seqlens))], len(seqlens)


def shared_containers(counts: Sequence[int], size: int) -> tuple[list[int], list[int], int]:
    """Containers run on over the images (the paper's figure); a segment ends with its container or its image."""
    seqlens, starts, position = [], [], 0
    for count in counts:
        end = position + count
        while position < end:
            length = min(end, (position // size + 1) * size) - position
            seqlens.append(length)
            starts.append(position)
            position += length
    return seqlens, starts, -(-position // size)


def next_fit(seqlens: Sequence[int], size: int) -> tuple[list[int], int]:
    """A segment goes into the current container if it fits there whole, else it opens the next one; slots, number."""
    starts, position = [], 0
    for length in seqlens:
        if position % size + length > size:
            position = (position // size + 1) * size
        starts.append(position)
        position += length
    return starts, -(-position // size)
