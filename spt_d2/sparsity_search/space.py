"""What is searched: for each stage, pruning ratios of its pairs of blocks that do not decrease."""

import random
from collections.abc import Sequence
from dataclasses import dataclass

Ratios = tuple[tuple[float, ...], ...]


@dataclass(frozen=True)
class RatioSpace:
    """
    Pruning ratios of a backbone, as :meth:`spt_d2.modeling.SparseViT.set_pruning_ratios` takes them.

    Attributes:
        depths: blocks of each stage; every two of them share a ratio.
        choices: values of a ratio, distinct.
    """

    depths: tuple[int, ...]
    choices: tuple[float, ...]

    @property
    def dense(self) -> Ratios:
        """Nothing skipped."""
        return tuple((0.0,) * groups for groups in self._groups())

    def sample(self, rng: random.Random) -> Ratios:
        """Each ratio by itself, then sorted within its stage."""
        return _sorted([[rng.choice(self.choices) for _ in range(groups)] for groups in self._groups()])

    def mutate(self, rng: random.Random, parent: Ratios, probability: float) -> Ratios:
        """The parent, each ratio drawn anew with a probability in [0, 1]."""
        return _sorted(
            [[rng.choice(self.choices) if rng.random() < probability else ratio for ratio in stage] for stage in parent]
        )

    def cross(self, rng: random.Random, first: Ratios, second: Ratios) -> Ratios:
        """Each ratio from one of two parents."""
        return _sorted([[rng.choice(pair) for pair in zip(*stages, strict=True)] for stages in zip(first, second)])

    def _groups(self) -> list[int]:
        return [-(-depth // 2) for depth in self.depths]


def _sorted(stages: Sequence[Sequence[float]]) -> Ratios:
    return tuple(tuple(sorted(stage)) for stage in stages)
