"""Batched products give what the definition of attention gives."""

import math

import torch

from spt_d2.ops.short_attention import short_attention


def test_equals_the_sum_over_keys_query_by_query():
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(3, 5, 4, dtype=torch.float64, generator=generator) for _ in range(3))
    bias = torch.randn(3, 5, 5, dtype=torch.float64, generator=generator)
    bias[1, :, 3:] = -math.inf
    out = short_attention(q, k, v, bias)
    for n in range(3):
        for i in range(5):
            weights = [math.exp(float(q[n, i] @ k[n, j]) / 2 + float(bias[n, i, j])) for j in range(5)]
            expected = sum(w * v[n, j] for j, w in enumerate(weights)) / sum(weights)
            torch.testing.assert_close(out[n, i], expected, rtol=1e-12, atol=1e-12)


def test_inputs_are_left_as_they_are():
    q, bias = torch.randn(2, 3, 4), torch.randn(2, 3, 3)
    before = bias.clone()
    short_attention(q, q, q, bias)
    assert torch.equal(bias, before)
