"""A budget of tokens per image: the highest scores among what the keep rule selects, against a loop."""

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from spt_d2.ops.selection import SELECTS, select_tokens


def within_budget(keep: Tensor, score: Tensor, budget: int) -> Tensor:
    """Of each image the kept tokens of highest score, one at a time, the first in raster order where scores tie."""
    result = torch.zeros_like(keep)
    for image in range(keep.shape[0]):
        left = keep[image].nonzero().tolist()
        for _ in range(min(budget, len(left))):
            best = left[0]
            for place in left:
                if score[image][tuple(place)] > score[image][tuple(best)]:
                    best = place
            left.remove(best)
            result[(image, *best)] = True
    return result


@given(
    st.integers(0, 2**31),
    st.sampled_from(SELECTS),
    st.sampled_from([1, 3, 8, 27, 28, 1000]),
    st.sampled_from([2, 1000]),
)
def test_budget_keeps_what_the_loop_keeps(seed, select, budget, levels):
    """Two levels of score make ties at nearly every border."""
    generator = torch.Generator().manual_seed(seed)
    valid = torch.rand(3, 4, 7, generator=generator) < 0.8
    valid[2] = False
    score = torch.randint(-levels, levels, (3, 4, 7), generator=generator) / 7
    label = torch.randint(0, 2, (3, 4, 7), generator=generator, dtype=torch.uint8)
    # With a seed, or random would draw others the second time.
    rule = {"select": select, "keep_ratio": 0.6, "threshold": 0.3, "labels": label, "seed": 0}
    unlimited, _ = select_tokens(score, valid, **rule)
    keep, soft = select_tokens(score, valid, **rule, token_budget=budget)
    assert torch.equal(keep, within_budget(unlimited, score, budget))
    assert torch.equal(soft, select_tokens(score, valid, **rule)[1])


def test_zero_is_no_limit_and_a_budget_of_every_token_changes_nothing():
    score, valid = torch.randn(2, 5, 6), torch.rand(2, 5, 6) < 0.9
    unlimited, _ = select_tokens(score, valid, threshold=0.2)
    for budget in (0, 30, 31):
        assert torch.equal(select_tokens(score, valid, threshold=0.2, token_budget=budget)[0], unlimited)


def test_a_budget_is_spent_by_each_image_on_its_own():
    score, valid = torch.randn(2, 5, 6), torch.ones(2, 5, 6, dtype=torch.bool)
    both, _ = select_tokens(score, valid, select="all", token_budget=7)
    assert both.flatten(1).sum(1).tolist() == [7, 7]
    for image in range(2):
        alone, _ = select_tokens(score[image : image + 1], valid[image : image + 1], select="all", token_budget=7)
        assert torch.equal(alone[0], both[image])


def test_a_larger_budget_keeps_all_that_a_smaller_one_keeps():
    score, valid = torch.randint(0, 4, (1, 6, 6)).float(), torch.ones(1, 6, 6, dtype=torch.bool)
    kept = [select_tokens(score, valid, token_budget=budget)[0] for budget in range(1, 37)]
    for smaller, larger in itertools.pairwise(kept):
        assert not (smaller & ~larger).any() and int(larger.sum()) == int(smaller.sum()) + 1


def test_a_negative_budget_is_an_error():
    with pytest.raises(ValueError, match=r"token_budget expects 0 \(no limit\) or more tokens. Got -1"):
        select_tokens(torch.zeros(1, 2, 2), torch.ones(1, 2, 2, dtype=torch.bool), token_budget=-1)
