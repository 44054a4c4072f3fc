"""
Slow and obvious truths, against which the fast code is tested.

Nothing of the package is imported here. Attention is dense over every token of the batch, with a mask that is built
from the keep mask, the order and the container size, token by token; geometry is found by loops.

Shape shorthand in this module:

    B: images    H, W: token grid    N = H * W    h: heads    d: head dim    M: window size    L: container size
"""

import itertools
import math
from collections.abc import Hashable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

# What a comparison in each dtype may differ by, absolutely and relatively.
TOLERANCE = {
    torch.float64: {"atol": 1e-10, "rtol": 1e-9},
    torch.float32: {"atol": 2e-5, "rtol": 2e-5},
    torch.float16: {"atol": 1e-2, "rtol": 1e-2},
    torch.bfloat16: {"atol": 5e-2, "rtol": 5e-2},
}

Token = tuple[int, int, int]  # image, row, column


def close(actual: Tensor, expected: Tensor, **tolerance: float) -> None:
    """Equal up to the tolerance of ``expected``'s dtype, NaN nowhere."""
    torch.testing.assert_close(actual, expected, **(tolerance or TOLERANCE[expected.dtype]))


def bands(length: int, window_size: int, shift_size: int) -> list[list[int]]:
    """Rows (or columns) of each window band: borders stand at shift, shift + M, ..."""
    result: list[list[int]] = [[]]
    for i in range(length):
        if i and (i - shift_size) % window_size == 0:
            result.append([])
        result[-1].append(i)
    return result


def token_sequence(height: int, width: int, window_size: int, shift_size: int, order: str) -> list[tuple[int, int]]:
    """(row, column) of the tokens of one image in the order in which they are packed."""
    if order == "raster":
        return [((i + shift_size) % height, (j + shift_size) % width) for i in range(height) for j in range(width)]
    sequence = []
    for rows in bands(height, window_size, shift_size):
        for columns in bands(width, window_size, shift_size):
            sequence += list(itertools.product(rows, columns))
    return sequence


def window_number(row: int, column: int, size: tuple[int, int], window_size: int, shift_size: int) -> tuple[int, int]:
    """The (shifted) window a token lies in, as (row band, column band)."""
    band = [
        next(k for k, members in enumerate(bands(length, window_size, shift_size)) if place in members)
        for place, length in zip((row, column), size)
    ]
    return band[0], band[1]


def packed_sequence(keep_mask: Tensor, window_size: int, shift_size: int, order: str) -> list[Token]:
    """The kept tokens of a batch, image after image, each image in its order."""
    batch, height, width = keep_mask.shape
    sequence = token_sequence(height, width, window_size, shift_size, order)
    return [(b, i, j) for b in range(batch) for i, j in sequence if keep_mask[b, i, j]]


def segment_of_tokens(
    keep_mask: Tensor, *, container_size: int, window_size: int, shift_size: int, order: str, segment: str
) -> dict[Token, Hashable]:
    """For each kept token a name of its segment: tokens attend to each other if and only if the names are equal."""
    size = (keep_mask.shape[1], keep_mask.shape[2])
    names: dict[Token, Hashable] = {}
    rank_in_image = [0] * keep_mask.shape[0]
    for rank, (b, i, j) in enumerate(packed_sequence(keep_mask, window_size, shift_size, order)):
        if segment == "window":
            names[b, i, j] = (b, window_number(i, j, size, window_size, shift_size))
        elif segment == "container":
            names[b, i, j] = (b, rank_in_image[b] // container_size)
        elif segment == "shared":
            names[b, i, j] = (b, rank // container_size)
        elif segment == "image":
            names[b, i, j] = b
        rank_in_image[b] += 1
    return names


def attention_mask(keep_mask: Tensor, **rule) -> Tensor:
    """(B * N, B * N) bool over all tokens, kept or not: True where a query token may attend to a key token."""
    batch, height, width = keep_mask.shape
    names = segment_of_tokens(keep_mask, **rule)
    number = {name: k for k, name in enumerate(dict.fromkeys(names.values()))}
    of_token = torch.full((batch, height, width), -1)
    for token, name in names.items():
        of_token[token] = number[name]
    flat = of_token.flatten()
    return (flat[:, None] == flat[None, :]) & (flat[:, None] >= 0)


def containers_of(keep_mask: Tensor, **rule) -> list[list[Token]]:
    """The tokens of each container, filled one after the other as the rule says."""
    container_size, segment = rule["container_size"], rule["segment"]
    names = segment_of_tokens(keep_mask, **rule)
    containers: list[list[Token]] = []
    if segment == "window":
        for _, group in itertools.groupby(names, key=names.__getitem__):
            tokens = list(group)
            if not containers or len(containers[-1]) + len(tokens) > container_size:
                containers.append([])
            containers[-1] += tokens
        return containers
    image = -1
    for token in names:
        new_image = segment == "container" and token[0] != image
        if not containers or new_image or len(containers[-1]) == container_size:
            containers.append([])
        containers[-1].append(token)
        image = token[0]
    return containers


def position_bias(table: Tensor, batch: int, height: int, width: int, window_size: int) -> Tensor:
    """(h, B * N, B * N) bias between all tokens, from true coordinates, offsets clamped to the table."""
    side, limit = 2 * window_size - 1, window_size - 1
    rows = torch.zeros(height * width, height * width, dtype=torch.long)
    for query in range(height * width):
        for key in range(height * width):
            dy = max(-limit, min(limit, query // width - key // width))
            dx = max(-limit, min(limit, query % width - key % width))
            rows[query, key] = (dy + limit) * side + dx + limit
    bias = table[rows.flatten().to(table.device)].view(*rows.shape, -1).permute(2, 0, 1)
    return bias.repeat(1, batch, batch)


def dense_attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor, bias: Tensor | None = None) -> Tensor:
    """
    Softmax attention over all tokens.

    Args:
        q, k, v: (B * N, h, d).
        mask: (B * N, B * N) bool.
        bias: (h, B * N, B * N).

    Returns:
        (B * N, h, d), zero for tokens that attend to nothing.
    """
    logits = torch.einsum("qhd,khd->hqk", q, k) / math.sqrt(q.shape[-1])
    if bias is not None:
        logits = logits + bias
    weights = torch.exp(logits - logits.detach().amax(dim=-1, keepdim=True)) * mask
    total = weights.sum(dim=-1, keepdim=True)
    weights = weights / torch.where(total > 0, total, torch.ones_like(total))
    return torch.einsum("hqk,khd->qhd", weights, v)


def rotate(x: Tensor, height: int, width: int, base: float = 100.0) -> Tensor:
    """(B * N, h, d) with each pair of channels (i, i + d/2) as a complex number turned by row or column."""
    half = x.shape[-1] // 2
    quarter = half // 2
    angles = torch.zeros(height * width, half, dtype=torch.float64)
    for token in range(height * width):
        for k in range(quarter):
            angles[token, k] = (token // width) * base ** (-k / quarter)
            angles[token, quarter + k] = (token % width) * base ** (-k / quarter)
    turn = torch.polar(torch.ones_like(angles), angles).to(x.device)
    pairs = torch.complex(x[..., :half].double(), x[..., half:].double())
    turned = pairs * turn.repeat(x.shape[0] // (height * width), 1)[:, None, :]
    return torch.cat((turned.real, turned.imag), dim=-1).to(x.dtype)


def swin_window_attention(
    x: Tensor,
    qkv_weight: Tensor,
    qkv_bias: Tensor,
    proj_weight: Tensor,
    proj_bias: Tensor,
    table: Tensor | None,
    num_heads: int,
    window_size: int,
    shift_size: int,
) -> Tensor:
    """
    Window attention as Swin's paper states it, on a map whose sides are multiples of M, one window at a time.

    The map is rolled; of a window's tokens, those that the roll brought from the other side keep to themselves.
    """
    batch, height, width, dim = x.shape
    rolled = x.roll((-shift_size, -shift_size), dims=(1, 2))
    out = torch.zeros_like(rolled)
    for b, top, left in itertools.product(range(batch), range(0, height, window_size), range(0, width, window_size)):
        cut = (b, slice(top, top + window_size), slice(left, left + window_size))
        tokens = rolled[cut].reshape(window_size**2, dim)
        q, k, v = F.linear(tokens, qkv_weight, qkv_bias).view(window_size**2, 3, num_heads, -1).unbind(1)
        places = [(top + i, left + j) for i in range(window_size) for j in range(window_size)]
        wrapped = [(i >= height - shift_size, j >= width - shift_size) for i, j in places]
        mask = torch.tensor([[a == b for b in wrapped] for a in wrapped], device=x.device)
        bias = None if table is None else position_bias(table, 1, window_size, window_size, window_size)
        attended = dense_attention(q, k, v, mask, bias).flatten(1)
        out[cut] = F.linear(attended, proj_weight, proj_bias).view(window_size, window_size, dim)
    return out.roll((shift_size, shift_size), dims=(1, 2))


def keep_masks(batch: int, height: int, width: int) -> Iterator[tuple[str, Tensor]]:
    """Decisions worth trying: a random one and the edges."""
    generator = torch.Generator().manual_seed(3)
    some = torch.rand(batch, height, width, generator=generator) < 0.6
    yield "some", some
    yield "nothing", torch.zeros_like(some)
    yield "everything", torch.ones_like(some)
    one = torch.zeros_like(some)
    one[-1, height // 2, width // 2] = True
    yield "one_token", one
    empty = some.clone()
    empty[0] = False
    yield "first_image_empty", empty


KEEP_CASES = ("some", "nothing", "everything", "one_token", "first_image_empty")

# Every order and segment that go together.
ORDERS_AND_SEGMENTS = (
    ("window", "container"),
    ("window", "shared"),
    ("window", "window"),
    ("raster", "container"),
    ("raster", "shared"),
)


def randomise_(module: torch.nn.Module, scale: float = 0.3, seed: int = 0) -> torch.nn.Module:
    """Give every parameter, gates and norms included, a value of its own; gates then keep about half."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            noise = scale * torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            is_norm = "norm" in name and name.endswith("weight")
            parameter.copy_(noise + 1.0 if is_norm else noise)
    return module


def gradients(output: Tensor, **inputs: Tensor) -> dict[str, Tensor]:
    """Gradients of a fixed random weighting of ``output`` to each input, all of them connected."""
    generator = torch.Generator().manual_seed(1)
    weight = torch.randn(output.shape, generator=generator, dtype=torch.float64).to(output)
    return dict(zip(inputs, torch.autograd.grad((output * weight).sum(), list(inputs.values()))))
