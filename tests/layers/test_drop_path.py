"""Stochastic depth drops whole images, on maps and on packed tokens alike."""

import pytest
import torch

from spt_d2.layers.drop_path import DropPath


@pytest.mark.parametrize("form", ["dense", "packed"])
def test_an_image_is_dropped_whole_or_scaled_whole(form):
    batch, rate = 400, 0.3
    drop = DropPath(rate)
    if form == "dense":
        factors = drop(torch.ones(batch, 2, 3, 4)).flatten(1)
    else:
        # Images with different numbers of tokens, some with none: the factor is the image's all the same.
        image_ids = torch.randint(0, batch, (5000,)).sort().values
        scaled = drop.packed(torch.ones(5000, 2), image_ids, batch)
        factors = torch.stack([scaled[image_ids == image][[0, -1]].flatten() for image in image_ids.unique()])
        for image in image_ids.unique().tolist():
            assert scaled[image_ids == image].unique().numel() == 1
    per_image = factors[:, 0]
    assert (factors == per_image[:, None]).all()
    kept = per_image != 0
    assert torch.allclose(per_image[kept], torch.tensor(1 / (1 - rate)))
    deviation = (rate * (1 - rate) / len(per_image)) ** 0.5
    assert abs(kept.float().mean().item() - (1 - rate)) < 4.5 * deviation


def test_nothing_is_dropped_in_evaluation_or_at_rate_zero():
    x, image_ids = torch.randn(3, 2), torch.tensor([0, 0, 1])
    for drop in (DropPath(0.9).eval(), DropPath(0.0)):
        assert drop.sample(2, x) is None
        assert torch.equal(drop(x), x) and torch.equal(drop.packed(x, image_ids, 2), x)


def test_factors_take_the_dtype_of_the_branch():
    assert DropPath(0.5).sample(4, torch.zeros(1, dtype=torch.bfloat16)).dtype == torch.bfloat16
    assert "rate=0.5" in repr(DropPath(0.5))


def test_no_packed_token_is_no_error():
    assert DropPath(0.5).packed(torch.zeros(0, 3), torch.zeros(0, dtype=torch.long), 2).shape == (0, 3)


@pytest.mark.parametrize("rate", [-0.1, 1.0, 2.0])
def test_a_rate_that_is_no_probability_is_an_error(rate):
    with pytest.raises(ValueError, match=rf"DropPath\(rate=\) expects a probability in \[0, 1\). Got {rate}"):
        DropPath(rate)
