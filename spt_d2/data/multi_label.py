"""
From the annotations of an image to the classes it shows, for multi-label classification on any data set here.

Every annotation says that the image shows its class, a crowd as well (it *is* many of them, and classifiers on COCO are
trained and judged so). Two kinds leave it open, where nothing else of the class is annotated:

* one marked ``ignored`` or ``ignore``: the class counts neither as shown nor as not shown.
* one marked ``difficult`` (VOC): a positive in training, as most do; at evaluation neither, as VOC's devkit has it.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from detectron2.config import CfgNode, configurable
from torch import Tensor

from spt_d2.config import classifies
from spt_d2.data.dataset_mapper import SelectionDatasetMapper
from spt_d2.data.voc import OBJECT_MASKS, add_object_masks


def image_labels(
    annotations: Sequence[Mapping[str, Any]], num_classes: int, *, count_difficult: bool
) -> tuple[Tensor, Tensor]:
    """
    The classes of one image.

    Args:
        annotations: in Detectron2's format; ``category_id``, ``difficult``, ``ignored`` and ``ignore`` are read.
        num_classes: K.
        count_difficult: whether difficult objects are like any other.

    Returns:
        labels (K,) float32, 1 where any annotation has the class, else 0; ignored (K,) bool, True where none of them
        counts.

    Raises:
        ValueError: a category that is not in [0, K).
    """
    labels, counted = torch.zeros(num_classes), torch.zeros(num_classes, dtype=torch.bool)
    for annotation in annotations:
        category = annotation["category_id"]
        if not 0 <= category < num_classes:
            raise ValueError(
                f"image_labels(annotations=) expects categories in [0, {num_classes}). Got {category}.\n"
                "HINT: MODEL.MULTI_LABEL.NUM_CLASSES is the data set's number of classes."
            )
        open_ = annotation.get("ignored", 0) or annotation.get("ignore", 0)
        labels[category] = 1
        counted[category] |= not (open_ or (annotation.get("difficult", 0) and not count_difficult))
    return labels, (labels == 1) & ~counted


class MultiLabelDatasetMapper(SelectionDatasetMapper):
    """
    What :class:`SelectionDatasetMapper` gives, with the image's classes in place of instances.

    The new keys are ``labels``, (K,) float32, and ``labels_ignored``, (K,) bool; see :func:`image_labels`. They are
    those of the whole image, whatever a crop has cut off, as classifiers are usually trained; ``selection_labels`` show
    what is left. A dict without annotations gives none of them.

    Images of VOC that are segmented take their selection labels from the segmentation under ``label_source="auto"``.
    """

    @configurable
    def __init__(self, is_train: bool, *, num_classes: int, **others: Any):
        """
        Args:
            is_train: whether for training.
            num_classes: K.
            others: arguments of :class:`SelectionDatasetMapper`.
        """
        super().__init__(is_train, **others)
        self.num_classes = num_classes

    @classmethod
    def from_config(cls, cfg: CfgNode, is_train: bool = True) -> dict[str, Any]:
        """The arguments of :class:`SelectionDatasetMapper`, without what only detectors read."""
        return {
            **super().from_config(cfg, is_train),
            "use_instance_mask": False,
            "use_keypoint": False,
            "recompute_boxes": False,
            "num_classes": cfg.MODEL.MULTI_LABEL.NUM_CLASSES,
        }

    def __call__(self, dataset_dict: dict[str, Any]) -> dict[str, Any]:
        """
        Args:
            dataset_dict: one image in Detectron2's dataset format; not changed.

        Returns:
            what the model takes.
        """
        annotations = dataset_dict.get("annotations")
        if self.label_source != "box" and OBJECT_MASKS in dataset_dict:
            dataset_dict = add_object_masks(dataset_dict)
        output = super().__call__(dataset_dict)
        output.pop("instances", None)
        if annotations is not None:
            output["labels"], output["labels_ignored"] = image_labels(
                annotations, self.num_classes, count_difficult=self.is_train
            )
        return output


def build_mapper(cfg: CfgNode, is_train: bool) -> SelectionDatasetMapper:
    """The mapper that the config's meta-architecture calls for."""
    kind = MultiLabelDatasetMapper if classifies(cfg) else SelectionDatasetMapper
    return kind(cfg, is_train)
