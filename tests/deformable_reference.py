"""Slow and obvious truths of deformable attention: one lookup, one query and one key at a time. Nothing is imported."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def lookup(image: Tensor, y: Tensor, x: Tensor) -> Tensor:
    """The value (channels,) of an (channels, H, W) map at a place in tokens: four neighbours, zero outside."""
    total = torch.zeros_like(image[:, 0, 0])
    top, left = math.floor(y.item()), math.floor(x.item())
    for row in (top, top + 1):
        for column in (left, left + 1):
            if 0 <= row < image.shape[1] and 0 <= column < image.shape[2]:
                total = total + image[:, row, column] * (1 - (y - row).abs()) * (1 - (x - column).abs())
    return total


def at(image: Tensor, position: Tensor) -> Tensor:
    """:func:`lookup` at (y, x), where -1 and 1 are the centres of the outer rows and columns."""
    height, width = image.shape[1:]
    return lookup(image, (position[0] + 1) / 2 * (height - 1), (position[1] + 1) / 2 * (width - 1))


def sample(x: Tensor, positions: Tensor) -> Tensor:
    """(B, H, W, C) and (B, g, H_k, W_k, 2) to (B, S, C)."""
    batch, groups, rows, columns, _ = positions.shape
    width = x.shape[3] // groups
    images = []
    for b in range(batch):
        tokens = []
        for i in range(rows):
            for j in range(columns):
                parts = [
                    at(x[b, :, :, g * width : (g + 1) * width].permute(2, 0, 1), positions[b, g, i, j])
                    for g in range(groups)
                ]
                tokens.append(torch.cat(parts))
        images.append(torch.stack(tokens))
    return torch.stack(images)


def centre(i: int, n: int) -> float:
    """Of cell i of n that share the way from -1 to 1."""
    return -1 + (i + 0.5) * 2 / n


def bias(table: Tensor, height: int, width: int, positions: Tensor) -> Tensor:
    """(B, h, N, S): half of the displacement, read from each head's table."""
    batch, groups, rows, columns, _ = positions.shape
    heads = table.shape[0]
    found = []
    for b in range(batch):
        for h in range(heads):
            for query in range(height * width):
                place = positions.new_tensor([centre(query // width, height), centre(query % width, width)])
                for key in range(rows * columns):
                    position = positions[b, h // (heads // groups), key // columns, key % columns]
                    found.append(at(table[h : h + 1], (place - position) / 2))
    return torch.cat(found).view(batch, heads, height * width, rows * columns)


def attention(q: Tensor, k: Tensor, v: Tensor, logits_bias: Tensor) -> Tensor:
    """(B, h, N, d), (B, h, S, d) and (B, h, N, S) to (B, h, N, d), query by query."""
    out = torch.zeros_like(q)
    for b, h, n in torch.cartesian_prod(*(torch.arange(length) for length in q.shape[:3])).tolist():
        scores = torch.stack([(q[b, h, n] * key).sum() / math.sqrt(q.shape[3]) for key in k[b, h]])
        weights = torch.exp(scores + logits_bias[b, h, n])
        out[b, h, n] = sum(weight * value for weight, value in zip(weights / weights.sum(), v[b, h]))
    return out


def positions_of(q: Tensor, network: nn.Module, groups: int, stride: int, offset_range: float) -> Tensor:
    """(B, H, W, C) queries to (B, g, H_k, W_k, 2), window by window of the offset network's convolution."""
    batch, height, width, dim = q.shape
    channels, kernel = dim // groups, network.depthwise.kernel_size[0]
    rows, columns = math.ceil(height / stride), math.ceil(width / stride)
    result = q.new_zeros(batch, groups, rows, columns, 2)
    for b, g, i, j in torch.cartesian_prod(*(torch.arange(n) for n in (batch, groups, rows, columns))).tolist():
        hidden = network.depthwise.bias
        for dy in range(kernel):
            for dx in range(kernel):
                row, column = stride * i + dy - kernel // 2, stride * j + dx - kernel // 2
                if 0 <= row < height and 0 <= column < width:
                    token = q[b, row, column, g * channels : (g + 1) * channels]
                    hidden = hidden + network.depthwise.weight[:, 0, dy, dx] * token
        hidden = F.layer_norm(hidden, (channels,), network.norm.weight, network.norm.bias)
        offset = network.proj.weight @ F.gelu(hidden)
        cell = q.new_tensor([centre(i, rows), centre(j, columns)])
        if offset_range > 0:
            size = q.new_tensor([rows, columns])
            result[b, g, i, j] = cell + torch.tanh(offset) * offset_range / size
        else:
            result[b, g, i, j] = (cell + offset).clamp(-1, 1)
    return result


def deformable_attention(layer: nn.Module, x: Tensor) -> Tensor:
    """The whole layer on (B, H, W, C)."""
    batch, height, width, dim = x.shape
    options, heads = layer.options, layer.num_heads
    q_weight, k_weight, v_weight = layer.qkv.weight.chunk(3)
    q_bias, k_bias, v_bias = (None,) * 3 if layer.qkv.bias is None else layer.qkv.bias.chunk(3)
    q = F.linear(x, q_weight, q_bias)
    positions = positions_of(q, layer.offset, options.groups, options.stride, options.offset_range)
    samples = sample(x, positions)
    tokens = q, F.linear(samples, k_weight, k_bias), F.linear(samples, v_weight, v_bias)
    q, k, v = (t.reshape(batch, -1, heads, dim // heads).transpose(1, 2) for t in tokens)
    out = attention(q, k, v, bias(layer.relative_position_bias_table, height, width, positions))
    return F.linear(out.transpose(1, 2).reshape(x.shape), layer.proj.weight, layer.proj.bias)
