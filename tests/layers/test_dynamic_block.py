"""DynamicSwin's block: each token through its own FFN, in training and in evaluation."""

import pytest
import torch
from torch import Tensor

from spt_d2.layers.block import SwinBlock
from spt_d2.layers.dynamic_block import DynamicBlock, merge
from tests import reference

DIM, HEADS, WINDOW = 8, 2, 3


def make_block(shift: int = 1, **values) -> DynamicBlock:
    return reference.randomise_(DynamicBlock(DIM, HEADS, WINDOW, shift, **values)).double()


def some_map(seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(2, 5, 4, DIM, dtype=torch.float64, generator=generator).requires_grad_()


def some_mask() -> Tensor:
    return torch.rand(2, 5, 4, generator=torch.Generator().manual_seed(9)) < 0.4


def indices(mask: Tensor) -> tuple[Tensor, Tensor]:
    return mask.flatten().nonzero().squeeze(1), (~mask).flatten().nonzero().squeeze(1)


def per_token(block: DynamicBlock, x: Tensor, mask: Tensor) -> Tensor:
    """Attention for all, then one token after the other through the FFN that it was given."""
    x = x + block.attn(block.norm1(x))
    rows = []
    for token, kept in zip(x.flatten(0, 2), mask.flatten().tolist()):
        rows.append(token + (block.mlp(block.norm2(token)) if kept else block.fastmlp(token)))
    return torch.stack(rows).view(x.shape)


MASKS = {"some": some_mask(), "all": torch.ones(2, 5, 4).bool(), "none": torch.zeros(2, 5, 4).bool()}
MASKS["one"] = MASKS["none"].clone()
MASKS["one"][1, 2, 3] = True


@pytest.mark.parametrize("kept", MASKS)
@pytest.mark.parametrize("shift", [0, 1])
def test_in_evaluation_each_token_takes_its_own_ffn_forward_and_backward(shift, kept):
    block, x, mask = make_block(shift).eval(), some_map(), MASKS[kept]
    actual, expected = block.sparse(x, *indices(mask)), per_token(block, x, mask)
    reference.close(actual, expected)
    used = {n.replace(".", "_"): p for n, p in block.named_parameters() if kept in ("some", "one") or "mlp" not in n}
    used = {n: p for n, p in used.items() if kept != "none" or "norm2" not in n}
    truth = reference.gradients(expected, x=x, **used)
    for name, gradient in reference.gradients(actual, x=x, **used).items():
        reference.close(gradient, truth[name])


def test_with_everything_kept_it_is_a_swin_block_in_both_modes():
    block, x = make_block(), some_map()
    swin = SwinBlock(DIM, HEADS, WINDOW, 1).double()
    assert all("fastmlp" in name for name in swin.load_state_dict(block.state_dict(), strict=False).unexpected_keys)
    keep = torch.ones(2, 5, 4, 1, dtype=torch.float64)
    reference.close(block.sparse(x, *indices(MASKS["all"])), swin(x))
    reference.close(merge(*block(x, x, keep), keep), swin(x))


def test_training_gives_both_results_of_every_token():
    """Token by token: the FFN that it was not given sees what that FFN made of it before."""
    block, slow, fast, mask = make_block(), some_map(1), some_map(2), some_mask()
    actual = block(slow, fast, mask[..., None].double())
    x = torch.where(mask[..., None], slow, fast)
    x = (x + block.attn(block.norm1(x))).flatten(0, 2)
    for i, kept in enumerate(mask.flatten().tolist()):
        before = slow.flatten(0, 2)[i], fast.flatten(0, 2)[i]
        of_slow, of_fast = (x[i], before[1]) if kept else (before[0], x[i])
        reference.close(actual[0].flatten(0, 2)[i], x[i] + block.mlp(block.norm2(of_slow)))
        reference.close(actual[1].flatten(0, 2)[i], x[i] + block.fastmlp(of_fast))


def test_gradients_of_training_are_those_of_finite_differences():
    block = make_block()
    inputs = [some_map(seed)[:1, :3, :3].detach().requires_grad_() for seed in (1, 2)]
    mask = torch.rand(1, 3, 3, 1, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(block, (*inputs, mask), eps=1e-6, atol=1e-6)


def test_under_one_decision_training_and_evaluation_compute_the_same():
    blocks, x, mask = [make_block(shift) for shift in (0, 1, 0)], some_map(), some_mask()
    slow = fast = trained = x
    number = mask[..., None].double()
    for block in blocks:
        slow, fast = block(slow, fast, number)
        trained = block.sparse(trained, *indices(mask))
    reference.close(merge(slow, fast, number), trained)


def test_drop_path_and_dropout_act_in_training_alone():
    block, x, mask = make_block(drop=0.5, attn_drop=0.5, drop_path=0.5), some_map(), some_mask()
    number = mask[..., None].double()
    assert not torch.equal(block(x, x, number)[1], block(x, x, number)[1])
    assert torch.equal(block.eval().sparse(x, *indices(mask)), block.sparse(x, *indices(mask)))


def test_the_residual_stream_keeps_its_dtype_under_autocast():
    block, x = make_block().float().eval(), some_map().float()
    with torch.autocast("cpu", torch.bfloat16):
        assert block.sparse(x, *indices(some_mask())).dtype == torch.float32
        slow, fast = block(x, x, some_mask()[..., None].float())
    assert slow.dtype == fast.dtype == torch.float32
