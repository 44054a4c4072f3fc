"""Which evaluators a data set and a model call for."""

import os
from collections.abc import Sequence

from detectron2.data import MetadataCatalog
from detectron2.evaluation import (
    COCOEvaluator,
    COCOPanopticEvaluator,
    DatasetEvaluator,
    DatasetEvaluators,
    LVISEvaluator,
    PascalVOCDetectionEvaluator,
    SemSegEvaluator,
)
from torch import nn

from spt_d2.evaluation import MultiLabelEvaluator, SelectionEvaluator

COCO_TYPES = ("coco", "coco_panoptic_seg")
KNOWN_TYPES = (*COCO_TYPES, "lvis", "multi_label", "pascal_voc", "sem_seg")


def detection_tasks(masks: bool, keypoints: bool = False) -> tuple[str, ...]:
    """COCO's names of what a detector predicts; Detectron2 would guess them from its predictions, if there are any."""
    return ("bbox", *(["segm"] if masks else []), *(["keypoints"] if keypoints else []))


def build_evaluator(
    dataset_name: str,
    output_folder: str,
    *,
    tasks: Sequence[str] = ("bbox",),
    selections: bool = False,
    backbone: nn.Module | None = None,
    average_precision: str = "voc10",
) -> DatasetEvaluator:
    """
    The evaluators of a data set, by the ``evaluator_type`` of its metadata, and that of selections on request.

    Args:
        dataset_name: a registered data set.
        output_folder: for predictions and figures.
        tasks: COCO's names of what the detector predicts; ``("multi_label",)`` for a classifier, which is evaluated as
            one on a data set of any type.
        selections: whether outputs carry their selections.
        backbone: whose MACs are counted from its selections; None leaves MACs out.
        average_precision: of a classifier; see :class:`~spt_d2.evaluation.MultiLabelEvaluator`.

    Raises:
        KeyError: an ``evaluator_type`` not known here.
    """
    kind = getattr(MetadataCatalog.get(dataset_name), "evaluator_type", "coco")
    if "multi_label" in tasks:
        kind = "multi_label"
    evaluators: list[DatasetEvaluator] = []
    if kind in ("sem_seg", "coco_panoptic_seg"):
        evaluators.append(SemSegEvaluator(dataset_name, output_dir=output_folder))
    if kind in COCO_TYPES:
        evaluators.append(COCOEvaluator(dataset_name, tasks=tuple(tasks), output_dir=output_folder))
    if kind == "coco_panoptic_seg":
        evaluators.append(COCOPanopticEvaluator(dataset_name, output_folder))
    if kind == "lvis":
        evaluators.append(LVISEvaluator(dataset_name, tuple(tasks), output_dir=output_folder))
    if kind == "pascal_voc":
        evaluators.append(PascalVOCDetectionEvaluator(dataset_name))
    if kind == "multi_label":
        evaluators.append(MultiLabelEvaluator(dataset_name, average_precision, output_dir=output_folder))
    if not evaluators:
        raise KeyError(f"Data set {dataset_name!r} expects an evaluator_type among {KNOWN_TYPES}. Got {kind!r}.")
    if selections:
        evaluators.append(SelectionEvaluator(backbone, output_dir=os.path.join(output_folder, "selection")))
    return DatasetEvaluators(evaluators)
