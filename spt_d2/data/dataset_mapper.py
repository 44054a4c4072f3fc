"""Detectron2's dataset mapper, which adds the labels that supervise the gates."""

import copy
from collections.abc import Sequence
from typing import Any

from detectron2.config import CfgNode, configurable
from detectron2.data import DatasetMapper
from detectron2.data import transforms as T

from spt_d2.data.augmentation import build_crop
from spt_d2.data.copying import DatasetDict, SmallTensors
from spt_d2.data.label_drawing import draw_labels
from spt_d2.data.object_sizes import sized_objects
from spt_d2.data.regions import adopt_moved, read_regions
from spt_d2.ops.labels import LABEL_SOURCES


class SelectionDatasetMapper(DatasetMapper):
    """
    Everything :class:`DatasetMapper` gives, and ``selection_labels`` (Sec. 3.2, App. B.3).

    The new key holds ``{stride: (ceil(h / stride), ceil(w / stride)) uint8}`` for the augmented image of (h, w) pixels:
    1 object, 0 background, 255 ignored. All other keys are those of the stock mapper, with the same random numbers.

    Labels are made at evaluation too, for selection figures and ``SELECT: oracle``; there a dict without annotations
    gives none. What the stock mapper drops as empty marks nothing. Figures by object size want the objects as well:
    ``selection_boxes``, (n, 4) XYXY in pixels of the augmented image, and ``selection_areas``, (n,) in pixels^2 of the
    original one.

    An annotation marked ``ignore`` or ``ignored`` is an ignore region for the gates. To the detector it is an object as
    in the stock mapper, unless it is a crowd as well.
    """

    @configurable
    def __init__(
        self,
        is_train: bool,
        *,
        strides: Sequence[int] = (8, 16, 32),
        label_source: str = "auto",
        **stock: Any,
    ):
        """
        Args:
            is_train: whether for training.
            strides: pixels per token of the wanted labels.
            label_source: ``auto`` (masks where an annotation has one, else its box), ``box`` or ``mask`` (every
                annotation must have one). Masks are used whether or not the detector trains on them.
            stock: the other arguments of :class:`DatasetMapper`.

        Raises:
            ValueError: an unknown source, or strides that are not distinct whole numbers above 0.
        """
        super().__init__(is_train, **stock)
        strides = tuple(strides)
        good = strides and len(set(strides)) == len(strides) and all(isinstance(s, int) and s > 0 for s in strides)
        if not good:
            raise ValueError(
                "SelectionDatasetMapper(strides=) expects distinct whole numbers above 0 (INPUT.SPT.STRIDES). "
                f"Got {strides}."
            )
        if label_source not in LABEL_SOURCES:
            raise ValueError(
                f"SelectionDatasetMapper(label_source=) expects one of {LABEL_SOURCES} (INPUT.SPT.LABEL_SOURCE). "
                f"Got {label_source!r}."
            )
        self.strides = strides
        self.label_source = label_source
        self._labels_only = False

    @classmethod
    def from_config(cls, cfg: CfgNode, is_train: bool = True) -> dict[str, Any]:
        """The stock mapper's arguments, and those under ``INPUT.SPT`` and ``INPUT.CROP``."""
        stock = super().from_config(cfg, is_train)
        if is_train and cfg.INPUT.CROP.ENABLED:
            # The stock mapper's crop is the first of its augmentations.
            stock["augmentations"][0] = build_crop(cfg)
            stock["recompute_boxes"] = cfg.MODEL.MASK_ON and cfg.INPUT.CROP.RECOMPUTE_BOXES
        return {
            **stock,
            "strides": cfg.INPUT.SPT.STRIDES,
            "label_source": cfg.INPUT.SPT.LABEL_SOURCE,
        }

    def __call__(self, dataset_dict: dict[str, Any]) -> dict[str, Any]:
        """
        Args:
            dataset_dict: one image in Detectron2's dataset format; not changed.

        Returns:
            what the model takes.
        """
        dataset_dict = DatasetDict(dataset_dict)
        if self.is_train:
            return super().__call__(dataset_dict)
        # At evaluation the stock mapper throws annotations away before anyone has seen the transforms. In training it
        # does the same but for one hook, which a copy of this mapper fills with labels and nothing else.
        twin = copy.copy(self)
        twin.is_train, twin._labels_only = True, True
        return super(SelectionDatasetMapper, twin).__call__(dataset_dict)

    def _transform_annotations(
        self, dataset_dict: dict[str, Any], transforms: T.TransformList, image_shape: tuple[int, int]
    ) -> None:
        annotations = dataset_dict["annotations"]
        original_size = dataset_dict["height"], dataset_dict["width"]
        regions = read_regions(annotations, transforms, image_shape, self.label_source)
        if self._labels_only:
            objects = sized_objects(regions, annotations, original_size)
            dataset_dict["selection_boxes"], dataset_dict["selection_areas"] = objects
            del dataset_dict["annotations"]
        else:
            if self.use_instance_mask:
                _expect_masks(annotations, dataset_dict.get("file_name"))
            try:
                super()._transform_annotations(dataset_dict, transforms, image_shape)
            except ModuleNotFoundError as error:
                if (error.name or "").split(".")[0] != "shapely":
                    raise
                raise ImportError("Cropping polygon masks needs shapely.\nHINT: pip install shapely") from error
            if self.use_instance_mask:
                adopt_moved(regions, annotations, transforms, original_size, tighten=self.recompute_boxes)
        labels = draw_labels(regions, transforms, original_size, image_shape, self.strides)
        dataset_dict["selection_labels"] = SmallTensors(labels)


def _expect_masks(annotations: Sequence[dict[str, Any]], file_name: str | None) -> None:
    """Detectron2 would train on, and fail in its mask head, with nothing said of the data."""
    counted = [annotation for annotation in annotations if not annotation.get("iscrowd", 0)]
    missing = sum("segmentation" not in annotation for annotation in counted)
    if missing:
        raise ValueError(
            "A detector that trains on masks expects one in every annotation. "
            f"Got none in {missing} of {len(counted)} of {file_name}.\n"
            "HINT: MODEL.MASK_ON False (use_instance_mask=False) trains a detector of boxes."
        )
