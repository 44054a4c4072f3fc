"""The search space, and the evolution against judges that need no model."""

import itertools
import random

import pytest

from spt_d2.ops.window_selection import spread_ratios
from spt_d2.sparsity_search.evolution import evolve
from spt_d2.sparsity_search.space import RatioSpace

CHOICES = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8)
SPACE = RatioSpace((2, 2, 6, 2), CHOICES)
SETTINGS = {"population": 12, "parents": 4, "generations": 8, "mutation": 0.2, "seed": 1}


def cost(ratios) -> float:
    """Of what is run: stage 1 costs most."""
    return sum(weight * (1 - sum(stage) / len(stage)) for weight, stage in zip((8, 4, 3, 1), ratios))


def goodness(ratios) -> float:
    """Stage 4 must not be skipped, stage 1 may be."""
    return -sum(weight * sum(ratio**2 for ratio in stage) for weight, stage in zip((0.2, 1, 1, 4), ratios))


def is_possible(space: RatioSpace, ratios) -> bool:
    groups = [-(-depth // 2) for depth in space.depths]
    spread = [spread_ratios(stage, depth, "x") for stage, depth in zip(ratios, space.depths)]
    even = [stage for stage in spread if len(stage) % 2 == 0]
    pairs = all(stage[0::2] == stage[1::2] for stage in even)
    values = {ratio for stage in ratios for ratio in stage}
    return [len(stage) for stage in ratios] == groups and values <= set(space.choices) and pairs


@pytest.mark.parametrize("depths", [(2, 2, 6, 2), (2, 2, 18, 2), (1, 1, 3, 2)])
def test_everything_proposed_is_something_that_a_model_can_have(depths):
    space, rng = RatioSpace(depths, CHOICES), random.Random(0)
    assert is_possible(space, space.dense) and {ratio for stage in space.dense for ratio in stage} == {0.0}
    drawn = [space.sample(rng) for _ in range(100)]
    made = [space.mutate(rng, parent, 0.5) for parent in drawn]
    made += [space.cross(rng, *rng.sample(drawn, 2)) for _ in drawn]
    assert all(is_possible(space, ratios) for ratios in drawn + made)
    assert {ratio for ratios in drawn for stage in ratios for ratio in stage} == set(CHOICES)


def test_mutation_changes_the_share_asked_for():
    space, rng = RatioSpace((2,) * 4, tuple(i / 1000 for i in range(1000))), random.Random(0)
    parent = space.sample(rng)
    assert space.mutate(rng, parent, 0.0) == parent
    changed = sum(a != b for _ in range(500) for a, b in zip(space.mutate(rng, parent, 0.3), parent))
    assert 0.25 < changed / 2000 < 0.35
    assert all(a != b for a, b in zip(space.mutate(rng, parent, 1.0), parent))


def test_a_crossing_takes_each_ratio_from_a_parent():
    space, rng = RatioSpace((2,) * 4, CHOICES), random.Random(0)
    first, second = ((0.1,),) * 4, ((0.7,),) * 4
    children = {space.cross(rng, first, second) for _ in range(200)}
    assert children == {tuple((a,) for a in bits) for bits in itertools.product((0.1, 0.7), repeat=4)}


def run(space=SPACE, satisfy=None, accuracy=goodness, **settings):
    asked = []

    def judge(candidates):
        asked.append(list(candidates))
        return [cost(candidate) <= 11 if satisfy is None else satisfy(candidate) for candidate in candidates]

    return evolve(space, satisfy=judge, accuracy=accuracy, **{**SETTINGS, **settings}), asked


def test_generations_get_better_and_all_satisfy():
    found, _ = run(generations=6)
    assert [len(members) for members in found] == [12] * 6
    assert all(cost(ratios) <= 11 and members[ratios] == goodness(ratios) for members in found for ratios in members)
    means = [sum(members.values()) / len(members) for members in found]
    assert means[-1] > means[0] and means[-1] - means[0] > 0.5 * abs(means[0])
    assert max(found[-1].values()) > max(found[0].values())
    for members in found:
        assert len(set(members)) == len(members)


def test_searches_beat_as_many_random_draws():
    space, settings = RatioSpace((2, 2, 18, 2), CHOICES), {"population": 40, "parents": 10, "mutation": 0.1}
    for seed in range(5):
        searched, _ = run(space, seed=seed, **settings)
        drawn, _ = run(space, seed=seed, **{**settings, "generations": 1, "population": 40 * 8})
        assert max(max(members.values()) for members in searched) > max(drawn[0].values())


def test_first_half_are_mutants_and_second_half_crossings_of_the_best():
    found, _ = run(mutation=0.0, satisfy=lambda ratios: True, generations=2)
    parents = sorted(found[0], key=found[0].get, reverse=True)[:4]
    assert set(list(found[1])[: len(parents)]) <= set(parents), "mutants that nothing changed"
    values = [{parent[stage] for parent in parents} for stage in (0, 1, 3)]
    for member in found[1]:
        assert all(member[stage] in known for stage, known in zip((0, 1, 3), values))


def test_the_same_seed_searches_the_same_way_and_another_does_not():
    assert run() == run() and run(seed=2)[1] != run()[1]


def test_a_constraint_that_nothing_satisfies_ends_the_search():
    found, asked = run(satisfy=lambda ratios: False)
    assert found == []
    proposed = [ratios for batch in asked for ratios in batch]
    assert len(proposed) == len(set(proposed)) <= 50 * SETTINGS["population"]


def test_a_space_smaller_than_a_generation_is_searched_whole():
    found, _ = run(RatioSpace((2,), (0.0, 0.4)), satisfy=lambda ratios: True, generations=1)
    assert set(found[0]) == {((0.0,),), ((0.4,),)}


def test_one_parent_has_mutants_only():
    found, _ = run(parents=1, generations=3, satisfy=lambda ratios: True)
    assert len(found) == 3
