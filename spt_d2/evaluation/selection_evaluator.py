"""How good a selection is, and what it costs, over a data set."""

import itertools
import json
import logging
import math
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from detectron2.evaluation import DatasetEvaluator
from detectron2.utils import comm
from detectron2.utils.file_io import PathManager
from torch import Tensor, nn

from spt_d2.analysis.hierarchy_macs import image_macs, nominal_macs
from spt_d2.analysis.macs import Macs
from spt_d2.ops.labels import box_labels
from spt_d2.ops.losses import IGNORE, selection_counts
from spt_d2.ops.selection import ImageBlockSelection, ImageSelection

logger = logging.getLogger(__name__)

# COCO's object sizes: the area in pixels^2 up to which an object is small, and medium.
SIZE_LIMITS = (32.0**2, 96.0**2)
SIZES = ("small", "medium", "large")
PERCENTILES = (5, 50, 95)


@dataclass(frozen=True)
class Counts:
    """Tokens, as :class:`~spt_d2.ops.losses.SelectionCounts` defines them, in numbers that add up."""

    tokens: int = 0
    kept: int = 0
    objects: int = 0
    kept_objects: int = 0
    judged: int = 0

    def __add__(self, other: "Counts") -> "Counts":
        return Counts(
            self.tokens + other.tokens,
            self.kept + other.kept,
            self.objects + other.objects,
            self.kept_objects + other.kept_objects,
            self.judged + other.judged,
        )

    def figures(self) -> dict[str, float]:
        """Keep ratio, retention and density, in [0, 1]; one with nothing to divide by is left out."""
        fractions = {
            "keep_ratio": (self.kept, self.tokens),
            "retention": (self.kept_objects, self.objects),
            "density": (self.kept_objects, self.judged),
        }
        return {name: part / whole for name, (part, whole) in fractions.items() if whole}


@dataclass(frozen=True)
class ImageRecord:
    """What is remembered of one image: by stage, by object size, and the multiply-adds of the backbone."""

    image_id: int | str | None
    stages: dict[int, Counts]
    sizes: dict[str, Counts]
    macs: Macs | None

    @property
    def total(self) -> Counts:
        return sum(self.stages.values(), Counts())


class SelectionEvaluator(DatasetEvaluator):
    """
    Keep ratio, retention, density and multiply-adds of a model whose outputs carry their selections (App. B.3).

    Each image's tokens are counted over all its blocks; counts are added over blocks, images and processes before they
    are divided, so figures are weighted by tokens and do not depend on the number of processes. Inputs without
    ``selection_labels`` count for keep ratio and multiply-adds only. Multiply-adds are those of an image as the network
    saw it, padded to its batch.

    An object's retention is the share of the object tokens in its box that were kept. It is given by COCO's object
    sizes where inputs have ``selection_boxes`` ((n, 4) XYXY in pixels of the network input) and ``selection_areas``
    ((n,), pixels^2 of the original annotation), as those of :class:`~spt_d2.data.SelectionDatasetMapper` do.

    Args:
        backbone: whose multiply-adds are counted (Swin, SPT, ViT, or a pyramid over one of them); None leaves them out.
        distributed: whether to gather from all processes; False evaluates what this process saw.
        output_dir: where to write ``selection_results.json`` with the results and a row per image; None writes nothing.

    Raises:
        TypeError: a backbone whose multiply-adds cannot be counted.
    """

    def __init__(self, backbone: nn.Module | None = None, distributed: bool = True, output_dir: str | None = None):
        if backbone is not None:
            # A backbone that cannot be counted is to fail now, not after the first image.
            nominal_macs(backbone, (64, 64), 1.0)
        self.backbone, self.distributed, self.output_dir = backbone, distributed, output_dir
        self._records: list[ImageRecord] = []

    def reset(self) -> None:
        """Forget all images."""
        self._records = []

    def process(self, inputs: list[dict], outputs: list[dict]) -> None:
        """
        Args:
            inputs: of the model; ``selection_labels``, ``selection_boxes`` with ``selection_areas``, and ``image_id``
                are read where present.
            outputs: of the model, with an :class:`~spt_d2.ops.selection.ImageSelection` under ``selection``.

        Raises:
            ValueError: an output without ``selection``; labels of another size than the selection, or none at a stride
                that selects.
        """
        for given, output in zip(inputs, outputs):
            if "selection" not in output:
                raise ValueError(
                    f"SelectionEvaluator expects 'selection' in every output. Got {sorted(output)}.\n"
                    "HINT: MODEL.SPT.RETURN_SELECTIONS True with a Selection... meta-architecture; test-time "
                    "augmentation returns none, leave this evaluator out there."
                )
            self._records.append(self._record(given, output["selection"]))

    def _record(self, given: dict, selection: ImageSelection) -> ImageRecord:
        stages: dict[int, Counts] = {}
        sizes: dict[str, Counts] = {}
        decided = [block for block in selection.blocks if block.keep_mask is not None]
        for stage, group in itertools.groupby(decided, key=lambda block: block.stage):
            blocks = list(group)
            keep = _keep_masks(blocks)
            label = _label(given, blocks[0].stride, keep.shape[-2:])
            stages[stage] = _count(keep, label)
            for size, tokens in _objects(given, blocks[0].stride, keep.shape[-2:]):
                # Outside its box nothing is asked of an object: what remains are the object tokens in it.
                sizes[size] = sizes.get(size, Counts()) + _count(keep, torch.where(tokens, label, IGNORE))
        macs = None if self.backbone is None else image_macs(self.backbone, selection).total
        return ImageRecord(given.get("image_id"), stages, sizes, macs)

    def evaluate(self) -> dict[str, dict[str, float]]:
        """
        Returns:
            ``{"selection": figures}`` on the main process, ``{}`` on others and where nothing was processed.

            * ``keep_ratio``, ``retention``, ``density``: fractions in [0, 1] over all stages; each also by stage, as
              ``keep_ratio/stage3``; ``retention/small``, ``/medium``, ``/large`` by object size.
            * ``image_keep_ratio/mean``, ``/p5``, ``/p50``, ``/p95``: over images, where the others are over tokens.
            * ``executed_macs_g``, ``useful_macs_g``, ``dense_macs_g``: multiply-adds of the backbone in units of 10^9,
              means over images; see :mod:`spt_d2.analysis.macs`.

            A figure of which nothing is known (no labels, no object of that size, no block that selects) is left out.
        """
        records = self._records
        if self.distributed:
            comm.synchronize()
            records = list(itertools.chain.from_iterable(comm.gather(records, dst=0)))
            if not comm.is_main_process():
                return {}
        if not records:
            logger.warning("SelectionEvaluator did not receive any image.")
            return {}
        figures = _flat_figures(records)
        logger.info("Selection: %s", ", ".join(f"{name} {value:.4g}" for name, value in figures.items()))
        if self.output_dir:
            _write(self.output_dir, figures, records)
        return {"selection": figures}


def selection_summary(figures: Mapping[str, float]) -> dict:
    """
    The figures of :meth:`SelectionEvaluator.evaluate`, nested by stage.

    Args:
        figures: the value under ``selection``.

    Returns:
        ``{"keep_ratio", "retention", "density", "by_stage": {"stage3": {the same three}, ...}}``, fractions weighted by
        tokens; None where nothing is known.
    """
    names = ("keep_ratio", "retention", "density")
    stages = [key.removeprefix("keep_ratio/") for key in figures if key.startswith("keep_ratio/stage")]
    return {
        **{name: figures.get(name) for name in names},
        "by_stage": {stage: {name: figures.get(f"{name}/{stage}") for name in names} for stage in stages},
    }


def _keep_masks(blocks: list[ImageBlockSelection]) -> Tensor:
    """(blocks, h, w) bool on the host; stacked first, so that a stage is one copy from the device."""
    return torch.stack([block.keep_mask for block in blocks if block.keep_mask is not None]).cpu()


def _label(given: dict, stride: int, grid_size: torch.Size) -> Tensor:
    """(h, w) uint8 selection labels; all of them unknown where the input has none."""
    labels = given.get("selection_labels")
    if labels is None:
        return torch.full(grid_size, IGNORE, dtype=torch.uint8)
    if stride not in labels:
        raise ValueError(
            f"SelectionEvaluator expects selection labels at stride {stride}. Got strides {sorted(labels)}.\n"
            "HINT: name it in INPUT.SPT.STRIDES."
        )
    label = labels[stride].cpu()
    if label.shape != grid_size:
        raise ValueError(
            f"SelectionEvaluator expects labels and selections of one size at stride {stride}.\n"
            f"  selection: {tuple(grid_size)}\n  label    : {tuple(label.shape)}"
        )
    return label


def _count(keep: Tensor, label: Tensor) -> Counts:
    """Of (blocks, h, w) decisions against one (h, w) label; padding is already cut off."""
    counts = selection_counts(keep, label.expand_as(keep), torch.ones_like(keep))
    return Counts(
        tokens=int(counts.tokens),
        kept=int(counts.kept),
        objects=int(counts.objects),
        kept_objects=int(counts.kept_objects),
        judged=int(counts.judged),
    )


def _objects(given: dict, stride: int, grid_size: torch.Size) -> Iterator[tuple[str, Tensor]]:
    """The COCO size of each object, and (h, w) bool: the tokens that its box overlaps. Boxes are optional."""
    if "selection_boxes" not in given or "selection_areas" not in given:
        return
    boxes, areas = given["selection_boxes"].cpu(), given["selection_areas"].tolist()
    if boxes.shape != (len(areas), 4):
        raise ValueError(
            "SelectionEvaluator expects one area for each box.\n"
            f"  selection_boxes: {tuple(boxes.shape)}\n  selection_areas: {(len(areas),)}"
        )
    size = (grid_size[0] * stride, grid_size[1] * stride)
    for i, area in enumerate(areas):
        bucket = SIZES[sum(area >= limit for limit in SIZE_LIMITS)]
        yield bucket, box_labels(boxes[i : i + 1], size, stride).bool()


def _flat_figures(records: list[ImageRecord]) -> dict[str, float]:
    figures = sum((record.total for record in records), Counts()).figures()
    for stage in sorted({stage for record in records for stage in record.stages}):
        counts = sum((record.stages.get(stage, Counts()) for record in records), Counts())
        # Not stage3/keep_ratio: in the event storage that is the curve of training, selection/stage3/keep_ratio.
        figures |= {f"{name}/stage{stage}": value for name, value in counts.figures().items()}
    for size in SIZES:
        counts = sum((record.sizes.get(size, Counts()) for record in records), Counts())
        if counts.objects:
            figures[f"retention/{size}"] = counts.figures()["retention"]
    ratios = [record.total.kept / record.total.tokens for record in records if record.total.tokens]
    if ratios:
        figures["image_keep_ratio/mean"] = _mean(ratios)
        for percent, value in zip(PERCENTILES, np.percentile(ratios, PERCENTILES)):
            figures[f"image_keep_ratio/p{percent}"] = float(value)
    counted = [record.macs for record in records if record.macs is not None]
    if counted:
        for name in ("executed", "useful", "dense"):
            figures[f"{name}_macs_g"] = _mean([getattr(macs, name) for macs in counted]) / 1e9
    return figures


def _mean(values: list[float]) -> float:
    """Summed exactly, or the last digit would depend on how images were dealt out to processes."""
    return math.fsum(values) / len(values)


def _write(output_dir: str, figures: dict[str, float], records: list[ImageRecord]) -> None:
    images = [
        {
            "image_id": record.image_id,
            **record.total.figures(),
            **({} if record.macs is None else {f"{name}_macs": n for name, n in record.macs.as_dict().items()}),
        }
        for record in records
    ]
    PathManager.mkdirs(output_dir)
    with PathManager.open(os.path.join(output_dir, "selection_results.json"), "w") as file:
        json.dump({"selection": figures, "images": images}, file)
