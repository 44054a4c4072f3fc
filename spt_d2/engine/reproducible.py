"""
The same data and the same random numbers in a run that was resumed as in one that never stopped.

Generators are seeded anew for every iteration and for every training image, by their number. A run that starts at
iteration n then needs to know nothing of what was drawn before, no generator's state has to lie in checkpoints, which
hold those of one process only, and the number of a loader's workers makes no difference. Exact where training images
have one orientation; elsewhere Detectron2 holds images back to group them by aspect ratio, and a resumed run begins
with none held.
"""

import random
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import Any

import numpy as np
import torch
from detectron2.data import DatasetFromList, build_detection_train_loader
from detectron2.data.samplers import TrainingSampler
from detectron2.engine import HookBase
from detectron2.utils import comm
from torch.utils.data import Dataset, IterableDataset, Sampler, get_worker_info

# Samplers, iterations and images draw from different sequences.
_SAMPLER, _ITERATION, _IMAGE = 0, 1, 2


def derive_seed(*numbers: int) -> int:
    """A seed in [0, 2**32) that differs wherever one of the numbers does, without any relation to them."""
    return int(np.random.SeedSequence(numbers).generate_state(1)[0])


class IterationSeed(HookBase):
    """
    Seed torch, numpy and random before each iteration, by its number and the rank of the process.

    Args:
        seed: of the run; negative leaves the generators alone.
    """

    def __init__(self, seed: int):
        self.seed = seed

    def before_step(self) -> None:
        if self.seed >= 0:
            value = derive_seed(self.seed, _ITERATION, comm.get_rank(), self.trainer.iter)
            torch.manual_seed(value)
            np.random.seed(value)
            random.seed(value)


class TrainingStream(IterableDataset):
    """
    Training images in the order of a sampler, each augmented with random numbers of its own.

    Args:
        dataset: dicts in Detectron2's format, by index.
        sampler: endless indices, those of this process.
        mapper: from a dict to an input of the model; None where an image cannot be used, and another takes its place.
        seed: of the run, 0 or more.
        skip: images at the beginning that were trained on before.
        chunk: consecutive images that go to the same one of a loader's workers.
    """

    def __init__(
        self,
        dataset: Dataset,
        sampler: Sampler,
        mapper: Callable[[dict], dict | None],
        *,
        seed: int,
        skip: int = 0,
        chunk: int = 1,
    ):
        self.dataset, self.sampler, self.mapper = dataset, sampler, mapper
        self.seed, self.skip, self.chunk = seed, skip, chunk
        self.rank = comm.get_rank()

    def __iter__(self) -> Iterator[dict]:
        worker = get_worker_info()
        turn, workers = (0, 1) if worker is None else (worker.id, worker.num_workers)
        for i, index in enumerate(islice(iter(self.sampler), self.skip, None)):
            if i // self.chunk % workers == turn:
                yield self._sample(index, self.skip + i)

    def _sample(self, index: int, number: int) -> dict:
        value = derive_seed(self.seed, _IMAGE, self.rank, number)
        np.random.seed(value)
        random.seed(value)
        # torch.manual_seed would also turn to CUDA, which a loader's worker must not.
        torch.default_generator.manual_seed(value)
        while (sample := self.mapper(self.dataset[index])) is None:
            # A map-style data set has a length; torch's class of that name declares none.
            index = np.random.randint(len(self.dataset))  # type: ignore[arg-type]
        return sample


class SeparateLoader:
    """
    A loader that leaves the generators of this process to the model: neither images read here nor the start of workers
    move them.

    Args:
        loader: of batches.
    """

    def __init__(self, loader: Iterable[list[dict]]):
        self.loader = loader

    def __iter__(self) -> Iterator[list[dict]]:
        batches: Iterator[list[dict]] | None = None
        while True:
            states = np.random.get_state(), random.getstate(), torch.default_generator.get_state()
            # A loader draws a seed for its workers when it begins.
            batches = iter(self.loader) if batches is None else batches
            batch = next(batches, None)
            np.random.set_state(states[0])
            random.setstate(states[1])
            torch.default_generator.set_state(states[2])
            if batch is None:
                return
            yield batch


def seed_samplers(seed: int) -> None:
    """Call it before samplers are made: they draw their seed from numpy's generator."""
    np.random.seed(derive_seed(seed, _SAMPLER))


def build_resumed_loader(arguments: dict[str, Any], seed: int, start_iter: int) -> Iterable[list[dict]]:
    """
    A training loader that begins with the batch of iteration ``start_iter``.

    Args:
        arguments: of ``build_detection_train_loader``, for all batches.
        seed: of the run, 0 or more.
        start_iter: iterations that were trained before. A data set without indices is read from its beginning all the
            same.
    """
    dataset = arguments["dataset"]
    if isinstance(dataset, IterableDataset):
        return build_detection_train_loader(**arguments)
    if isinstance(dataset, list):
        dataset = DatasetFromList(dataset, copy=False)
    batch = arguments["total_batch_size"] // comm.get_world_size()
    # Grouped by aspect ratio, a loader takes single images from its workers, else batches.
    grouped = arguments.get("aspect_ratio_grouping", True)
    stream = TrainingStream(
        dataset,
        arguments.get("sampler") or TrainingSampler(len(dataset)),
        arguments["mapper"],
        seed=seed,
        skip=start_iter * batch,
        chunk=1 if grouped else batch,
    )
    return SeparateLoader(
        build_detection_train_loader(**{**arguments, "dataset": stream, "sampler": None, "mapper": None})
    )
