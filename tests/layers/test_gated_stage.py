"""Blocks with SViT's gates, one after the other: who decides, over what, and who may come back."""

import pytest
import torch

from spt_d2.layers.block import SwinBlock
from spt_d2.layers.gated_block import GatedSwinBlock
from spt_d2.layers.gated_stage import GatedStage
from tests import reference

DIM, HEADS, WINDOW = 8, 2, 3


def make(targets=(None, 0.7, 0.5), **values) -> GatedStage:
    stage = GatedStage(
        dim=DIM, depth=len(targets), num_heads=HEADS, window_size=WINDOW, drop_path=[0.0] * len(targets),
        downsample=False, stage=3, targets=targets, mlp_ratio=2.0, **values,
    )  # fmt: skip
    reference.randomise_(stage).double()
    for block in stage.blocks:
        if isinstance(block, GatedSwinBlock):
            # Of all tokens about half have the one logit larger, and half the other.
            reference.randomise_(block.gate.fc2, scale=2.0)
            score = block.gate(torch.randn(1, 20, 20, DIM, dtype=torch.float64))
            block.gate.fc2.bias.data[0] -= score.median().item()
    return stage


def force(block: GatedSwinBlock, score: float) -> None:
    """Give every token the same log-odds."""
    block.gate.fc2.weight.data.zero_()
    block.gate.fc2.bias.data.copy_(torch.tensor([score, 0.0]))


def tokens(height: int = 6, width: int = 9, batch: int = 2) -> torch.Tensor:
    return torch.randn(batch, height, width, DIM, dtype=torch.float64)


def everywhere(x: torch.Tensor) -> torch.Tensor:
    return torch.ones(x.shape[:3], dtype=torch.bool)


def test_a_gated_block_in_a_dense_place_is_an_error():
    """It would have no share to be taught."""
    stage = make((None, 0.7))
    stage.blocks[0] = stage.blocks[1]
    x = tokens()
    with pytest.raises(ValueError, match=r"Got one as block 0.\n  targets: \(None, 0.7\)"):
        stage(x, everywhere(x))


def test_blocks_without_a_target_are_swins_and_every_second_is_shifted():
    stage = make((None, None, 0.7, 0.5))
    assert [type(block) for block in stage.blocks] == [SwinBlock] * 2 + [GatedSwinBlock] * 2
    assert [block.attn.shift_size for block in stage.blocks] == [0, 1, 0, 1]


@pytest.mark.parametrize("training", [True, False])
def test_is_its_blocks_one_after_the_other_each_by_its_own_decision(training):
    stage, x = make().train(training), tokens()
    out, selections = stage(x, everywhere(x))
    assert [(s.stage, s.block, s.stride, s.target) for s in selections] == [(3, 1, 16, 0.7), (3, 2, 16, 0.5)]
    expected = stage.blocks[0](x)
    for block, selection in zip(stage.blocks[1:], selections):
        reference.close(selection.score, block.gate(expected))
        assert torch.equal(selection.policy, selection.keep_mask.double())
        assert 0 < selection.keep_mask.sum() < selection.keep_mask.numel()
        expected = block(expected, selection.keep_mask, selection.policy)
    reference.close(out, expected)


def test_evaluation_keeps_what_has_the_larger_logit_to_keep_and_packs_it():
    stage, x = make().eval(), tokens()
    for selection in stage(x, everywhere(x))[1]:
        assert torch.equal(selection.keep_mask, selection.score > 0)
        assert selection.layout.counts == tuple(selection.keep_mask.flatten(1).sum(dim=1).tolist())


def test_training_samples_and_packs_nothing():
    stage, x = make(), tokens(batch=8)
    first, second = (stage(x, everywhere(x))[1][0] for _ in range(2))
    assert torch.equal(first.score, second.score) and not torch.equal(first.keep_mask, second.keep_mask)
    assert first.layout is None


@pytest.mark.parametrize("training", [True, False])
def test_a_skipped_token_returns_in_a_later_block(training):
    stage, x = make((0.5, 0.5)).train(training), tokens()
    force(stage.blocks[0], -60.0)
    force(stage.blocks[1], 60.0)
    out, (first, second) = stage(x, everywhere(x))
    assert not first.keep_mask.any() and second.keep_mask.all()
    reference.close(out, stage.blocks[1](x, second.keep_mask, second.keep_mask.double()))


@pytest.mark.parametrize("training", [True, False])
def test_padding_is_kept_by_no_gate_and_changes_nothing(training):
    stage, alone = make((0.7, 0.5)).train(training), tokens(5, 7, batch=1)
    for block in stage.blocks:
        force(block, 60.0)
    valid = torch.zeros(1, 6, 9, dtype=torch.bool)
    valid[:, :5, :7] = True
    padded = torch.randn(1, 6, 9, DIM, dtype=torch.float64)
    padded[:, :5, :7] = alone
    out, selections = stage(padded, valid)
    assert all(torch.equal(selection.keep_mask, valid) for selection in selections)
    assert torch.equal(out[~valid], padded[~valid])
    reference.close(out[:, :5, :7], stage(alone, everywhere(alone))[0])


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("score", [-60.0, 60.0, None])
def test_every_parameter_has_a_gradient_whatever_is_kept(score, training):
    stage, x = make().train(training), tokens().requires_grad_()
    for block in stage.blocks[1:] if score is not None else ():
        force(block, score)
    out, selections = stage(x, everywhere(x))
    (out.square().sum() + sum(selection.policy.sum() for selection in selections)).backward()
    for name, parameter in stage.named_parameters():
        # Deciding without noise, a gate learns nothing.
        assert (parameter.grad is None) == (not training and ".gate." in name), name
        assert parameter.grad is None or torch.isfinite(parameter.grad).all()


def test_recomputed_activations_give_the_same_gradients():
    results, x = [], tokens()
    for use_checkpoint in (False, True):
        torch.manual_seed(4)
        stage = make(use_checkpoint=use_checkpoint, drop=0.2)
        torch.manual_seed(5)
        out, selections = stage(x, everywhere(x))
        (out.square().sum() + sum(selection.policy.sum() for selection in selections)).backward()
        results.append((out, *(parameter.grad for parameter in stage.parameters())))
    for plain, again in zip(*results):
        reference.close(again, plain)
