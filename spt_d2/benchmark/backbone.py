"""Backbones, forward and in training, at any keep ratio, beside dense ones of others."""

import functools
import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from spt_d2.benchmark.cases import Case
from spt_d2.benchmark.models import OWN, build_own, dense_geometry, dense_weights
from spt_d2.benchmark.peers import build_peer
from spt_d2.benchmark.planting import KeepRatio, Planting
from spt_d2.benchmark.record import Row
from spt_d2.benchmark.steps import step


def images(batch: int, image_size: tuple[int, int], device: torch.device) -> Tensor:
    """(B, 3, height, width) of noise, the same at every call."""
    generator = torch.Generator().manual_seed(0)
    return torch.randn(batch, 3, *image_size, generator=generator).to(device)


def backbone_cases(
    names: Sequence[str],
    peers: Sequence[str],
    *,
    keep_ratios: Sequence[KeepRatio],
    batches: Sequence[int],
    image_sizes: Sequence[tuple[int, int]],
    device: torch.device,
    dtype: str = "float32",
    training: bool = False,
    overrides: Mapping[str, Any] | None = None,
) -> list[Case]:
    """
    Cases of backbones. Those that select are run once with the share of tokens checked.

    Args:
        names: of backbones of this project, see :data:`spt_d2.benchmark.models.OWN`.
        peers: installed ones, see :data:`spt_d2.benchmark.peers.PEERS`.
        keep_ratios: of those that select, each one for all stages or ``{stage: share}``.
        batches: images.
        image_sizes: (height, width) in pixels, multiples of 32.
        device, dtype, training: see :func:`spt_d2.benchmark.steps.step`.
        overrides: keys of a config and their values, for all backbones of this project.
    """
    overrides = overrides or {}
    weights, geometry = dense_weights(overrides), dense_geometry(overrides)
    own: dict[str, Any] = {name: build_own(name, overrides, weights).to(device) for name in names}
    plantings = {name: Planting(own[name]) for name in names if OWN[name].selects}
    cases = []
    for image_size in image_sizes:
        others = {name: build_peer(name, geometry, image_size, weights).to(device) for name in peers}
        for batch, name in itertools.product(batches, [*peers, *names]):
            network, planting = {**others, **own}[name], plantings.get(name)
            x, sizes = images(batch, image_size, device), [image_size] * batch
            for keep_ratio in keep_ratios if planting else [None]:
                prepare = _nothing
                if planting is not None and keep_ratio is not None:
                    prepare = functools.partial(planting.use, keep_ratio, batch, image_size)
                    prepare()
                    check_share(network.eval(), planting, keep_ratio, x, sizes)
                entry = step(
                    network,
                    functools.partial(_maps, network, x, sizes),
                    device,
                    dtype=dtype,
                    training=training,
                    prepare=prepare,
                )
                cases.append(
                    Case(
                        entry=entry,
                        name=name,
                        mode="training" if training else "inference",
                        batch=batch,
                        image_size=image_size,
                        keep_ratio=keep_ratio,
                        dtype=dtype,
                        is_peer=name in others,
                    )
                )
    return cases


def _nothing() -> None:
    """A dense backbone needs no planting."""


def _maps(network: Any, x: Tensor, sizes: list[tuple[int, int]]) -> dict[str, Tensor]:
    return network.forward_with_selections(x, sizes)[0]


@torch.inference_mode()
def check_share(network: Any, planting: Planting, keep_ratio: KeepRatio, x: Tensor, sizes: list) -> None:
    """Run a backbone and raise RuntimeError where a block did not keep the share that was planted."""
    planting.check(network.forward_with_selections(x, sizes)[1], keep_ratio)


def exponents(rows: Sequence[Row]) -> list[str]:
    """
    How times grow with pixels, and with images: the exponents of power laws through the medians, least squares in
    logarithms; one line for each backbone of which there are several.
    """
    lines = []
    for label, along, fixed in (
        ("pixels", lambda row: math.prod(row.image_size), lambda row: f"batch {row.batch}"),
        ("batch", lambda row: row.batch, lambda row: "{}x{}".format(*row.image_size)),
    ):
        groups: dict[tuple[str, str, str], list[Row]] = {}
        for row in rows:
            kept = "" if row.keep_ratio is None else f" at keep {row.keep_ratio}"
            groups.setdefault((f"{row.name}{kept}", row.mode, fixed(row)), []).append(row)
        for (name, mode, rest), members in groups.items():
            if len({along(row) for row in members}) > 1:
                x = np.log([along(row) for row in members])
                slope = np.polyfit(x, np.log([row.median_ms for row in members]), 1)[0]
                lines.append(f"{name}, {mode}, {rest}: time grows with {label}^{slope:.2f}")
    return lines
