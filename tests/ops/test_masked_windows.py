"""Attention of all tokens to the kept ones of their windows, against dense attention with a mask built by loops."""

import pytest
import torch

from spt_d2.ops.attention import packed_attention
from spt_d2.ops.masked_windows import masked_window_attention
from spt_d2.ops.packing import pack_layout
from tests import reference

WINDOW, HEADS, CHANNELS = 3, 2, 6
MAPS = [(6, 9), (7, 4), (1, 1), (2, 11)]


def slow_mask(keep_mask: torch.Tensor, shift_size: int) -> torch.Tensor:
    """(B * N, B * N) bool: kept tokens of the same window; where there are none, the token itself."""
    batch, height, width = keep_mask.shape
    places = [(b, i, j) for b in range(batch) for i in range(height) for j in range(width)]
    window = [(b, reference.window_number(i, j, (height, width), WINDOW, shift_size)) for b, i, j in places]
    mask = torch.zeros(len(places), len(places), dtype=torch.bool)
    for query in range(len(places)):
        for key, place in enumerate(places):
            mask[query, key] = window[query] == window[key] and bool(keep_mask[place])
        mask[query, query] |= not mask[query].any()
    return mask


def inputs(batch: int, height: int, width: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    qkv = torch.randn(batch, height, width, 3 * CHANNELS, dtype=torch.float64, device=device, requires_grad=True)
    table = torch.randn((2 * WINDOW - 1) ** 2, HEADS, dtype=torch.float64, device=device, requires_grad=True)
    return qkv, table


def run(qkv: torch.Tensor, keep_mask: torch.Tensor, table: torch.Tensor, shift_size: int, **values) -> torch.Tensor:
    return masked_window_attention(
        qkv, keep_mask, table, num_heads=HEADS, window_size=WINDOW, shift_size=shift_size, **values
    )


@pytest.mark.parametrize("shift_size", [0, 1])
@pytest.mark.parametrize("height, width", MAPS)
@pytest.mark.parametrize("case", reference.KEEP_CASES)
def test_equals_dense_attention_with_a_mask(case, height, width, shift_size, device):
    keep_mask = dict(reference.keep_masks(2, height, width))[case].to(device)
    qkv, table = inputs(2, height, width, device)
    actual = run(qkv, keep_mask, table, shift_size)
    q, k, v = qkv.reshape(-1, 3, HEADS, CHANNELS // HEADS).unbind(1)
    bias = reference.position_bias(table, 2, height, width, WINDOW)
    mask = slow_mask(keep_mask.cpu(), shift_size).to(device)
    expected = reference.dense_attention(q, k, v, mask, bias).reshape(2, height, width, CHANNELS)
    reference.close(actual, expected)
    slow, fast = (reference.gradients(out, qkv=qkv, table=table) for out in (expected, actual))
    for name in slow:
        reference.close(fast[name], slow[name])


@pytest.mark.parametrize("shift_size", [0, 1])
@pytest.mark.parametrize("case", reference.KEEP_CASES)
def test_kept_tokens_get_what_they_get_packed(case, shift_size, device):
    keep_mask = dict(reference.keep_masks(2, 7, 8))[case].to(device)
    qkv, table = inputs(2, 7, 8, device)
    geometry = {"window_size": WINDOW, "shift_size": shift_size, "order": "window", "segment": "window"}
    layout = pack_layout(keep_mask, container_size=WINDOW**2, **geometry)
    flat = qkv.flatten(0, 2).index_select(0, layout.keep_indices)
    q, k, v = flat.unflatten(1, (3, HEADS, -1)).unbind(1)
    packed = packed_attention(q, k, v, layout, bias_table=table, window_size=WINDOW).flatten(1)
    masked = run(qkv, keep_mask, table, shift_size).flatten(0, 2).index_select(0, layout.keep_indices)
    reference.close(masked, packed)


def test_tokens_that_are_not_kept_are_seen_by_nobody():
    keep_mask = dict(reference.keep_masks(1, 6, 6))["some"]
    qkv, table = inputs(1, 6, 6, torch.device("cpu"))
    before = run(qkv, keep_mask, table, 0)
    changed = qkv.detach().clone()
    # In a window with kept tokens, keys and values of one that is not.
    place = (0, *next((i, j) for i in range(3) for j in range(3) if not keep_mask[0, i, j]))
    assert keep_mask[0, :3, :3].any()
    changed[place][CHANNELS:] += 5.0
    assert torch.equal(run(changed, keep_mask, table, 0), before.detach())


def test_half_precision_stays_finite_where_windows_are_empty():
    qkv, table = inputs(1, 7, 7, torch.device("cpu"))
    half = qkv.detach().to(torch.bfloat16).requires_grad_()
    out = run(half, torch.zeros(1, 7, 7, dtype=torch.bool), table.float(), 1)
    assert out.dtype == torch.bfloat16 and torch.isfinite(out).all()
    assert torch.isfinite(torch.autograd.grad(out.float().sum(), half)[0]).all()


@pytest.mark.parametrize("channels, side", [(3 * CHANNELS, 5), (8, 4)])
def test_shapes_that_do_not_fit_are_told(channels, side):
    with pytest.raises(ValueError, match=r"masked_window_attention expects \(B, H, W, 3C\)"):
        run(torch.randn(1, 4, 4, channels), torch.ones(1, side, 4, dtype=torch.bool), torch.randn(25, HEADS), 0)
