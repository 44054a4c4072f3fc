"""What a model consists of and what its backbone costs, at an assumed keep ratio or on real images."""

import itertools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from spt_d2.analysis.hierarchy_macs import BackboneMacs, image_macs, takes_decisions
from spt_d2.analysis.macs import Macs
from spt_d2.layers.block import SelectPackBlock
from spt_d2.ops.selection import split_selections

PERCENTILES = (5, 50, 95)
COUNTS = ("dense", "executed", "useful")


def bottom_up(model: nn.Module) -> Any:
    """
    The network whose multiply-adds are counted: a detector's backbone, without the pyramid on it.

    Raises:
        TypeError: a model without a backbone.
    """
    backbone = getattr(model, "backbone", None)
    if not isinstance(backbone, nn.Module):
        raise TypeError(f"bottom_up(model=) expects a model with a backbone. Got {type(model).__name__}.")
    return getattr(backbone, "bottom_up", backbone)


def parameter_counts(model: nn.Module) -> dict[str, int]:
    """``{"backbone", "model"}``: of the backbone without a pyramid on it, and of all; shared ones count once."""
    return {
        "backbone": sum(parameter.numel() for parameter in bottom_up(model).parameters()),
        "model": sum(parameter.numel() for parameter in model.parameters()),
    }


def selects(model: nn.Module) -> bool:
    """Whether the model has blocks that spend more on some tokens than on others."""
    return any(takes_decisions(module) for module in model.modules())


def selecting_stages(model: nn.Module) -> list[int]:
    """Numbers, from 1, of the backbone's stages with such blocks; those of a plain ViT are one stage."""
    network = bottom_up(model)
    stages = getattr(network, "layers", [network])
    return [
        number
        for number, stage in enumerate(stages, start=1)
        if any(takes_decisions(block) for block in getattr(stage, "blocks", ()))
    ]


def keep_ratio_problem(model: nn.Module, keep_ratio: float | Mapping[int, float]) -> str | None:
    """
    What is wrong with keep ratios for this model, in words that follow "expects"; None if they fit.

    A dense backbone takes one number, which changes nothing.
    """
    ratios = list(keep_ratio.values()) if isinstance(keep_ratio, Mapping) else [keep_ratio]
    if not all(0 <= ratio <= 1 for ratio in ratios):
        return f"fractions from 0 to 1. Got {', '.join(f'{ratio:g}' for ratio in ratios)}."
    stages = selecting_stages(model)
    if isinstance(keep_ratio, Mapping) and sorted(keep_ratio) != stages:
        wanted = ",".join(f"{stage}=R" for stage in stages)
        what = f"one number, or {wanted}: these stages select" if stages else "one number: no stage selects"
        return f"{what}. Got ratios for {', '.join(map(str, keep_ratio))}."
    return None


@dataclass(frozen=True)
class ImageCost:
    """
    What the backbone did on one image.

    Attributes:
        tensor_size: (height, width) in pixels of the network input.
        macs: multiply-adds, from the tokens that were really attended to.
        tokens: ``{stage: (kept, of how many)}``, over the stage's blocks; empty for a dense backbone.
    """

    tensor_size: tuple[int, int]
    macs: BackboneMacs
    tokens: dict[int, tuple[int, int]]


@torch.no_grad()
def image_costs(model: nn.Module, inputs: Iterable[dict]) -> list[ImageCost]:
    """
    Run the backbone on images, one at a time as in evaluation, and count each.

    Args:
        model: a meta-architecture with its weights, in evaluation mode.
        inputs: as :meth:`spt_d2.engine.model_config.ModelConfig.inputs` gives them.
    """
    # Under a meta-architecture of Detectron2's own the backbone is called without sizes, and takes no labels.
    informed = hasattr(model, "select_features")
    costs = []
    for given in inputs:
        images = model.preprocess_image([given])
        if informed:
            _, selections, _ = model.select_features(images, [given])
        else:
            _, selections = model.backbone.forward_with_selections(images.tensor)
        size = (images.tensor.shape[-2], images.tensor.shape[-1])
        (selection,) = split_selections(selections, images.image_sizes if informed else [size], size)
        deciding = [block for block in selection.blocks if block.keep_mask is not None]
        tokens = {
            stage: (sum(block.kept for block in blocks), sum(block.score.numel() for block in blocks))
            for stage, blocks in (
                (stage, list(group)) for stage, group in itertools.groupby(deciding, key=lambda block: block.stage)
            )
        }
        costs.append(ImageCost(size, image_macs(bottom_up(model), selection), tokens))
    return costs


@dataclass(frozen=True)
class DataSetCost:
    """
    :class:`ImageCost` over the images of a data set.

    Attributes:
        num_images: number of them.
        mean: multiply-adds, means over the images.
        percentiles: ``{"p5": macs, ...}`` of the backbone's total, each count's percentile over the images.
        keep_ratio: share of all tokens kept, all stages together; 1 for a dense backbone.
        keep_ratio_by_stage: ``{stage: share}``.
        tensor_size: mean (height, width) in pixels of the network input.
    """

    num_images: int
    mean: BackboneMacs
    percentiles: dict[str, Macs]
    keep_ratio: float
    keep_ratio_by_stage: dict[int, float]
    tensor_size: tuple[float, float]


def summarize_costs(costs: list[ImageCost]) -> DataSetCost:
    """
    Bring the images of a data set together. Ratios are weighted by tokens, multiply-adds by images.

    Raises:
        ValueError: no image.
    """
    if not costs:
        raise ValueError("summarize_costs(costs=) expects at least one image. Got none.")
    number = len(costs)
    by_stage = {
        name: Macs(*(sum(getattr(cost.macs.by_stage[name], count) for cost in costs) / number for count in COUNTS))
        for name in costs[0].macs.by_stage
    }
    totals = {count: [getattr(cost.macs, count) for cost in costs] for count in COUNTS}
    kept = {stage: tuple(sum(cost.tokens[stage][i] for cost in costs) for i in range(2)) for stage in costs[0].tokens}
    tokens = sum(total for _, total in kept.values())
    return DataSetCost(
        num_images=number,
        mean=BackboneMacs(by_stage),
        percentiles={
            f"p{percent}": Macs(*(float(np.percentile(totals[count], percent)) for count in COUNTS))
            for percent in PERCENTILES
        },
        keep_ratio=sum(part for part, _ in kept.values()) / tokens if tokens else 1.0,
        keep_ratio_by_stage={stage: part / total for stage, (part, total) in kept.items()},
        tensor_size=(
            sum(cost.tensor_size[0] for cost in costs) / number,
            sum(cost.tensor_size[1] for cost in costs) / number,
        ),
    )


def stage_rows(model: nn.Module) -> list[dict[str, Any]]:
    """
    The backbone, stage by stage.

    Returns:
        ``{"stage", "stride", "channels", "blocks", "kind", "heads", "parameters"}`` each; parameters of a stage include
        the merging that follows it. Empty for a backbone of another build.
    """
    network = bottom_up(model)
    if not hasattr(network, "patch_embed"):
        return []
    stride = network.patch_embed.proj.stride[0]
    rows = []
    for number, stage in enumerate(getattr(network, "layers", [network]), start=1):
        blocks = list(stage.blocks)
        deciding = [block for block in blocks if takes_decisions(block)]
        kind = "select and pack" if any(isinstance(block, SelectPackBlock) for block in deciding) else "select"
        if len(deciding) < len(blocks):
            kind = f"{len(deciding)} {kind}" if deciding else "dense"
        rows.append(
            {
                "stage": number,
                "stride": stride * 2 ** (number - 1),
                "channels": blocks[0].attn.proj.in_features,
                "blocks": len(blocks),
                "kind": kind,
                "heads": blocks[0].attn.num_heads,
                "parameters": sum(parameter.numel() for parameter in stage.parameters()),
            }
        )
    return rows


def macs_rows(macs: BackboneMacs) -> list[list[str]]:
    """Text cells in units of 10^9: one row per stage and the total, columns dense, executed, useful and saved."""
    rows = []
    for name, counts in [*macs.by_stage.items(), ("backbone", macs.total)]:
        # Added to 0, a rounded minus zero loses its sign.
        saved = 0.0 + round(100 * (1 - counts.executed / counts.dense), 1)
        rows.append([name, *(f"{getattr(counts, count) / 1e9:.3f}" for count in COUNTS), f"{saved:.1f} %"])
    return rows


def text_table(header: list[str], rows: Iterable[Iterable[object]]) -> str:
    """Columns aligned, the first to the left and the others to the right."""
    cells = [header, *([str(cell) for cell in row] for row in rows)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(header))]
    lines = [
        "   ".join([row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:]))]).rstrip()
        for row in cells
    ]
    return "\n".join([lines[0], "-" * max(map(len, lines)), *lines[1:]])


def parse_keep_ratio(text: str) -> float | dict[int, float]:
    """
    Keep ratios of a command line: one for all stages (``0.23``), or one per stage (``3=0.23,4=0.25``).

    Raises:
        ValueError: something else.
    """
    try:
        if "=" not in text:
            return float(text)
        pairs = [part.split("=") for part in text.split(",")]
        return {int(stage): float(ratio) for stage, ratio in pairs}
    except ValueError as error:
        raise ValueError(
            f"A keep ratio expects one number, or STAGE=NUMBER,... for each stage that selects. Got {text!r}."
        ) from error


def plain_keep_ratio(keep_ratio: float | Mapping[int, float]) -> float | dict[str, float]:
    """For JSON: a number, or ``{"stage3": number, ...}``."""
    if isinstance(keep_ratio, Mapping):
        return {f"stage{stage}": ratio for stage, ratio in keep_ratio.items()}
    return keep_ratio
