"""The evolution itself: what is proposed, and what becomes of it. It knows nothing of models."""

import logging
import random
from collections.abc import Callable, Sequence

from spt_d2.sparsity_search.space import Ratios, RatioSpace

logger = logging.getLogger(__name__)

# Proposals of a generation per member wanted, after which it stays smaller: few may be fast enough, or left to propose.
PATIENCE = 50


def evolve(
    space: RatioSpace,
    *,
    population: int,
    parents: int,
    generations: int,
    mutation: float,
    seed: int,
    satisfy: Callable[[Sequence[Ratios]], Sequence[bool]],
    accuracy: Callable[[Ratios], float],
) -> list[dict[Ratios, float]]:
    """
    Evolve ratios of high accuracy among those that satisfy a constraint.

    The first generation is drawn. Of each, the most accurate become parents of the next, one half of which are mutants
    of a parent and the other half crossings of two. Parents themselves do not live on, as published. Within a
    generation nothing is proposed twice.

    The same answers lead to the same proposals: a search that was interrupted is gone through again, with the answers
    that are known.

    Args:
        space: of what is proposed.
        population: members of a generation.
        parents: of them, at least 1.
        generations: the first one included.
        mutation: probability that a mutant's ratio is drawn anew.
        seed: of the draws.
        satisfy: whether each of several candidates may be a member.
        accuracy: of a member; more is better.

    Returns:
        the generations, each ``{ratios: accuracy}`` in the order in which they were found; a generation that nothing
        satisfies ends the search and is not among them.
    """
    rng = random.Random(seed)
    ancestors: list[Ratios] = []
    found: list[dict[Ratios, float]] = []

    def propose(number: int) -> Ratios:
        if not ancestors:
            return space.sample(rng)
        if number < population // 2 or len(ancestors) == 1:
            return space.mutate(rng, rng.choice(ancestors), mutation)
        return space.cross(rng, *rng.sample(ancestors, 2))

    for generation in range(generations):
        members: dict[Ratios, float] = {}
        proposed: set[Ratios] = set()
        patience = PATIENCE * population
        while len(members) < population and patience > 0:
            batch: list[Ratios] = []
            while len(members) + len(batch) < population and patience > 0:
                patience -= 1
                candidate = propose(len(members) + len(batch))
                if candidate not in proposed:
                    proposed.add(candidate)
                    batch.append(candidate)
            for candidate, good in zip(batch, satisfy(batch) if batch else []):
                if good:
                    members[candidate] = accuracy(candidate)
        logger.info("Generation %d of %d: %d members", generation + 1, generations, len(members))
        if not members:
            break
        found.append(members)
        # Sorting is stable: of equals the first found.
        ancestors = sorted(members, key=lambda member: -members[member])[:parents]
    return found
