"""Stages of Select and Pack beside Swin's of equal depth."""

import functools
import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from spt_d2.benchmark.block_parts import block_cases
from spt_d2.benchmark.cases import Case
from spt_d2.benchmark.models import build_own, dense_weights
from spt_d2.benchmark.planting import MARGIN, KeepRatio, Planting
from spt_d2.benchmark.steps import step

# Of one depth, so that stages compare.
DENSE, SELECTING = "swin_t16", "spt_t"
STAGES = (3, 4)


def attention_cases(
    *,
    keep_ratios: Sequence[KeepRatio],
    batches: Sequence[int],
    image_sizes: Sequence[tuple[int, int]],
    device: torch.device,
    dtype: str = "float32",
    modes: Sequence[str] = ("inference",),
    overrides: Mapping[str, Any] | None = None,
) -> list[Case]:
    """
    Stages 3 and 4 of :data:`SELECTING` at every keep ratio, beside those of :data:`DENSE`, which stand in the place of
    peers; and, in inference, the parts of their first block beside the block itself.

    Args: as :func:`spt_d2.benchmark.backbone.backbone_cases`, and
        modes: of :data:`spt_d2.benchmark.steps.MODES`.

    Raises:
        ValueError: overrides under which one of the stages does not select, or its blocks cannot be taken apart.
    """
    overrides = overrides or {}
    weights = dense_weights(overrides)
    dense: Any = build_own(DENSE, overrides, weights).to(device)
    spt: Any = build_own(SELECTING, overrides, weights).to(device)
    planting = Planting(spt)
    if not set(STAGES) <= set(planting.stages):
        raise ValueError(f"attention_cases expects stages {STAGES} to select. Got SPA_STAGES {planting.stages}.")
    cases = []
    for image_size, batch, number in itertools.product(image_sizes, batches, STAGES):
        stages = dense.layers[number - 1], spt.layers[number - 1]
        stride = 2 ** (number + 1)
        x = _tokens(batch, image_size[0] // stride, image_size[1] // stride, _width(stages[1]), device)
        valid = torch.ones(x.shape[:3], dtype=torch.bool, device=device)
        # Below all that is kept: the maximum is computed, and changes nothing.
        score_up = torch.full(x.shape[:3], planting.border - MARGIN[1], device=device)
        for mode in modes:
            shared: dict[str, Any] = {"mode": mode, "batch": batch, "image_size": image_size, "dtype": dtype}
            given = functools.partial(_leaf, x, mode == "training")
            entry = functools.partial(step, device=device, dtype=dtype, training=mode == "training")
            cases.append(
                Case(
                    entry=entry(stages[0], functools.partial(_dense, stages[0], given)),
                    name=f"swin_stage{number}",
                    is_peer=True,
                    group=f"stage{number}",
                    **shared,
                )
            )
            for keep_ratio in keep_ratios:
                plant = functools.partial(planting.use, keep_ratio, batch, image_size)
                cases.append(
                    Case(
                        entry=entry(
                            stages[1],
                            functools.partial(_selecting, stages[1], given, valid, score_up),
                            prepare=plant,
                        ),
                        name=f"spa_stage{number}",
                        keep_ratio=keep_ratio,
                        group=f"stage{number}",
                        **shared,
                    )
                )
                if mode == "inference":
                    cases += block_cases(
                        stages[1].blocks[0], (x, valid, score_up), plant, entry, number, keep_ratio, shared
                    )
    return cases


def _leaf(x: Tensor, requires_grad: bool) -> Tensor:
    """A leaf without a gradient from earlier rounds."""
    return x.detach().requires_grad_(requires_grad)


def _dense(stage: Any, given: Callable[[], Tensor]) -> dict[str, Tensor]:
    return {"out": stage(given())}


def _selecting(stage: Any, given: Callable[[], Tensor], valid: Tensor, score_up: Tensor) -> dict[str, Tensor]:
    return {"out": stage(given(), valid, score_up)[0]}


def _tokens(batch: int, height: int, width: int, channels: int, device: torch.device) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(batch, height, width, channels, generator=generator).to(device)


def _width(stage: nn.Module) -> int:
    """C."""
    blocks: Any = stage.blocks
    return blocks[0].norm1.normalized_shape[0]
