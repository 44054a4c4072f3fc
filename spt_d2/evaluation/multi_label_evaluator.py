"""Mean average precision of multi-label classification (Tables 5 and 7)."""

import itertools
import json
import logging
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from detectron2.data import MetadataCatalog
from detectron2.evaluation import DatasetEvaluator
from detectron2.utils import comm
from detectron2.utils.file_io import PathManager

from spt_d2.evaluation.average_precision import FLAVOURS, average_precision

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ImageRecord:
    """What is remembered of one image: (K,) float64 logits; (K,) bool, whether it shows a class, and is open on it."""

    image_id: int | str | None
    logits: np.ndarray
    positive: np.ndarray
    ignored: np.ndarray


class MultiLabelEvaluator(DatasetEvaluator):
    """
    Average precision per class over the images of a data set, and its mean over classes, in percent.

    A class of an image that is ignored (in VOC: of which it shows difficult objects only) is neither a hit nor a miss,
    as VOC's devkit has it. A class that no image shows has no average precision and is left out of the mean.

    Args:
        dataset_name: a registered data set; its ``thing_classes`` name the results.
        flavour: of average precision, one of voc10, voc07, step; see
            :func:`spt_d2.evaluation.average_precision.average_precision`.
        distributed: whether to gather from all processes; False evaluates what this process saw.
        output_dir: where to write ``multi_label_results.json`` with the results and a row per image; None writes
            nothing.

    Raises:
        ValueError: an unknown flavour.
    """

    def __init__(
        self, dataset_name: str, flavour: str = "voc10", distributed: bool = True, output_dir: str | None = None
    ):
        if flavour not in FLAVOURS:
            raise ValueError(f"MultiLabelEvaluator(flavour=) expects one of {FLAVOURS}. Got {flavour!r}.")
        self.dataset_name, self.flavour = dataset_name, flavour
        self.distributed, self.output_dir = distributed, output_dir
        self._records: list[ImageRecord] = []

    def reset(self) -> None:
        """Forget all images."""
        self._records = []

    def process(self, inputs: list[dict], outputs: list[dict]) -> None:
        """
        Args:
            inputs: of the model, with ``labels`` and ``labels_ignored``, (K,), as
                :class:`~spt_d2.data.MultiLabelDatasetMapper` makes them; ``image_id`` is read where present.
            outputs: of the model, with ``logits``, (K,).

        Raises:
            ValueError: one of these is missing.
        """
        for given, output in zip(inputs, outputs):
            if "logits" not in output or not {"labels", "labels_ignored"} <= given.keys():
                raise ValueError(
                    "MultiLabelEvaluator expects 'labels' and 'labels_ignored' in every input, 'logits' in every "
                    f"output.\n  input : {sorted(given)}\n  output: {sorted(output)}\n"
                    "HINT: use MultiLabelDatasetMapper on a data set with annotations, and a MultiLabelClassifier."
                )
            self._records.append(
                ImageRecord(
                    given.get("image_id"),
                    output["logits"].double().cpu().numpy(),
                    given["labels"].cpu().numpy() > 0,
                    given["labels_ignored"].cpu().numpy(),
                )
            )

    def evaluate(self) -> dict[str, dict[str, float]]:
        """
        Returns:
            ``{"multi_label": figures}`` on the main process, ``{}`` on others and where nothing was processed. In
            percent: ``mAP`` of the flavour asked for, ``mAP_voc07`` and the like of the two others, and ``AP-person``
            and the like by class. A class that no image shows has none.

        Raises:
            ValueError: the data set has another number of classes than the model.
        """
        records = self._records
        if self.distributed:
            comm.synchronize()
            # Each process has a run of consecutive images: equal scores keep the order of the data set.
            records = list(itertools.chain.from_iterable(comm.gather(records, dst=0)))
            if not comm.is_main_process():
                return {}
        if not records:
            logger.warning("MultiLabelEvaluator did not receive any image.")
            return {}
        names = self._class_names(len(records[0].logits))
        results = self._figures(records, names)
        logger.info("Multi-label classification, %d images: %s", len(records), _shown(results))
        if self.output_dir:
            _write(self.output_dir, results, names, self.flavour, records)
        return {"multi_label": results}

    def _class_names(self, count: int) -> list[str]:
        """Read when all images were seen: a data set may not know its classes before it is loaded."""
        names = MetadataCatalog.get(self.dataset_name).get("thing_classes")
        if names is None:
            return [str(number) for number in range(count)]
        if len(names) != count:
            raise ValueError(
                "MultiLabelEvaluator expects a model with the classes of the data set.\n"
                f"  '{self.dataset_name}': {len(names)} classes\n  model: {count} classes\n"
                "HINT: MODEL.MULTI_LABEL.NUM_CLASSES."
            )
        return list(names)

    def _figures(self, records: Sequence[ImageRecord], names: Sequence[str]) -> dict[str, float]:
        logits, positive, ignored = (
            np.stack([getattr(record, key) for record in records]) for key in ("logits", "positive", "ignored")
        )
        found = {}
        for flavour in FLAVOURS:
            columns = [
                average_precision(logits[counted, k], positive[counted, k], flavour)
                for k, counted in enumerate(~ignored.T)
            ]
            found[flavour] = {name: 100 * ap for name, ap in zip(names, columns) if not math.isnan(ap)}
        missing = [name for name in names if name not in found[self.flavour]]
        if missing:
            logger.warning("No image of '%s' shows %s: not in the mean.", self.dataset_name, ", ".join(missing))
        results = {}
        for flavour in sorted(FLAVOURS, key=lambda flavour: flavour != self.flavour):
            if found[flavour]:
                key = "mAP" if flavour == self.flavour else f"mAP_{flavour}"
                results[key] = math.fsum(found[flavour].values()) / len(found[flavour])
        return {**results, **{f"AP-{name}": ap for name, ap in found[self.flavour].items()}}


def _shown(results: dict[str, float]) -> str:
    return ", ".join(f"{name} {value:.2f}" for name, value in results.items())


def _write(
    output_dir: str, results: dict[str, float], names: list[str], flavour: str, records: Sequence[ImageRecord]
) -> None:
    images = [
        {
            "image_id": record.image_id,
            "logits": record.logits.tolist(),
            "labels": np.flatnonzero(record.positive).tolist(),
            "ignored": np.flatnonzero(record.ignored).tolist(),
        }
        for record in records
    ]
    PathManager.mkdirs(output_dir)
    with PathManager.open(os.path.join(output_dir, "multi_label_results.json"), "w") as file:
        json.dump({"multi_label": results, "flavour": flavour, "classes": names, "images": images}, file)
