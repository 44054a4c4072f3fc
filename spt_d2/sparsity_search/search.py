"""A search from end to end: measure, evolve, and say what is best."""

import logging
import math
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import yaml

from spt_d2.engine.model_config import ModelConfig
from spt_d2.sparsity_search.evolution import evolve
from spt_d2.sparsity_search.space import Ratios
from spt_d2.sparsity_search.trials import Trials

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class SearchOptions:
    """
    How to search. Defaults are the published ones, but for the number of generations, which has no end there.

    Attributes:
        population, parents, generations, mutation, seed: see :func:`~spt_d2.sparsity_search.evolution.evolve`.
        min_ms, max_ms: bounds of the backbone's milliseconds on one image, both included.

    Raises:
        ValueError: a value out of range.
    """

    max_ms: float = math.inf
    min_ms: float = 0.0
    population: int = 100
    parents: int = 25
    generations: int = 10
    mutation: float = 0.1
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.min_ms < self.max_ms:
            raise ValueError(
                f"SearchOptions expects 0 <= min_ms < max_ms, in milliseconds. Got {self.min_ms} and {self.max_ms}."
            )
        if not 1 <= self.parents <= self.population or self.generations < 1:
            raise ValueError(
                "SearchOptions expects 1 <= parents <= population, and at least 1 generation. "
                f"Got {self.parents}, {self.population} and {self.generations}."
            )
        if not 0.0 <= self.mutation <= 1.0:
            raise ValueError(f"SearchOptions(mutation=) expects a probability in [0, 1]. Got {self.mutation}.")


def search_sparsity(
    config: ModelConfig,
    output_dir: str,
    options: SearchOptions,
    *,
    config_name: str,
    dataset: str,
    weights: str | None = None,
    images: int = 0,
    task: str = "bbox",
    timing_images: int = 4,
    rounds: int = 10,
    warmup: int = 2,
) -> dict[str, Any]:
    """
    Search for the pruning ratios of highest accuracy within bounds of the measured latency, weights unchanged.

    Everything measured is in ``search.json`` in ``output_dir``, from which an interrupted search goes on, and which a
    search with other bounds or of more generations draws on.

    Args:
        config, config_name, dataset, images, task, timing_images, rounds, warmup: see
            :class:`~spt_d2.sparsity_search.trials.Trials`.
        output_dir: for ``search.json`` and predictions.
        options: see there.
        weights: checkpoint; the config's by default. Of a model that was trained at drawn ratios (``SAMPLE_RATIOS``):
            the accuracy of another says little of what it will be after training at the ratios found.

    Returns:
        ``{"dense", "best", "front", "measured", "evaluated"}``: candidates as the file has them, and numbers of
        candidates. All of the whole file, dense among them: ``best`` within the bounds, which is dense where they let
        it in and nothing beats it; ``front`` those that no other beats in both, fastest first.

    Raises:
        ValueError: nothing was found within the bounds, and what :class:`~spt_d2.sparsity_search.trials.Trials` raises.
    """
    trials = Trials(
        config,
        config_name=config_name,
        path=os.path.join(output_dir, "search.json"),
        dataset=dataset,
        weights=config.weights if weights is None else weights,
        images=images,
        task=task,
        timing_images=timing_images,
        rounds=rounds,
        warmup=warmup,
    )
    dense = trials.space.dense
    trials.accuracy(dense)
    logger.info("Searching among %s", asdict(options))
    asked: dict[Ratios, float] = {}

    def satisfy(candidates: Sequence[Ratios]) -> list[bool]:
        asked.update(zip(candidates, trials.milliseconds(candidates)))
        return [options.min_ms <= asked[candidate] <= options.max_ms for candidate in candidates]

    evolve(
        trials.space,
        population=options.population,
        parents=options.parents,
        generations=options.generations,
        mutation=options.mutation,
        seed=options.seed,
        satisfy=satisfy,
        accuracy=trials.accuracy,
    )
    evaluated = [found for found in trials.candidates.values() if found["accuracy"] is not None]
    within = [found for found in evaluated if options.min_ms <= found["latency_ms"] <= options.max_ms]
    if not within:
        raise ValueError(
            f"search_sparsity expects candidates of {options.min_ms:g} to {options.max_ms:g} ms. Got {len(asked)} of "
            f"{min(asked.values()):.2f} to {max(asked.values()):.2f} ms; dense: {trials.record['dense_ms']:.2f} ms.\n"
            "HINT: other bounds; what was measured is kept."
        )
    return {
        "dense": trials.candidates[dense],
        "best": max(within, key=lambda found: (found["accuracy"], -found["latency_ms"])),
        "front": pareto_front(evaluated),
        "measured": len(trials.candidates),
        "evaluated": len(evaluated),
    }


def pareto_front(candidates: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Those that no other equals or beats in both ``latency_ms`` and ``accuracy``, fastest first."""
    front: list[dict[str, Any]] = []
    for candidate in sorted(candidates, key=lambda found: (found["latency_ms"], -found["accuracy"])):
        if not front or candidate["accuracy"] > front[-1]["accuracy"]:
            front.append(candidate)
    return front


def best_yaml(base: str, overrides: Sequence[str], ratios: list[list[float]], comment: str) -> str:
    """
    The text of a yaml config that trains on at fixed ratios.

    Args:
        base: path of the config it stands on, from where it will lie.
        overrides: keys and values in turn, that the search had of the command line; but for the output folder, which
            would be the same for both trainings.
        ratios: for each stage.
        comment: where they come from, a line each.
    """
    keys = dict(zip(overrides[0::2], overrides[1::2]))
    keys.pop("OUTPUT_DIR", None)
    found = {"MODEL.SPARSE_VIT.PRUNING_RATIOS": ratios, "MODEL.SPARSE_VIT.SAMPLE_RATIOS": False}
    content: dict[str, Any] = {"_BASE_": base}
    for key, value in {**keys, **found}.items():
        *nodes, leaf = key.split(".")
        node = content
        for name in nodes:
            node = node.setdefault(name, {})
        node[leaf] = value
    lines = [f"# {line}" for line in comment.splitlines()]
    return "\n".join([*lines, yaml.safe_dump(content, sort_keys=False, default_flow_style=None, width=120)])


def best_overrides(overrides: Sequence[str], ratios: list[list[float]]) -> list[str]:
    """The same for a LazyConfig, as overrides: those that the search had, but for the output folder, and the ratios."""
    node = "model.backbone.bottom_up"
    own = [override for override in overrides if override.partition("=")[0] != "train.output_dir"]
    return [*own, f"{node}.pruning_ratios={str(ratios).replace(' ', '')}", f"{node}.sample_ratios=False"]
