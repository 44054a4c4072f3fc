"""The benchmarks by name, each from the same settings to rows and the lines that go with them."""

import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from spt_d2.benchmark.attention import attention_cases
from spt_d2.benchmark.backbone import backbone_cases, exponents
from spt_d2.benchmark.block_parts import shares
from spt_d2.benchmark.cases import time_cases
from spt_d2.benchmark.data import loader_cases, mapper_cases, read_data
from spt_d2.benchmark.detector import detector_cases
from spt_d2.benchmark.packing import KEEP_RATIOS as PACKING_KEEP_RATIOS
from spt_d2.benchmark.packing import packing_cases
from spt_d2.benchmark.planting import KeepRatio
from spt_d2.benchmark.polygons import make_polygon_data
from spt_d2.benchmark.record import Row


@dataclass(frozen=True)
class Settings:
    """
    What to time, and how.

    Attributes:
        names: of backbones of this project.
        peers: installed ones.
        keep_ratios: of backbones; for packing, one for each image.
        batches: images.
        image_sizes: (height, width) in pixels, multiples of 32.
        device, dtype: see :func:`spt_d2.benchmark.steps.step`.
        modes: of :data:`spt_d2.benchmark.steps.MODES`, where a benchmark has both.
        rounds, warmup: see :func:`spt_d2.benchmark.timing.interleave`.
        memory: whether to measure it.
        images: of the data set that mappers are timed on.
        overrides: keys of a config and their values.
    """

    names: tuple[str, ...] = ()
    peers: tuple[str, ...] = ()
    keep_ratios: tuple[KeepRatio, ...] = (0.23,)
    batches: tuple[int, ...] = (1,)
    image_sizes: tuple[tuple[int, int], ...] = ((800, 1280),)
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    dtype: str = "float32"
    modes: tuple[str, ...] = ("inference",)
    rounds: int = 10
    warmup: int = 1
    memory: bool = True
    images: int = 64
    overrides: Mapping[str, Any] = field(default_factory=dict)

    @property
    def shared(self) -> dict[str, Any]:
        """Arguments that all benchmarks of networks take."""
        return {
            "image_sizes": self.image_sizes,
            "device": self.device,
            "dtype": self.dtype,
            "overrides": self.overrides,
        }

    def time(self, cases: list, rounds: int | None = None, memory: bool = True) -> list[Row]:
        """Rows of cases."""
        return time_cases(
            cases, self.device, rounds=rounds or self.rounds, warmup=self.warmup, memory=memory and self.memory
        )


Measured = tuple[list[Row], list[str]]


def _backbones(settings: Settings, training: bool) -> Measured:
    cases = backbone_cases(
        settings.names,
        settings.peers,
        keep_ratios=settings.keep_ratios,
        batches=settings.batches,
        training=training,
        **settings.shared,
    )
    rows = settings.time(cases)
    return rows, exponents(rows)


def _backbone(settings: Settings) -> Measured:
    return _backbones(settings, training=False)


def _train(settings: Settings) -> Measured:
    return _backbones(settings, training=True)


def _attention(settings: Settings) -> Measured:
    rows = settings.time(
        attention_cases(
            keep_ratios=settings.keep_ratios, batches=settings.batches, modes=settings.modes, **settings.shared
        )
    )
    return rows, shares(rows)


def _packing(settings: Settings) -> Measured:
    keep_ratios = [ratio for ratio in settings.keep_ratios if not isinstance(ratio, Mapping)]
    if len(keep_ratios) < len(settings.keep_ratios):
        raise ValueError("The benchmark of packing expects one share for each image, not for each stage.")
    # One image has nothing to be padded to.
    ratios = keep_ratios if len(keep_ratios) > 1 else PACKING_KEEP_RATIOS
    return settings.time(packing_cases(keep_ratios=ratios, modes=settings.modes, **settings.shared)), []


def _data(settings: Settings) -> Measured:
    with tempfile.TemporaryDirectory() as folder:
        annotations, images = make_polygon_data(Path(folder), settings.images)
        data = read_data(str(annotations), str(images))
        # A round maps one image, or passes over all of them.
        rows = settings.time(mapper_cases(data, settings.overrides), rounds=settings.images, memory=False)
        rows += settings.time(loader_cases(data, settings.overrides), memory=False)
    return rows, [f"A round of the mappers is one image: {settings.images} rounds of theirs."]


def _model(settings: Settings) -> Measured:
    cases = detector_cases(
        settings.names,
        settings.peers,
        keep_ratios=settings.keep_ratios,
        batches=settings.batches,
        modes=settings.modes,
        **settings.shared,
    )
    return settings.time(cases), []


COMMANDS: Mapping[str, Callable[[Settings], Measured]] = {
    "backbone": _backbone,
    "attention": _attention,
    "packing": _packing,
    "train": _train,
    "data": _data,
    "model": _model,
}
