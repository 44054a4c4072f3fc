"""The keep rule and its controls against loops, and the noise against its distribution."""

import math
from fractions import Fraction

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from spt_d2.ops import selection as ops
from spt_d2.ops.gating import gating_factor, straight_through
from spt_d2.ops.packing import pack_layout
from tests import reference

CPU = torch.device("cpu")


def ragged(batch: int, height: int, width: int) -> torch.Tensor:
    """(B, H, W) bool: a smaller valid corner in each image; the last image has none."""
    valid = torch.zeros(batch, height, width, dtype=torch.bool)
    for image in range(batch - 1):
        valid[image, : height - image, : width - 2 * image] = True
    return valid


@given(
    st.lists(st.tuples(st.integers(1, 90), st.integers(1, 90)), min_size=1, max_size=3),
    st.sampled_from([4, 8, 32]),
)
def test_a_token_is_valid_if_its_cell_holds_a_pixel_of_its_image(sizes, stride):
    height, width = (-(-max(axis) // stride) + 1 for axis in zip(*sizes))
    valid = ops.valid_tokens(sizes, (height, width), stride, len(sizes), CPU)
    pixels = torch.zeros(len(sizes), height * stride, width * stride, dtype=torch.bool)
    for image, (h, w) in enumerate(sizes):
        pixels[image, :h, :w] = True
    cells = pixels.view(len(sizes), height, stride, width, stride)
    assert torch.equal(valid, cells.any(dim=4).any(dim=2))


def test_without_sizes_every_token_is_valid():
    assert ops.valid_tokens(None, (2, 3), 8, 2, CPU).all()
    assert ops.valid_tokens(None, (2, 3), 8, 2, CPU).shape == (2, 2, 3)


def test_one_size_for_two_images_is_an_error():
    with pytest.raises(ValueError, match="image_sizes expects one size per image. Got 1 for a batch of 2"):
        ops.valid_tokens([(8, 8)], (1, 1), 8, 2, CPU)


@pytest.mark.parametrize("height, width", [(1, 1), (4, 6), (5, 7), (1, 8)])
def test_pooled_scores_equal_the_loop_forward_and_backward(height, width):
    valid = ragged(3, height, width) | (torch.rand(3, height, width) < 0.3)
    fast = torch.randn(3, height, width, dtype=torch.float64, requires_grad=True)
    slow = fast.detach().clone().requires_grad_()
    pooled = ops.pool_scores(fast, valid)
    assert pooled.shape == (3, math.ceil(height / 2), math.ceil(width / 2))
    total = slow.new_zeros(())
    for b, i, j in torch.cartesian_prod(*(torch.arange(n) for n in pooled.shape)).tolist():
        cells = [
            slow[b, y, x]
            for y in range(2 * i, min(2 * i + 2, height))
            for x in range(2 * j, min(2 * j + 2, width))
            if valid[b, y, x]
        ]
        if cells:
            assert pooled[b, i, j] == torch.stack(cells).max()
            total = total + torch.stack(cells).max() * (1 + b + i + j)
        else:
            assert pooled[b, i, j] == -math.inf
    weight = 1 + sum(torch.meshgrid(*(torch.arange(n) for n in pooled.shape), indexing="ij"))
    torch.where(pooled.isfinite(), pooled * weight, 0.0).sum().backward()
    total.backward()
    reference.close(fast.grad, slow.grad)


def test_pooled_cells_are_finite_exactly_where_the_coarser_token_is_valid():
    sizes = [(50, 33), (64, 64), (1, 1)]
    for stride in (4, 8, 16):
        grid, coarse = (-(-64 // stride),) * 2, (-(-64 // (2 * stride)),) * 2
        pooled = ops.pool_scores(torch.randn(3, *grid), ops.valid_tokens(sizes, grid, stride, 3, CPU))
        assert torch.equal(pooled.isfinite(), ops.valid_tokens(sizes, coarse, 2 * stride, 3, CPU))


# The relaxed decision: its probability of keeping, in closed form.


def logistic_probability(score: float, threshold: float, tau: float) -> float:
    border = tau * math.log(threshold / (1 - threshold))
    return 1 / (1 + math.exp(border - score))


def gumbel_probability(score: float, threshold: float, tau: float) -> float:
    border = tau * math.log(threshold / (1 - threshold))
    return 1 - math.exp(-math.exp(score - border))


@pytest.mark.parametrize("noise, probability", [("logistic", logistic_probability), ("gumbel", gumbel_probability)])
@pytest.mark.parametrize("threshold, tau", [(0.01, 1.0), (0.05, 0.5), (0.5, 2.0)])
@pytest.mark.parametrize("shift", [-2.0, 0.0, 1.5])
def test_share_kept_under_noise_is_that_of_the_formula(noise, probability, threshold, tau, shift):
    samples = 100_000
    # Relative to the border, so that neither nothing nor everything is kept.
    score = tau * math.log(threshold / (1 - threshold)) + shift
    grid = torch.full((1, 1, samples), score)
    keep, soft = ops.select_tokens(grid, torch.ones_like(grid) > 0, threshold=threshold, tau=tau, noise=noise)
    expected = probability(score, threshold, tau)
    deviation = math.sqrt(expected * (1 - expected) / samples)
    assert abs(keep.float().mean().item() - expected) < 4.5 * deviation
    assert torch.equal(keep, soft > threshold)


@pytest.mark.parametrize(
    "noise, mean, variance", [("logistic", 0.0, math.pi**2 / 3), ("gumbel", 0.5772, math.pi**2 / 6)]
)
def test_noise_has_the_moments_of_its_distribution(noise, mean, variance):
    samples = 200_000
    sample = ops.selection_noise(torch.zeros(samples), noise)
    assert torch.isfinite(sample).all()
    assert abs(sample.mean().item() - mean) < 4.5 * math.sqrt(variance / samples)
    assert abs(sample.var().item() / variance - 1) < 0.03


def test_tokens_and_images_get_noise_of_their_own():
    sample = ops.selection_noise(torch.zeros(2, 3, 3), "logistic")
    assert sample.flatten().unique().numel() == 18


@pytest.mark.parametrize("threshold", [0.01, 0.05, 0.5])
@pytest.mark.parametrize("tau", [0.5, 1.0, 3.0])
def test_without_noise_the_gate_keeps_what_is_above_the_border(threshold, tau):
    score, valid = torch.randn(2, 5, 6) * 4, ragged(2, 5, 6)
    keep, soft = ops.select_tokens(score, valid, threshold=threshold, tau=tau)
    for place in torch.cartesian_prod(torch.arange(2), torch.arange(5), torch.arange(6)).tolist():
        probability = 1 / (1 + math.exp(-score[tuple(place)].item() / tau))
        assert soft[tuple(place)].item() == pytest.approx(probability, rel=1e-5)
        assert keep[tuple(place)].item() == (valid[tuple(place)].item() and probability > threshold)


@pytest.mark.parametrize("select", ["topk", "random"])
@pytest.mark.parametrize("ratio", [0.01, 0.09, 0.25, 1 / 3, 0.5, 1.0])
def test_share_kept_is_the_ceiling_of_the_ratio_of_valid_tokens(select, ratio):
    score, valid = torch.randn(4, 6, 9), ragged(4, 6, 9)
    keep, _ = ops.select_tokens(score, valid, select=select, keep_ratio=ratio)
    exact = Fraction(ratio).limit_denominator(1000)
    assert keep.flatten(1).sum(1).tolist() == [math.ceil(exact * int(n)) for n in valid.flatten(1).sum(1)]
    assert not (keep & ~valid).any()


@pytest.mark.parametrize("ratio", [0.05, 0.09, 0.1, 0.18, 0.23, 0.25, 0.35, 0.7])
def test_share_kept_is_exact_on_large_grids(ratio):
    exact = Fraction(str(ratio))
    for tokens in (600, 1300, 4000, 15000):
        score = torch.arange(tokens).float().view(1, 1, -1)
        keep, _ = ops.select_tokens(score, score >= 0, select="topk", keep_ratio=ratio)
        assert int(keep.sum()) == math.ceil(exact * tokens)


@given(st.integers(0, 2**31), st.sampled_from([0.1, 0.3, 0.77]), st.booleans())
def test_topk_keeps_what_the_loop_keeps(seed, ratio, with_ties):
    generator = torch.Generator().manual_seed(seed)
    valid = torch.rand(3, 4, 7, generator=generator) < 0.7
    if with_ties:
        score = torch.randint(0, 3, (3, 4, 7), generator=generator).float()
    else:
        score = torch.randn(3, 4, 7, generator=generator)
    keep, _ = ops.select_tokens(score, valid, select="topk", keep_ratio=ratio, tau=0.7)
    for image in range(3):
        places = [(i, j) for i in range(4) for j in range(7) if valid[image, i, j]]
        # Highest first; sorted() is stable, so ties go to the first in raster order.
        ranked = sorted(places, key=lambda place: -score[image][place].item())
        chosen = set(ranked[: math.ceil(Fraction(str(ratio)) * len(places))])
        assert {tuple(place) for place in keep[image].nonzero().tolist()} == chosen


def test_random_is_uniform_over_valid_tokens():
    valid = ragged(3, 3, 4)
    score = torch.randn(3, 3, 4)
    total = sum(ops.select_tokens(score, valid, select="random", keep_ratio=0.5)[0].long() for _ in range(2000))
    for image in range(2):
        count = int(valid[image].sum())
        share = math.ceil(count / 2) / count
        seen = total[image][valid[image]] / 2000
        assert (seen - share).abs().max() < 5 * math.sqrt(share * (1 - share) / 2000)


def test_random_draws_anew_unless_it_has_a_seed():
    score, valid = torch.randn(2, 6, 6), torch.ones(2, 6, 6, dtype=torch.bool)

    def draw(**options):
        return ops.select_tokens(score, valid, select="random", keep_ratio=0.5, **options)[0]

    assert not torch.equal(draw(), draw())
    state = torch.get_rng_state()
    assert torch.equal(draw(seed=3), draw(seed=3)) and not torch.equal(draw(seed=3), draw(seed=4))
    # It has a generator of its own, and leaves training's alone.
    assert torch.equal(torch.get_rng_state(), state)


def test_a_seeded_draw_of_an_image_depends_on_neither_batch_nor_padding():
    score, valid = torch.randn(2, 9, 7), torch.zeros(2, 9, 7, dtype=torch.bool)
    valid[0], valid[1, :6, :5] = True, True
    both, _ = ops.select_tokens(score, valid, select="random", keep_ratio=0.5, seed=1)
    for image, (height, width) in enumerate(((9, 7), (6, 5))):
        alone = valid[image : image + 1, :height, :width]
        keep, _ = ops.select_tokens(torch.randn(alone.shape), alone, select="random", keep_ratio=0.5, seed=1)
        assert torch.equal(both[image, :height, :width], keep[0]) and keep.sum() == math.ceil(height * width / 2)


def test_oracle_keeps_what_is_labelled_object():
    label = torch.tensor([0, 1, 255], dtype=torch.uint8)[torch.randint(3, (3, 4, 5))]
    valid = ragged(3, 4, 5)
    keep, _ = ops.select_tokens(torch.randn(3, 4, 5), valid, select="oracle", labels=label)
    assert torch.equal(keep, (label == 1) & valid)


def test_all_keeps_every_valid_token():
    valid = ragged(3, 4, 5)
    keep, _ = ops.select_tokens(torch.full((3, 4, 5), -50.0), valid, select="all")
    assert torch.equal(keep, valid)


@pytest.mark.parametrize("select", ops.SELECTS)
@pytest.mark.parametrize("noise", ops.NOISES)
def test_padding_is_never_kept(select, noise):
    valid = ragged(3, 6, 6)
    label = torch.ones(3, 6, 6, dtype=torch.uint8)
    for score in (torch.full((3, 6, 6), 30.0), torch.full((3, 6, 6), -30.0), torch.randn(3, 6, 6)):
        keep, _ = ops.select_tokens(score, valid, select=select, noise=noise, keep_ratio=1.0, labels=label)
        assert keep.dtype == torch.bool and not (keep & ~valid).any()


@pytest.mark.parametrize("select", [name for name in ops.SELECTS if name != "random"])
def test_a_decision_reads_nothing_but_its_image_and_its_valid_tokens(select):
    score, valid = torch.randn(3, 6, 6), ragged(3, 6, 6)
    label = (torch.rand(3, 6, 6) < 0.5).to(torch.uint8)

    def decide(score):
        return ops.select_tokens(score, valid, select=select, keep_ratio=0.4, labels=label)[0]

    other = torch.where(valid, score, torch.randn_like(score) * 50)
    assert torch.equal(decide(other), decide(score))
    other[0] = torch.randn(6, 6)
    assert torch.equal(decide(other)[1:], decide(score)[1:])


def test_gradient_of_soft_is_the_slope_of_the_sigmoid():
    score = torch.randn(1, 3, 3, dtype=torch.float64, requires_grad=True)
    _, soft = ops.select_tokens(score, torch.ones(1, 3, 3, dtype=torch.bool), tau=0.5)
    (gradient,) = torch.autograd.grad(soft.sum(), score)
    reference.close(gradient, (soft * (1 - soft) / 0.5).detach())


def test_straight_through_is_one_in_value_and_soft_in_gradient():
    soft = torch.rand(7, dtype=torch.float64, requires_grad=True)
    for decides, slope in ((True, 1.0), (False, 0.0)):
        factor = straight_through(soft, decides)
        assert (factor == 1).all()
        (gradient,) = torch.autograd.grad(factor.sum(), soft)
        assert (gradient == slope).all()


def test_gating_factors():
    score = torch.tensor([-2.0, 0.0, 3.0])
    assert gating_factor(score, "none", 0.05) is None
    reference.close(gating_factor(score, "sigmoid", 0.05), 1 / (1 + torch.exp(-score)))
    border = torch.tensor([math.log(0.05 / 0.95)])
    assert gating_factor(border, "centred", 0.05).item() == pytest.approx(0.5)
    expected = 1 / (1 + torch.exp(-(score - border)))
    reference.close(gating_factor(score, "centred", 0.05), expected)


def test_split_selections_cuts_padding_off_and_shares_pairs_by_kept_tokens():
    keep = torch.zeros(2, 4, 4, dtype=torch.bool)
    keep[0, :4, :3] = True
    keep[1, :2, :2] = True
    layout = pack_layout(keep, container_size=4, window_size=2)
    score, valid = torch.randn(2, 4, 4), torch.ones(2, 4, 4, dtype=torch.bool)
    extra = ops.BlockSelection(2, None, 8, torch.randn(2, 8, 8), None, torch.ones(2, 8, 8, dtype=torch.bool), None)
    block = ops.BlockSelection(3, 0, 16, score, keep, valid, layout)
    first, second = ops.split_selections([extra, block], [(64, 48), (17, 32)], (64, 64))
    assert first.tensor_size == (64, 64)
    assert [b.score.shape for b in first.blocks] == [(8, 6), (4, 3)]
    assert [b.score.shape for b in second.blocks] == [(3, 4), (2, 2)]
    assert first.blocks[0].keep_mask is None and first.blocks[0].kept == 0 and first.blocks[0].executed_pairs == 0
    assert torch.equal(second.blocks[1].keep_mask, keep[1, :2, :2])
    assert torch.equal(second.blocks[1].score, score[1, :2, :2])
    for image, kept in ((first, 12), (second, 4)):
        assert image.blocks[1].kept == kept == int(image.blocks[1].keep_mask.sum())
    assert first.blocks[1].executed_pairs + second.blocks[1].executed_pairs == layout.executed_pairs
    assert first.blocks[1].useful_pairs + second.blocks[1].useful_pairs == layout.useful_pairs
    assert [(b.stage, b.block, b.stride) for b in first.blocks] == [(2, None, 8), (3, 0, 16)]


def test_split_selections_of_an_empty_batch_and_of_none_at_all():
    keep = torch.zeros(1, 2, 2, dtype=torch.bool)
    layout = pack_layout(keep, container_size=4, window_size=2)
    block = ops.BlockSelection(3, 0, 16, torch.zeros(1, 2, 2), keep, ~keep, layout)
    (image,) = ops.split_selections([block], [(32, 32)], (32, 32))
    assert image.blocks[0].kept == 0 and image.blocks[0].executed_pairs == 0
    assert ops.split_selections([], [(32, 32)], (32, 32))[0].blocks == []


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda s, v: ops.select_tokens(s, v, select="best"), "select expects one of .*Got 'best'"),
        (lambda s, v: ops.select_tokens(s, v, noise="white"), "noise expects one of .*Got 'white'"),
        (lambda s, v: gating_factor(s, "relu", 0.1), "gating expects one of .*Got 'relu'"),
        (
            lambda s, v: ops.select_tokens(s, v, select="oracle"),
            "select='oracle' expects selection labels(.|\n)*HINT: use SelectionDatasetMapper",
        ),
    ],
)
def test_values_that_are_unknown_or_missing_are_errors(call, message):
    with pytest.raises(ValueError, match=message):
        call(torch.zeros(1, 2, 2), torch.ones(1, 2, 2, dtype=torch.bool))
