"""A training stream that does not depend on workers, and begins anywhere."""

import itertools
import random

import numpy as np
import pytest
import torch
from torch.utils.data import IterableDataset

from spt_d2.engine.reproducible import IterationSeed, SeparateLoader, build_resumed_loader, derive_seed, seed_samplers

# Of a machine with few cores.
pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create")

DATASET = [{"name": i, "width": 2 + i % 2, "height": 1} for i in range(7)]


def draw(item: dict) -> dict:
    """What augmentations do: numbers from all three generators."""
    return {**item, "drawn": (np.random.rand(), random.random(), torch.rand(()).item())}


def batches(count: int, start: int = 0, seed: int = 0, mapper=draw, dataset=DATASET, **arguments: object) -> list:
    options = {"dataset": dataset, "mapper": mapper, "total_batch_size": 2, "num_workers": 0, **arguments}
    seed_samplers(seed)
    return list(itertools.islice(iter(build_resumed_loader(options, seed, start)), count))


@pytest.mark.parametrize("grouped", [True, False])
@pytest.mark.parametrize("workers", [1, 2, 3])
def test_batches_do_not_depend_on_the_number_of_workers(workers: int, grouped: bool) -> None:
    """Neither which images, nor what is drawn for them."""
    expected = batches(8, aspect_ratio_grouping=grouped)
    assert batches(8, num_workers=workers, aspect_ratio_grouping=grouped) == expected


@pytest.mark.parametrize("grouped", [True, False])
@pytest.mark.parametrize(("start", "workers"), [(1, 0), (5, 0), (3, 2)])
def test_a_resumed_stream_goes_on_where_the_other_stopped(start: int, workers: int, grouped: bool) -> None:
    expected = batches(8, aspect_ratio_grouping=grouped)[start:]
    assert batches(8 - start, start, num_workers=workers, aspect_ratio_grouping=grouped) == expected


def test_every_image_is_read_once_an_epoch_with_new_numbers_each_time() -> None:
    items = [item for batch in batches(14) for item in batch]
    for epoch in (items[i : i + 7] for i in range(0, 28, 7)):
        assert sorted(item["name"] for item in epoch) == list(range(7))
    assert len({item["drawn"] for item in items}) == 28


def test_another_seed_gives_another_order_and_other_numbers() -> None:
    first, second = batches(7), batches(7, seed=1)
    assert [[item["name"] for item in batch] for batch in first] != [[i["name"] for i in batch] for batch in second]
    assert {i["drawn"] for b in first for i in b}.isdisjoint({i["drawn"] for b in second for i in b})


def test_an_image_that_cannot_be_used_is_replaced_by_another() -> None:
    items = [i for b in batches(7, mapper=lambda item: None if item["name"] == 3 else draw(item)) for i in b]
    usual = [i for b in batches(7) for i in b]
    assert len(items) == 14 and all(item["name"] != 3 for item in items)
    # Only that image's place is taken.
    assert all(a == b for a, b in zip(items, usual) if b["name"] != 3)


def generators() -> tuple:
    return np.random.rand(), random.random(), torch.rand(()).item()


@pytest.mark.parametrize("grouped", [True, False])
def test_reading_leaves_the_generators_of_this_process_alone(grouped: bool) -> None:
    """Its beginning too, at which a loader of batches draws a seed: a resumed run begins at another iteration."""
    np.random.seed(0), random.seed(0), torch.manual_seed(0)
    expected = generators()
    seed_samplers(0)
    options = {"dataset": DATASET, "mapper": draw, "total_batch_size": 2, "num_workers": 0}
    loader = build_resumed_loader({**options, "aspect_ratio_grouping": grouped}, 0, 0)
    np.random.seed(0), random.seed(0), torch.manual_seed(0)
    next(iter(loader))
    assert generators() == expected


def test_a_loader_that_ends_ends() -> None:
    assert list(SeparateLoader([[{}], [{}]])) == [[{}], [{}]]


class Endless(IterableDataset):
    """A data set without indices."""

    def __iter__(self):
        yield from ({"name": i, "width": 1, "height": 1} for i in range(100))


def test_a_data_set_without_indices_is_read_as_it_comes() -> None:
    assert [[i["name"] for i in batch] for batch in batches(2, dataset=Endless())] == [[0, 1], [2, 3]]


class Iteration:
    iter = 0


def test_an_iteration_draws_the_same_numbers_whatever_was_drawn_before() -> None:
    hook = IterationSeed(3)
    hook.trainer = Iteration()
    hook.before_step()
    first = generators()
    hook.trainer.iter = 1
    hook.before_step()
    second = generators()
    hook.trainer.iter = 0
    hook.before_step()
    assert generators() == first != second


def test_a_negative_seed_leaves_the_generators_alone() -> None:
    expected = generators()
    np.random.seed(0), random.seed(0), torch.manual_seed(0)
    hook = IterationSeed(-1)
    hook.trainer = Iteration()
    hook.before_step()
    assert generators() == expected


def test_seeds_differ_where_any_number_does() -> None:
    numbers = list(itertools.product(range(5), range(3), range(5), range(40)))
    assert len({derive_seed(*some) for some in numbers}) == len(numbers)
