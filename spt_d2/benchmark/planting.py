"""
Scores planted in the gates, so that every block keeps exactly the wanted share of tokens, in clusters as objects are.

A benchmark has no trained gates, and random ones keep whatever they keep. Here each gate is replaced by one that
computes all that it did, the product of every normalised token with a weight vector in float32, and adds a map of
logits to the result. Its own weights are zero, so the map decides. What follows is the code that users run: the maximum
with the scores of the stage before, the keep rule of ``SELECT gate``, packing. What is timed is thus a user's path, and
one addition of B * H * W numbers for each gate: not less than a user waits for.

The map's kept tokens are blobs of several sizes. The maximum with the pooled scores of the stage before (eq. 4) can
only add tokens; for the shares to stay exact, a stage's kept tokens lie within the cells that the next stage keeps.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from spt_d2.layers.block import SelectPackBlock
from spt_d2.layers.gate import SelectionGate
from spt_d2.layers.stage import SelectPackStage
from spt_d2.modeling import SPT
from spt_d2.ops.selection import BlockSelection

# One share for all stages that select, or {stage: share}.
KeepRatio = float | Mapping[int, float]
# Objects in an image, and the ratio of the largest diameter to the smallest. COCO's images have 7 on average.
BLOBS = 8
DIAMETERS = 8.0
# Distance of the planted logits from the border of the keep rule: the least, and the most.
MARGIN = (0.5, 3.0)


def blob_field(grid_size: tuple[int, int], seed: int) -> Tensor:
    """
    How deep within a blob, or how far from all, each cell is; the cells above any level are blobs of several sizes.

    Args:
        grid_size: (H, W).
        seed: of the blobs' places and shapes, which do not depend on the grid.

    Returns:
        (H, W) float64 on the CPU, at most 1.
    """
    generator = torch.Generator().manual_seed(seed)
    centre_y, centre_x, shape = torch.rand(3, BLOBS, 1, 1, generator=generator, dtype=torch.float64)
    radius = DIAMETERS ** torch.linspace(0.0, 1.0, BLOBS, dtype=torch.float64).view(-1, 1, 1)
    stretch = 2.0 ** (shape - 0.5)
    height, width = grid_size
    y = ((torch.arange(height, dtype=torch.float64) + 0.5) / height)[:, None]
    x = ((torch.arange(width, dtype=torch.float64) + 0.5) / width)[None, :]
    distance = torch.hypot((y - centre_y) * stretch, (x - centre_x) / stretch)
    return (1.0 - distance / radius).amax(dim=0)


def share(keep_ratio: float, tokens: int) -> int:
    """ceil(keep_ratio * tokens), in whole millionths as ``SELECT topk`` counts."""
    return (tokens * round(keep_ratio * 1_000_000) + 999_999) // 1_000_000


def planted_ranks(
    image_size: tuple[int, int], keep_ratios: Mapping[int, float], seed: int, nested: bool = True
) -> dict[int, Tensor]:
    """
    For each stage, which tokens are kept, and the order of all of them.

    Args:
        image_size: (height, width) in pixels, multiples of the largest stride.
        keep_ratios: ``{stage: share in [0, 1]}``.
        seed: of the blobs.
        nested: whether kept tokens of a stage must lie in cells that the next of them keeps.

    Returns:
        ``{stage: (H, W)}`` float64: in (0, 1] for kept tokens, the deepest within a blob nearest to 1, and in [-1, 0)
        for others.

    Raises:
        ValueError: shares out of range; sizes that do not halve evenly; a stage that is to keep more than what the next
            leaves room for.
    """
    if not all(0 <= keep_ratio <= 1 for keep_ratio in keep_ratios.values()):
        raise ValueError(f"planted_ranks(keep_ratios=) expects shares in [0, 1]. Got {dict(keep_ratios)}.")
    ranks: dict[int, Tensor] = {}
    coarser: int | None = None
    for stage in sorted(keep_ratios, reverse=True):
        stride = 2 ** (stage + 1)
        if any(length % stride for length in image_size):
            raise ValueError(f"A planted score map expects a multiple of {stride} pixels. Got {image_size}.")
        height, width = image_size[0] // stride, image_size[1] // stride
        field = blob_field((height, width), seed)
        kept, room = share(keep_ratios[stage], height * width), height * width
        if nested and coarser is not None:
            times = 2 ** (coarser - stage)
            within = (ranks[coarser] > 0).repeat_interleave(times, 0).repeat_interleave(times, 1)
            # Above every field value, in the same order.
            field, room = torch.where(within, field + 1e6, field), int(within.sum())
        if kept > room:
            raise ValueError(
                f"Stage {stage} cannot keep {keep_ratios[stage]:g} of its tokens where stage {coarser} keeps "
                f"{keep_ratios[coarser or 0]:g}: scores of a stage are handed on by maximum (eq. 4).\n"
                "HINT: ratios that do not fall from stage to stage, or MODEL.SPT.MULTI_SCALE False."
            )
        order = torch.argsort(field.flatten(), descending=True, stable=True)
        values = torch.empty(height * width, dtype=torch.float64)
        values[order[:kept]] = 1.0 - torch.arange(kept, dtype=torch.float64) / max(kept, 1)
        rest = height * width - kept
        values[order[kept:]] = -(torch.arange(rest, dtype=torch.float64) + 1.0) / max(rest, 1)
        ranks[stage], coarser = values.view(height, width), stage
    return ranks


class PlantedGate(SelectionGate):
    """
    A gate that adds a planted map to its logits; its own weights are zero.

    Args:
        dim: C.
    """

    def __init__(self, dim: int):
        super().__init__(dim, bias=0.0)
        self.planted: Tensor | None = None

    def forward(self, normed: Tensor, x: Tensor | None = None, norm: nn.LayerNorm | None = None) -> Tensor:
        """As :meth:`SelectionGate.forward`."""
        if self.planted is None or self.planted.shape != normed.shape[:3]:
            planted = None if self.planted is None else tuple(self.planted.shape)
            raise ValueError(f"PlantedGate expects a map of shape {tuple(normed.shape[:3])}. Got {planted}.")
        return super().forward(normed, x, norm) + self.planted


class Planting:
    """
    Planted gates in place of all gates of a backbone, in eval and in training.

    Args:
        backbone: an SPT; its gates are replaced for good. Under noise a planted score does not decide alone, so it must
            train without.

    Raises:
        ValueError: its keep rule has noise, or keeps everything (threshold 0), or is not the gates'.
    """

    def __init__(self, backbone: SPT):
        blocks = [module for module in backbone.modules() if isinstance(module, SelectPackBlock)]
        options = blocks[0].options
        if options.select != "gate" or options.noise != "none" or options.threshold == 0.0:
            raise ValueError(
                "Planting(backbone=) expects gates that decide by their scores.\n"
                f"  select   : {options.select} (expected gate)\n  noise    : {options.noise} (expected none)\n"
                f"  threshold: {options.threshold} (expected above 0)"
            )
        self.border = options.tau * math.log(options.threshold / (1.0 - options.threshold))
        # Holds at inference, where shares are checked.
        self.token_budget = options.token_budget
        self.nested = backbone.multi_scale
        self.stages: list[int] = []
        self._gates: list[tuple[int, PlantedGate]] = []
        self._maps: dict[tuple, dict[int, Tensor]] = {}
        for number, stage in enumerate(backbone.layers, start=1):
            # A gate on the stage's output, and those of its blocks.
            holders: list[Any] = [gate for name, gate in backbone.output_gates.items() if name == f"stage{number}"]
            if isinstance(stage, SelectPackStage):
                self.stages.append(number)
                holders += [block for block in stage.blocks if isinstance(block.gate, SelectionGate)]
            for holder in holders:
                weight = holder.gate.proj.weight
                holder.gate = PlantedGate(weight.shape[1]).to(weight)
                self._gates.append((number, holder.gate))

    def ratios(self, keep_ratio: KeepRatio) -> dict[int, float]:
        """
        ``{stage: share}`` of the stages that select.

        Raises:
            ValueError: a mapping that does not name those stages.
        """
        if not isinstance(keep_ratio, Mapping):
            return dict.fromkeys(self.stages, float(keep_ratio))
        if sorted(keep_ratio) != self.stages:
            raise ValueError(f"keep_ratio expects one share for each of stages {self.stages}. Got {dict(keep_ratio)}.")
        return dict(keep_ratio)

    def use(self, keep_ratio: KeepRatio, batch: int, image_size: tuple[int, int]) -> None:
        """
        Plant the maps of a share, for inputs of one shape; every image of a batch has blobs of its own.

        Args:
            keep_ratio: in [0, 1], one for all stages or ``{stage: share}``.
            batch: B.
            image_size: (height, width) in pixels, multiples of the largest stride.
        """
        ratios = self.ratios(keep_ratio)
        key = (tuple(sorted(ratios.items())), batch, image_size)
        if key not in self._maps:
            # A gate on a stage's output decides nothing; its scores must stay within what the next stage keeps.
            wanted = {stage: ratios[stage] if stage in ratios else ratios[stage + 1] for stage, _ in self._gates}
            device = self._gates[0][1].proj.weight.device
            ranks = [planted_ranks(image_size, wanted, seed, self.nested) for seed in range(batch)]
            self._maps[key] = {
                stage: self._logits(torch.stack([image[stage] for image in ranks])).to(device) for stage in wanted
            }
        for stage, gate in self._gates:
            gate.planted = self._maps[key][stage]

    def _logits(self, ranks: Tensor) -> Tensor:
        least, most = MARGIN
        return (self.border + ranks.sign() * least + ranks * (most - least)).float()

    def check(self, selections: Sequence[BlockSelection], keep_ratio: KeepRatio) -> None:
        """
        Raise RuntimeError where a block did not keep exactly the share that was planted, or the budget if that is less.

        Args:
            selections: of a forward pass at inference.
            keep_ratio: as planted.
        """
        ratios = self.ratios(keep_ratio)
        for selection in selections:
            if selection.keep_mask is None:
                continue
            counts = selection.keep_mask.flatten(1).sum(dim=1).tolist()
            wanted = share(ratios[selection.stage], selection.keep_mask[0].numel())
            wanted = min(wanted, self.token_budget or wanted)
            if any(count != wanted for count in counts):
                raise RuntimeError(
                    f"Stage {selection.stage}, block {selection.block} was to keep {wanted} tokens of each image. "
                    f"It kept {counts}."
                )
