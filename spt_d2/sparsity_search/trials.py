"""
What is known of candidates: milliseconds and accuracy, measured once, and kept in a file.

Milliseconds are those of the backbone on single images of the data set, timed in turn with the dense backbone. Between
two such runs a machine may change its pace: a candidate's share of the dense backbone's time in its own run, times the
dense backbone's time in the first run, is what compares, and is given.
"""

import contextlib
import datetime
import functools
import hashlib
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from spt_d2.analysis.latency import time_settings
from spt_d2.analysis.model_report import bottom_up
from spt_d2.analysis.sweep import task_accuracies
from spt_d2.compare.start import checkpoint_digest
from spt_d2.engine.model_config import ModelConfig
from spt_d2.evaluation import selection_summary
from spt_d2.modeling import SparseViT
from spt_d2.provenance import code_commit, machine
from spt_d2.sparsity_search.capped import register_capped
from spt_d2.sparsity_search.space import Ratios, RatioSpace
from spt_d2.summary import read_summary, write_summary

logger = logging.getLogger(__name__)


class Trials:
    """
    Measure candidates on one trained model; answers that the file has are not measured again.

    Args:
        config: of a model over :class:`~spt_d2.modeling.SparseViT`.
        config_name: how the file is to name the config.
        path: of the file, a JSON; made if there is none.
        dataset: a registered name.
        weights: checkpoint.
        images: of the data set, evenly spread, on which accuracy is measured; 0 for all.
        task: whose AP is the accuracy, such as ``bbox``.
        timing_images: of the data set, evenly spread, on which milliseconds are measured.
        rounds, warmup: see :func:`~spt_d2.analysis.latency.time_settings`.

    Raises:
        TypeError: a model over another backbone.
        ValueError: the file is of another model, other data or another machine; inputs without labels at a stride at
            which windows may be skipped; no weights.
    """

    def __init__(
        self,
        config: ModelConfig,
        *,
        config_name: str,
        path: str,
        dataset: str,
        weights: str,
        images: int,
        task: str,
        timing_images: int,
        rounds: int,
        warmup: int,
    ):
        self.config, self.path, self.task = config, path, task
        self.rounds, self.warmup = rounds, warmup
        self.model = config.load_model(weights)
        network = bottom_up(self.model)
        if not isinstance(network, SparseViT):
            raise TypeError(
                f"Trials(config=) expects a model over SparseViT. Got {type(network).__name__}.\n"
                "HINT: MODEL.BACKBONE.NAME build_sparse_vit_fpn_backbone; weights of a dense Swin load into it."
            )
        self.network = network
        self.space = RatioSpace(tuple(map(len, network.pruning_ratios)), network.ratio_choices)
        self.inputs = list(config.inputs(dataset, timing_images))
        self._expect_labels()
        head = {
            "config": config_name,
            "config_sha256": hashlib.sha256(config.text().encode()).hexdigest(),
            "weights": weights,
            "weights_sha256": checkpoint_digest(weights),
            "dataset": dataset,
            "images": images,
            "task": task,
            "timing": {"images": timing_images, "rounds": rounds, "warmup": warmup, **machine(config.device)},
        }
        self.record = _begin(path, head)
        os.makedirs(os.path.dirname(os.path.abspath(path)), exist_ok=True)
        self._known = {_ratios(found["ratios"]): found for found in self.record["candidates"]}
        self.folder = os.path.dirname(os.path.abspath(path))
        self.dataset = register_capped(dataset, images, self.folder) if images else dataset

    def _expect_labels(self) -> None:
        strides = {4 * 2**i for i in range(len(self.network.layers))}
        for given in self.inputs:
            labels = given.get("selection_labels")
            if labels is not None and not strides <= set(labels):
                raise ValueError(
                    f"Trials(config=) expects selection labels at strides {sorted(strides)}: any stage may skip "
                    f"windows. Got {sorted(labels)}.\nHINT: name them in INPUT.SPT.STRIDES."
                )

    def milliseconds(self, candidates: Sequence[Ratios]) -> list[float]:
        """Of one forward pass of the backbone at each of the candidates; those not known are timed side by side."""
        new = [candidate for candidate in dict.fromkeys(candidates) if candidate not in self._known]
        if new:
            timed = [self.space.dense, *new]
            settings = [functools.partial(self._at, ratios) for ratios in timed]
            latencies = time_settings(self.model, settings, self.inputs, rounds=self.rounds, warmup=self.warmup)
            dense = latencies[0].median_ms
            if self.record["dense_ms"] is None:
                self.record["dense_ms"] = dense
            for ratios, latency in zip(timed, latencies):
                share = latency.median_ms / dense
                self._remember(ratios, latency_ms=share * self.record["dense_ms"], of_dense=share)
            self._write()
        return [self._known[candidate]["latency_ms"] for candidate in candidates]

    def accuracy(self, candidate: Ratios) -> float:
        """
        AP in percent on the images.

        Raises:
            ValueError: the model does not predict the task, or nothing can be measured.
        """
        self.milliseconds([candidate])
        found = self._known[candidate]
        if found["accuracy"] is None:
            with self._at(candidate):
                results = self.config.evaluate(self.model, self.dataset, os.path.join(self.folder, "inference"))
            figures = results.get("selection", {})
            accuracies = task_accuracies(results)
            value = accuracies.get(self.task)
            if value is None:
                raise ValueError(
                    f"Trials(task=) expects a task with a finite AP on {self.dataset}. Got {self.task!r}; there are "
                    f"{accuracies}."
                )
            found |= {
                "accuracy": value,
                "accuracies": accuracies,
                "by_stage": selection_summary(figures)["by_stage"],
                "macs_g": figures.get("executed_macs_g"),
                "commit": code_commit(),
                "date": datetime.date.today().isoformat(),
            }
            self._write()
        logger.info("%s: %.2f ms, %s AP %.2f", plain(candidate), found["latency_ms"], self.task, found["accuracy"])
        return found["accuracy"]

    @property
    def candidates(self) -> dict[Ratios, dict[str, Any]]:
        """All that the file has, dense among them; ``accuracy`` is None of those that were only timed."""
        return self._known

    @contextlib.contextmanager
    def _at(self, ratios: Ratios) -> Iterator[None]:
        before = self.network.pruning_ratios
        self.network.set_pruning_ratios(ratios)
        try:
            yield
        finally:
            self.network.set_pruning_ratios(before)

    def _remember(self, ratios: Ratios, **values: float) -> None:
        if ratios not in self._known:
            self._known[ratios] = {"ratios": plain(ratios), **values, "accuracy": None}
            self.record["candidates"].append(self._known[ratios])

    def _write(self) -> None:
        write_summary(self.path, self.record)


def plain(ratios: Ratios) -> list[list[float]]:
    """For JSON and yaml."""
    return [list(stage) for stage in ratios]


def _ratios(values: Sequence[Sequence[float]]) -> Ratios:
    return tuple(tuple(stage) for stage in values)


def _begin(path: str, head: Mapping[str, Any]) -> dict[str, Any]:
    """What an earlier run left, or an empty record."""
    found = read_summary(path)
    if found is None:
        if os.path.exists(path):
            raise ValueError(f"Trials(path=) expects a JSON file of a search, or none. Got {path}.")
        return {**head, "dense_ms": None, "candidates": []}
    # Files may have been moved; what counts is what is in them.
    differing = [key for key in head if key not in ("config", "weights") and found.get(key) != head[key]]
    if differing:
        lines = "".join(f"\n  {key}: {found.get(key)} in the file, {head[key]} asked for" for key in differing)
        raise ValueError(
            "Trials(path=) expects a search on the same model, data and machine, or none: nothing else compares. "
            f"Got {path}.{lines}"
        )
    return found
