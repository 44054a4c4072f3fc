"""What selection labels cost a mapper, and a loader with workers, beside Detectron2's stock mapper."""

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from detectron2.data import DatasetMapper, build_detection_test_loader
from detectron2.data.datasets import load_coco_json

from spt_d2.benchmark.cases import Case
from spt_d2.benchmark.models import variant_config
from spt_d2.benchmark.polygons import IMAGE_SIZE
from spt_d2.benchmark.timing import Entry
from spt_d2.data import SelectionDatasetMapper

Mapper = Callable[[dict[str, Any]], Any]


def mappers(overrides: Mapping[str, Any]) -> dict[str, Mapper]:
    """By row name, both for training, with the augmentations of the R-CNN configs. The stock one comes first."""
    cfg = variant_config("spt_t", overrides)
    return {"stock_mapper": DatasetMapper(cfg, is_train=True), "selection_mapper": SelectionDatasetMapper(cfg, True)}


def read_data(annotations: str, images: str) -> list[dict[str, Any]]:
    """A file in COCO's format, as Detectron2 reads it."""
    return load_coco_json(annotations, images)


class _InTurn:
    """Maps one image after the other; random augmentations are the same for every mapper."""

    def __init__(self, mapper: Mapper, data: Sequence[dict[str, Any]]):
        self.mapper, self.data, self.place = mapper, data, -1

    def next(self) -> None:
        self.place = (self.place + 1) % len(self.data)
        random.seed(self.place)
        np.random.seed(self.place)

    def map(self) -> None:
        self.mapper(self.data[self.place])


def mapper_cases(data: Sequence[dict[str, Any]], overrides: Mapping[str, Any]) -> list[Case]:
    """
    One image a round, the same for both.

    Args:
        data: images in Detectron2's format.
        overrides: of the config.
    """
    turns = {name: _InTurn(mapper, data) for name, mapper in mappers(overrides).items()}
    return [
        Case(Entry(turn.map, turn.next), name=name, mode="map", batch=1, image_size=IMAGE_SIZE, is_peer="stock" in name)
        for name, turn in turns.items()
    ]


class _Pass:
    """A pass over the data by a loader with workers, which have started, and given the first image, beforehand."""

    def __init__(self, mapper: Mapper, data: Sequence[dict[str, Any]], workers: int):
        self.mapper, self.data, self.workers = mapper, data, workers
        self.images: Iterator[Any] = iter(())

    def start(self) -> None:
        # Of evaluation: finite, and in order. Workers take their seeds from torch's generator.
        self.images = iter(build_detection_test_loader(self.data, mapper=self.mapper, num_workers=self.workers))
        next(self.images)

    def drain(self) -> None:
        for _ in self.images:
            pass


def loader_cases(data: Sequence[dict[str, Any]], overrides: Mapping[str, Any], workers: int = 2) -> list[Case]:
    """
    A pass a round, in milliseconds an image.

    Args:
        data: images in Detectron2's format, more than the handful that workers hold ready.
        overrides: of the config.
        workers: processes.
    """
    cases = []
    for name, mapper in mappers(overrides).items():
        passing = _Pass(mapper, data, workers)
        cases.append(
            Case(
                Entry(passing.drain, passing.start),
                name=name,
                mode=f"load, {workers} workers",
                batch=1,
                image_size=IMAGE_SIZE,
                is_peer="stock" in name,
                repeats=len(data) - 1,
            )
        )
    return cases
