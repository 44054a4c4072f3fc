"""
Multiply-adds of DynamicSwin (Rao et al., 2023), which has two costs.

Per block, with N tokens on the map, T of them kept, and the letters of :mod:`spt_d2.analysis.macs`:

    inference    4 C^2 N' + 2 C M^2 N' + 2 C D T + C^2 (N - T)
    training     4 C^2 N' + 2 C M^2 N' + 2 C D N + C^2 N

and a predictor C^2 N + C^2 / 2 N + C^2 / 8 N + C / 2 N, in both. ``executed`` and ``useful`` are inference's, as of
every backbone; :func:`training_macs` counts a training pass, which costs more than dense Swin's. ``dense`` is Swin's.
"""

from typing import Any

from torch import nn

from spt_d2.analysis.hierarchy_macs import BackboneMacs, backbone_macs, even_mask, nominal_tokens, stage_macs
from spt_d2.analysis.macs import BlockTokens, Macs, block_macs, linear_macs
from spt_d2.layers.block import SwinBlock
from spt_d2.layers.dynamic_block import DynamicBlock
from spt_d2.layers.dynamic_stage import DynamicStage


@block_macs.register
def _(block: DynamicBlock, grid_size: tuple[int, int], tokens: BlockTokens | None, place: str) -> Macs:
    if tokens is None:
        raise ValueError(
            f"backbone_macs(kept=) expects the tokens of every block after a predictor. Got none for {place}.\n"
            "HINT: image_macs reads them off a selection, nominal_macs assumes a ratio or takes the own."
        )
    dense = block_macs.dispatch(SwinBlock)(block, grid_size, None, place).dense
    total = grid_size[0] * grid_size[1]
    skipped = total - tokens.kept
    cost = dense - _linears(block.mlp, skipped) + _linears(block.fastmlp, skipped)
    return Macs(dense, cost, cost)


@nominal_tokens.register
def _(block: DynamicBlock, grid_size: tuple[int, int], keep_ratio: float) -> BlockTokens:
    # No pairs of its own: it attends in windows.
    return BlockTokens(int(even_mask(grid_size, keep_ratio).sum()), 0, 0)


@stage_macs.register
def _(stage: DynamicStage, grid_size: tuple[int, int]) -> Macs:
    cost = _linears(stage.score_predictor, grid_size[0] * grid_size[1])
    return Macs(0, cost, cost)


def _linears(module: nn.Module, tokens: float) -> float:
    """Of all linear layers in a module, each over so many tokens."""
    return sum(linear_macs(layer, tokens) for layer in module.modules() if isinstance(layer, nn.Linear))


def training_macs(backbone: Any, tensor_size: tuple[int, int]) -> BackboneMacs:
    """
    The forward pass of training: after a predictor, every token takes both FFNs.

    Args:
        backbone: :class:`~spt_d2.modeling.backbone.DynamicSwin`, or a pyramid over it. A teacher is not counted: it
            costs what dense Swin does.
        tensor_size: (height, width) in pixels.
    """
    stage, (height, width) = _stage(backbone, tensor_size)
    # All of them kept, which leaves the light FFN out.
    every = BlockTokens(height * width, 0, 0)
    dynamic = [(i, block) for i, block in enumerate(stage.blocks) if isinstance(block, DynamicBlock)]
    macs = backbone_macs(backbone, tensor_size, {(stage.stage, i): every for i, _ in dynamic})
    light = sum(_linears(block.fastmlp, height * width) for _, block in dynamic)
    name = f"stage{stage.stage}"
    return BackboneMacs({**macs.by_stage, name: macs.by_stage[name] + Macs(0, light, light)})


def _stage(backbone: Any, tensor_size: tuple[int, int]) -> tuple[DynamicStage, tuple[int, int]]:
    """The stage with predictors, and (H, W) of its tokens."""
    network = getattr(backbone, "bottom_up", backbone)
    for i, stage in enumerate(getattr(network, "layers", [])):
        if isinstance(stage, DynamicStage):
            stride = network.patch_embed.proj.stride[0] * 2**i
            return stage, (-(-tensor_size[0] // stride), -(-tensor_size[1] // stride))
    raise TypeError(f"training_macs(backbone=) expects a backbone with predictors. Got {type(network).__name__}.")
