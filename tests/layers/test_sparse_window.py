"""Blocks and stages that run a share of their windows, against Swin's and loops."""

import pytest
import torch

from spt_d2.layers.block import SwinBlock
from spt_d2.layers.sparse_window import SparseWindowBlock, SparseWindowStage
from spt_d2.ops.window_selection import window_tokens
from tests import reference, slow_windows

DIM, HEADS, WINDOW = 8, 2, 4


def block_of(shift_size: int = 0, **values) -> SparseWindowBlock:
    return reference.randomise_(SparseWindowBlock(DIM, HEADS, WINDOW, shift_size, **values)).double()


def stage_of(depth: int = 4, ratios=(0.3,), drop_path: float = 0.0, **values) -> SparseWindowStage:
    stage = SparseWindowStage(
        dim=DIM, depth=depth, num_heads=HEADS, window_size=WINDOW, drop_path=[drop_path] * depth, downsample=False,
        stage=2, pruning_ratios=ratios, mlp_ratio=2.0, **values,
    )  # fmt: skip
    return reference.randomise_(stage).double()


def maps(batch: int = 2, height: int = 9, width: int = 13, **values) -> torch.Tensor:
    return torch.randn(batch, height, width, DIM, dtype=torch.float64, **values)


@pytest.mark.parametrize("shift_size", [0, 2])
@pytest.mark.parametrize("height, width", [(8, 12), (9, 13), (3, 5), (1, 1)])
@pytest.mark.parametrize("share", ["none", "one", "some", "all"])
def test_chosen_windows_are_swins_and_the_others_pass(height, width, shift_size, share):
    block, x = block_of(shift_size), maps(2, height, width, requires_grad=True)
    slots, windows = window_tokens(height, width, WINDOW, shift_size, x.device)
    total = 2 * slots.shape[0]
    number = {"none": 0, "one": 1, "some": -(-total // 2), "all": total}[share]
    chosen = torch.randperm(total)[:number]
    of_token = torch.stack([windows + b * slots.shape[0] for b in range(2)]).view(2, height, width)
    inside = torch.isin(of_token, chosen)
    swin = SwinBlock.forward(block, x)
    expected, actual = torch.where(inside[..., None], swin, x), block(x, chosen)
    reference.close(actual, expected)
    parameters = dict(block.named_parameters())
    truth = reference.gradients(expected, x=x, **parameters)
    for name, gradient in reference.gradients(actual, x=x, **parameters).items():
        reference.close(gradient, truth[name], atol=1e-10, rtol=1e-9)
    with torch.no_grad():
        # The other kernel.
        reference.close(block(x, chosen), expected.detach())


def test_without_a_choice_it_is_swins_block_bit_for_bit():
    block, x = block_of(2), maps()
    swin = SwinBlock(DIM, HEADS, WINDOW, 2).double()
    swin.load_state_dict(block.state_dict(), strict=True)
    assert torch.equal(block(x), swin(x))


def test_an_image_drops_its_branches_whole():
    block = block_of(drop_path=0.5).train()
    x, chosen = maps(8, 8, 8), torch.arange(0, 32, 2)
    with torch.no_grad():
        changes = (block(x, chosen) - x).abs().sum(dim=-1)
    assert any(image.sum() == 0 for image in changes) and any(image.sum() > 0 for image in changes)
    for image in changes:
        ran = image.view(2, 4, 2, 4).transpose(1, 2).flatten(2).sum(dim=-1).flatten() > 0
        assert ran.tolist() in ([False] * 4, [True, False, True, False])


@pytest.mark.parametrize("ratios", [[0.3], [0.0, 0.5], [0.2, 0.4, 0.4, 0.9], [0.0, 0.0, 0.0, 0.6]], ids=str)
@pytest.mark.parametrize("height, width", [(8, 12), (9, 14), (21, 6)])
def test_a_stage_equals_loops_forward_and_backward(height, width, ratios):
    stage, x = stage_of(ratios=ratios), maps(3, height, width, requires_grad=True)
    sizes = [(8 * height, 8 * width), (8 * height - 40, 50), (7, 8 * width)]
    shown = [(-(-h // 8), -(-w // 8)) for h, w in sizes]
    expected, run = slow_windows.run_stage(stage, list(stage.pruning_ratios), x, shown)
    actual, selections = stage(x, 8, sizes)
    reference.close(actual, expected)
    parameters = dict(stage.named_parameters())
    truth = reference.gradients(expected, x=x, **parameters)
    for name, gradient in reference.gradients(actual, x=x, **parameters).items():
        reference.close(gradient, truth[name], atol=1e-9, rtol=1e-8)
    assert [(s.stage, s.block, s.stride) for s in selections] == [(2, i, 8) for i, _ in run]
    for selection, (i, inside) in zip(selections, run):
        assert torch.equal(selection.keep_mask, inside & selection.valid)
        assert selection.valid.flatten(1).sum(1).tolist() == [
            min(rows, height) * min(columns, width) for rows, columns in shown
        ]
        assert selection.layout is None
        shift = stage.blocks[i].attn.shift_size
        for b in range(3):
            tokens = selection.keep_mask[b].nonzero().tolist()
            windows = {slow_windows.window_of(tuple(t), (height, width), WINDOW, shift) for t in tokens}
            assert len(windows) == selection.window_counts[b]
            assert selection.pairs_of_image(b) == (len(windows) * WINDOW**4,) * 2


def test_deeper_blocks_run_some_of_the_windows_of_those_before():
    _, selections = stage_of(6, [0.2, 0.5, 0.8])(maps(2, 24, 24), 8)
    for first, second in zip(selections, selections[2:]):
        assert torch.equal(first.score, second.score)
        assert not (second.keep_mask & ~first.keep_mask).any()
        assert second.keep_mask.sum() < first.keep_mask.sum()


def test_kept_windows_have_the_highest_scores_of_their_image():
    _, selections = stage_of(2, [0.4])(maps(2, 24, 24), 8, [(192, 192), (100, 80)])
    for selection in selections:
        for score, keep, valid in zip(selection.score, selection.keep_mask, selection.valid):
            assert score[keep].min() > score[valid & ~keep].max()


def test_images_keep_their_own_number_and_nothing_depends_on_the_batch():
    stage, x = stage_of(4, [0.1, 0.6]), maps(3, 16, 20)
    sizes = [(128, 160), (100, 60), (10, 160)]
    together, selections = stage(x, 8, sizes)
    assert len(set(selections[0].window_counts)) == 3
    for b in range(3):
        alone, own = stage(x[b : b + 1], 8, [sizes[b]])
        reference.close(together[b], alone[0])
        for selection, one in zip(selections, own):
            assert torch.equal(selection.keep_mask[b], one.keep_mask[0])
            assert selection.window_counts[b] == one.window_counts[0]


def test_what_is_in_padding_does_not_decide():
    stage, x = stage_of(2, [0.5]), maps(1, 12, 12)
    louder = x.clone()
    louder[:, 6:] *= 100
    kept = [stage(each, 8, [(48, 96)])[1][0].keep_mask for each in (x, louder)]
    assert torch.equal(*kept)
    assert not torch.equal(kept[0], stage(louder, 8)[1][0].keep_mask)


def test_one_window_is_run_whatever_the_ratio_and_by_swins_block():
    stage, x = stage_of(2, [0.8]), maps(2, 4, 4)
    dense = stage_of(2, [0.0])
    out, selections = stage(x, 8)
    assert torch.equal(out, dense(x, 8)[0])
    assert [s.window_counts for s in selections] == [(1, 1)] * 2 and all(s.keep_mask.all() for s in selections)


@pytest.mark.parametrize("depth", [1, 2, 3, 6])
def test_training_draws_sorted_ratios_for_pairs_of_blocks_and_evaluation_does_not(depth):
    choices = (0.0, 0.2, 0.5, 0.8)
    stage, x = stage_of(depth, [0.3], sampled_from=choices), maps(1, 16, 16)
    drawn = set()
    for seed in range(40):
        torch.manual_seed(seed)
        ratios = stage._ratios()
        torch.manual_seed(seed)
        assert stage._ratios() == ratios, "torch's generator decides"
        assert list(ratios) == sorted(ratios) and set(ratios) <= set(choices) and len(ratios) == depth
        assert all(ratios[i] == ratios[i + 1] for i in range(0, depth - 1, 2)) or depth % 2
        drawn.add(ratios)
    assert len(drawn) > 3 and {ratio for ratios in drawn for ratio in ratios} == set(choices)
    counts = []
    for _ in range(8):
        counts.append(tuple(s.window_counts for s in stage(x, 8)[1]))
    assert len(set(counts)) > 1
    stage.eval()
    assert {tuple(s.window_counts for s in stage(x, 8)[1]) for _ in range(4)} == {((11,),) * depth}


def test_recomputed_activations_give_the_same_gradients_while_ratios_are_drawn():
    x, gradients = maps(2, 12, 12), []
    for use_checkpoint in (False, True):
        stage = stage_of(4, [0.3], 0.5, sampled_from=(0.2, 0.5), use_checkpoint=use_checkpoint, drop=0.2)
        torch.manual_seed(3)
        stage(x, 8)[0].square().sum().backward()
        gradients.append([p.grad for p in stage.parameters()])
    for plain, recomputed in zip(*gradients):
        reference.close(recomputed, plain)


@pytest.mark.parametrize("ratio", [0.0, 0.5, 0.99])
def test_every_parameter_gets_a_gradient(ratio):
    stage = stage_of(2, [ratio])
    stage(maps(1, 16, 16), 8, [(8, 8)])[0].sum().backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in stage.parameters())


def test_dropout_of_attention_is_random_in_training_only():
    block, x, chosen = block_of(attn_drop=0.5), maps(), torch.tensor([0, 3, 5])
    assert not torch.equal(block(x, chosen), block(x, chosen))
    block.eval()
    assert torch.equal(block(x, chosen), block(x, chosen))


def test_a_stage_is_the_same_on_every_device(device):
    stage, x = stage_of(4, [0.2, 0.6]), maps(2, 9, 14)
    expected, there = stage(x, 8, [(72, 112), (30, 60)])
    actual, here = stage.to(device)(x.to(device), 8, [(72, 112), (30, 60)])
    reference.close(actual.cpu(), expected, atol=1e-9, rtol=1e-9)
    assert all(torch.equal(a.keep_mask.cpu(), b.keep_mask) for a, b in zip(here, there))
