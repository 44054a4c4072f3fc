"""The layout of packed tokens, against loops that fill containers one token at a time."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from spt_d2.ops.packing import PackedLayout, pack_layout
from spt_d2.ops.padding import pad_layout
from spt_d2.ops.windows import window_partition
from tests import reference


@st.composite
def layouts(draw) -> tuple[torch.Tensor, dict, PackedLayout]:
    """A keep mask, a rule that goes together, and the layout."""
    batch, height, width = draw(st.integers(1, 3)), draw(st.integers(1, 9)), draw(st.integers(1, 9))
    order, segment = draw(st.sampled_from(reference.ORDERS_AND_SEGMENTS))
    window_size = draw(st.integers(1, 4))
    smallest = window_size**2 if segment == "window" else 1
    rule = {
        "container_size": draw(st.integers(smallest, smallest + 20)),
        "window_size": window_size,
        "shift_size": draw(st.sampled_from([0, window_size // 2])),
        "order": order,
        "segment": segment,
    }
    # A density per image, so that empty and full images turn up.
    density = [draw(st.sampled_from([0.0, 0.2, 0.7, 1.0])) for _ in range(batch)]
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    keep = torch.rand(batch, height, width, generator=generator) < torch.tensor(density)[:, None, None]
    return keep, rule, pack_layout(keep, **rule)


def tokens_of(layout: PackedLayout) -> list[reference.Token]:
    height, width = layout.grid_size
    return [(i // (height * width), i // width % height, i % width) for i in layout.keep_indices.tolist()]


@settings(max_examples=150)
@given(layouts())
def test_packed_order_is_that_of_the_loop(case):
    keep, rule, layout = case
    expected = reference.packed_sequence(keep, rule["window_size"], rule["shift_size"], rule["order"])
    assert tokens_of(layout) == expected
    assert layout.image_ids.tolist() == [token[0] for token in expected]
    assert [tuple(row) for row in layout.coordinates.tolist()] == [token[1:] for token in expected]


@settings(max_examples=150)
@given(layouts())
def test_no_token_is_lost_or_doubled(case):
    keep, _, layout = case
    assert list(layout.counts) == keep.flatten(1).sum(1).tolist()
    assert layout.num_tokens == sum(layout.counts) == sum(layout.seqlens) == len(set(layout.keep_indices.tolist()))
    assert torch.equal(layout.skipped_indices, (~keep).flatten().nonzero().flatten())


@settings(max_examples=150)
@given(layouts())
def test_segments_are_those_of_the_rule(case):
    keep, rule, layout = case
    names = reference.segment_of_tokens(keep, **rule)
    runs = [list(run) for _, run in itertools.groupby(names, key=names.__getitem__)]
    assert list(layout.seqlens) == [len(run) for run in runs]
    assert layout.segment_ids.tolist() == [k for k, run in enumerate(runs) for _ in run]
    for run in runs:
        assert len({token[0] for token in run}) == 1, "a segment is of one image"
        assert 1 <= len(run) <= rule["container_size"]


@settings(max_examples=150)
@given(layouts())
def test_containers_are_filled_as_by_hand(case):
    keep, rule, layout = case
    expected = reference.containers_of(keep, **rule)
    assert layout.num_containers == len(expected)
    filled = layout.fill_containers(torch.arange(1, layout.num_tokens + 1))
    tokens = tokens_of(layout)
    for container, members in zip(filled.tolist(), expected):
        held = [place for place in container if place]
        # Whole and from the first slot on, the empty slots behind.
        assert container[: len(held)] == held
        assert [tokens[place - 1] for place in held] == members
        assert len(members) <= rule["container_size"]
    assert layout.executed_pairs == sum(rule["container_size"] ** 2 for _ in expected)


@settings(max_examples=150)
@given(layouts())
def test_pairs_and_masks_are_those_of_the_slow_mask(case):
    keep, rule, layout = case
    truth = reference.attention_mask(keep, **rule)
    assert layout.useful_pairs == int(truth.sum())
    # Between slots that hold tokens, the rectangular mask is the truth; between an empty slot and a token it is False.
    indices = layout.fill_containers(layout.keep_indices + 1) - 1
    for container, mask in zip(indices, layout.container_mask[:, 0]):
        held = container >= 0
        kept = container[held]
        assert torch.equal(mask[held][:, held], truth[kept[:, None], kept[None, :]])
        assert not mask[held][:, ~held].any() and not mask[~held][:, held].any()
        assert mask.any(dim=-1).all(), "a row that sees nothing gives NaN"
    assert layout.container_mask.shape == (layout.num_containers, 1, rule["container_size"], rule["container_size"])


@settings(max_examples=100)
@given(layouts(), st.sampled_from([(), (3,), (2, 4)]))
def test_emptying_undoes_filling(case, channels):
    keep, _, layout = case
    x = torch.randn(keep.numel(), *channels)
    tokens = x[layout.keep_indices]
    containers = layout.fill_containers(tokens)
    assert torch.equal(layout.empty_containers(containers), tokens)
    # Packed, unpacked: the map, zero where nothing was kept.
    back = torch.zeros_like(x).index_copy(0, layout.keep_indices, layout.empty_containers(containers))
    assert torch.equal(back, x * keep.flatten().view(-1, *[1] * len(channels)))
    # Empty slots are zero.
    assert containers[layout.slot_segments < 0].abs().sum() == 0


@settings(max_examples=150)
@given(layouts(), st.booleans())
def test_what_a_slot_is_given_is_its_token_or_another_of_its_container(case, padded):
    _, _, layout = case
    if padded:
        layout = pad_layout(layout).rows
    given_to = layout.slot_tokens
    assert given_to.shape == (layout.num_containers, layout.container_size)
    assert torch.equal(given_to.flatten()[layout.slots], torch.arange(layout.num_tokens))
    held = layout.slot_segments >= 0
    for container, own in zip(given_to, held):
        # Never a token of another image where containers are of one: what is not finite would spread to it. Only rows
        # that are padded have containers of nothing.
        assert own.any() or padded
        assert set(container[~own].tolist()) <= {int(container[own].max()) if own.any() else 0}


@settings(max_examples=150)
@given(layouts(), st.data())
def test_split_layouts_are_the_layout(case, data):
    keep, _, layout = case
    if layout.num_containers == 0:
        return
    number = data.draw(st.integers(1, layout.num_containers))
    parts = layout.split(number)
    sizes = [part.num_containers for part in parts]
    assert len(parts) == number and max(sizes) - min(sizes) <= 1 and sum(sizes) == layout.num_containers
    assert torch.equal(torch.cat([part.keep_indices for part in parts]), layout.keep_indices)
    assert torch.equal(torch.cat([part.container_mask for part in parts]), layout.container_mask)
    whole, first, start = layout.fill_containers(torch.arange(layout.num_tokens) + 1), 0, 0
    for part in parts:
        assert part.num_tokens == sum(part.counts) == sum(part.seqlens) > 0
        # Tokens lie in the same slots of the same containers.
        filled = part.fill_containers(torch.arange(part.num_tokens) + first + 1)
        assert torch.equal(filled, whole[start : start + part.num_containers])
        first, start = first + part.num_tokens, start + part.num_containers
    counts = torch.tensor([part.counts for part in parts])
    assert counts.sum(0).tolist() == list(layout.counts) == keep.flatten(1).sum(1).tolist()
    for part in parts:
        assert list(part.counts) == [int((part.image_ids == image).sum()) for image in range(len(keep))]


def test_rows_that_are_not_filled_in_packed_order_are_not_split():
    keep = torch.zeros(2, 4, 4, dtype=torch.bool)
    keep[0, 0, :] = keep[0, 1, ::2] = keep[1] = True
    # The tokens of a row's second container stand before the empty slots of its first one.
    layout = pack_layout(keep, container_size=5, window_size=2, segment="window")
    rows = pad_layout(layout).rows
    assert list(rows.segment_starts) != sorted(rows.segment_starts)
    with pytest.raises(ValueError, match=r"filled in packed order. Got rows of a padded layout(.|\n)*HINT"):
        rows.split(2)
    assert len(layout.split(2)) == 2


def test_what_cannot_be_split_is_refused():
    keep = torch.ones(1, 4, 4, dtype=torch.bool)
    for parts in (0, 5):
        with pytest.raises(ValueError, match=rf"split\(parts=\) expects 1 to 4 parts.*Got {parts}\.$"):
            pack_layout(keep, container_size=4, window_size=2).split(parts)
    with pytest.raises(ValueError, match=r"containers of one length. Got 2 and segment='image'\.$"):
        pack_layout(keep, container_size=4, window_size=2, segment="image").split(2)


@settings(max_examples=60)
@given(layouts())
def test_at_most_one_partial_container_an_image_or_one_at_all(case):
    keep, rule, layout = case
    if rule["segment"] == "window":
        return
    used = [len(members) for members in reference.containers_of(keep, **rule)]
    partial = sum(length < rule["container_size"] for length in used)
    assert layout.num_containers == len(used)
    assert partial <= (1 if rule["segment"] == "shared" else keep.shape[0])


def test_filling_and_emptying_pass_gradients_through():
    keep = torch.rand(2, 3, 4) < 0.5
    layout = pack_layout(keep, container_size=4, window_size=2)
    tokens = torch.randn(layout.num_tokens, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(layout.fill_containers, tokens)
    containers = layout.fill_containers(tokens.detach()).requires_grad_()
    assert torch.autograd.gradcheck(layout.empty_containers, containers)


WORKED_EXAMPLE = torch.tensor(
    [
        [[1, 0, 1, 1], [1, 1, 0, 1]],
        [[0, 0, 0, 0], [0, 0, 0, 0]],
        [[0, 1, 0, 0], [0, 0, 1, 1]],
    ],
    dtype=torch.bool,
)


@pytest.mark.parametrize(
    "order, segment, keep_indices, seqlens, starts, containers",
    [
        ("window", "container", [0, 4, 5, 2, 3, 7, 17, 22, 23], [4, 2, 3], [0, 4, 8], 3),
        ("window", "shared", [0, 4, 5, 2, 3, 7, 17, 22, 23], [4, 2, 2, 1], [0, 4, 6, 8], 3),
        ("window", "window", [0, 4, 5, 2, 3, 7, 17, 22, 23], [3, 3, 1, 2], [0, 4, 7, 8], 3),
        ("raster", "container", [0, 2, 3, 4, 5, 7, 17, 22, 23], [4, 2, 3], [0, 4, 8], 3),
    ],
)
def test_worked_example(order, segment, keep_indices, seqlens, starts, containers):
    layout = pack_layout(WORKED_EXAMPLE, container_size=4, window_size=2, order=order, segment=segment)
    assert layout.keep_indices.tolist() == keep_indices
    assert layout.counts == (6, 0, 3)
    assert list(layout.seqlens) == seqlens
    assert list(layout.segment_starts) == starts
    assert layout.num_containers == containers
    assert layout.executed_pairs == containers * 16
    assert layout.useful_pairs == sum(n * n for n in seqlens)


def test_next_fit_never_splits_a_window():
    keep = torch.rand(2, 9, 9, generator=torch.Generator().manual_seed(1)) < 0.6
    layout = pack_layout(keep, container_size=11, window_size=3, segment="window")
    for start, length in zip(layout.segment_starts, layout.seqlens):
        assert start // 11 == (start + length - 1) // 11


@pytest.mark.parametrize("segment", ["container", "shared", "window"])
@pytest.mark.parametrize("height, width", [(7, 7), (14, 21)])
def test_everything_kept_unshifted_containers_are_the_windows(height, width, segment):
    keep = torch.ones(2, height, width, dtype=torch.bool)
    layout = pack_layout(keep, container_size=49, window_size=7, segment=segment)
    x = torch.randn(2, height, width, 3)
    packed = layout.fill_containers(x.flatten(0, 2)[layout.keep_indices])
    assert torch.equal(packed, window_partition(x, 7)[0])
    assert set(layout.seqlens) == {49}
    assert layout.container_mask.all()


def test_a_keep_mask_that_is_not_contiguous_packs_alike():
    keep = torch.rand(5, 4, 2) < 0.5
    rule = {"container_size": 4, "window_size": 2, "shift_size": 1}
    strided, plain = keep.permute(2, 0, 1), keep.permute(2, 0, 1).contiguous()
    assert torch.equal(pack_layout(strided, **rule).keep_indices, pack_layout(plain, **rule).keep_indices)


@pytest.mark.parametrize(
    "bad", [torch.zeros(2, 3, dtype=torch.bool), torch.zeros(2, 3, 3), torch.zeros(1, 2, 3, 3) > 0]
)
def test_a_keep_mask_of_wrong_shape_or_dtype_is_an_error(bad):
    with pytest.raises(
        ValueError, match=r"pack_layout\(keep_mask=\) expects one decision per token.\n.*\(B, H, W\) torch.bool"
    ):
        pack_layout(bad, container_size=4, window_size=2)


@pytest.mark.parametrize(
    "rule, message",
    [
        ({"segment": "bag"}, r"segment expects one of \('container', 'shared', 'window', 'image'\)\. Got 'bag'"),
        ({"container_size": 0}, "container_size expects at least 1 token. Got 0"),
        ({"segment": "window", "order": "raster"}, "segment='window' expects order='window'.*Got 'raster'"),
        (
            {"segment": "window", "container_size": 8},
            r"whole windows into containers.\n  window_size\^2 : 9\n  container_size: 8",
        ),
        ({"order": "spiral"}, r"token_order\(order=\) expects one of"),
    ],
)
def test_a_rule_that_does_not_go_together_is_an_error(rule, message):
    rule = {"container_size": 9, "window_size": 3, **rule}
    with pytest.raises(ValueError, match=message):
        pack_layout(torch.ones(1, 3, 3, dtype=torch.bool), **rule)
