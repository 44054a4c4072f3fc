"""Packed and padded forms are one function: the slow truth's, forward and backward."""

import pytest
import torch

pytest.importorskip("detectron2", reason="detectron2 is not installed")

from spt_d2.benchmark.packing import FORMS, KEEP_RATIOS, branch, kept_of_each, packing_cases, with_packing
from spt_d2.benchmark.planting import share
from spt_d2.layers.block import SelectPackBlock
from spt_d2.layers.select_pack_attention import SelectPackOptions
from tests import reference
from tests.benchmark.nano import NANO

H, W, C = 5, 7, 8


def slow_truth(block, normed, keep_mask):
    """Attention over all tokens, masked to the segments, and zero where a token was not kept."""
    options = block.options
    mask = reference.attention_mask(
        keep_mask,
        container_size=options.container_length,
        window_size=options.window_size,
        shift_size=block.shift_size,
        order=options.order,
        segment="container",
    )
    kept = keep_mask.flatten()
    heads = block.attn.num_heads
    q, k, v = block.attn.qkv(normed.flatten(0, 2)).unflatten(1, (3, heads, C // heads)).unbind(1)
    branch = torch.zeros(kept.shape[0], C, dtype=normed.dtype)
    if kept.any():
        scores = torch.einsum("qhd,khd->hqk", q[kept], k[kept]) / (C // heads) ** 0.5
        weights = scores.masked_fill(~mask[kept][:, kept], float("-inf")).softmax(dim=-1)
        attended = torch.einsum("hqk,khd->qhd", weights, v[kept]).flatten(1)
        branch = branch.index_put((kept.nonzero()[:, 0],), block.attn.proj(attended))
    return branch.view(normed.shape)


@pytest.mark.parametrize("shift_size", (0, 1))
@pytest.mark.parametrize("case", reference.KEEP_CASES)
@pytest.mark.parametrize("name", FORMS)
def test_a_form_is_the_slow_truth_forward_and_backward(name, case, shift_size, device):
    options = SelectPackOptions(window_size=3, container_size=4)
    block = reference.randomise_(SelectPackBlock(C, 2, options, shift_size=shift_size)).double()
    keep_mask = dict(reference.keep_masks(3, H, W))[case]
    normed = torch.randn(3, H, W, C, dtype=torch.float64, requires_grad=True)
    expected = slow_truth(block, normed, keep_mask)
    parameters = dict(block.attn.named_parameters())
    wanted = (
        reference.gradients(expected, normed=normed, **parameters)
        if expected.requires_grad
        else {name: torch.zeros_like(value) for name, value in {"normed": normed, **parameters}.items()}
    )
    block.to(device)
    given = normed.detach().to(device).requires_grad_()
    out = branch(with_packing(block, FORMS[name]), given, keep_mask.to(device))
    torch.testing.assert_close(out.cpu(), expected, rtol=1e-10, atol=1e-10)
    found = torch.autograd.grad(
        (out * torch.randn(out.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(out)).sum(),
        [given, *block.attn.parameters()],
        allow_unused=True,
    )
    for (key, value), grad in zip(wanted.items(), found):
        grad = torch.zeros_like(value) if grad is None else grad.cpu()
        torch.testing.assert_close(grad, value, rtol=1e-9, atol=1e-9, msg=f"{key}: {grad} {value}")


def test_another_packing_leaves_the_block_as_it_is():
    block = SelectPackBlock(C, 2, SelectPackOptions())
    padded = with_packing(block, "padded")
    assert (block.options.packing, padded.options.packing) == ("containers", "padded")
    assert padded.attn is block.attn


def test_every_image_keeps_its_own_share():
    kept = kept_of_each((320, 448), KEEP_RATIOS)
    assert kept.flatten(1).sum(dim=1).tolist() == [share(ratio, 20 * 28) for ratio in KEEP_RATIOS]


def test_cases_compute_the_same_and_the_first_is_the_peer():
    cases = packing_cases(
        image_sizes=[(64, 96)], device=torch.device("cpu"), modes=("inference", "training"), overrides=NANO
    )
    assert [(case.name, case.mode, case.is_peer) for case in cases] == [
        (name, mode, name == "padded") for mode in ("inference", "training") for name in FORMS
    ]
    assert {(case.batch, tuple(case.keep_ratio)) for case in cases} == {(4, KEEP_RATIOS)}
    for case in cases:
        case.entry.prepare()
        case.entry.run()
