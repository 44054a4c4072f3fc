"""COCO instances with selection labels, in Swin's detection recipe: the twin of Recipes/Base-COCO.yaml."""

import detectron2.data.transforms as T
from detectron2.config import LazyCall as L
from detectron2.data import build_detection_test_loader, build_detection_train_loader, get_detection_dataset_dicts

from spt_d2.data import SelectionDatasetMapper
from spt_d2.data.augmentation import OccasionalCrop
from spt_d2.engine.evaluators import build_evaluator

dataloader = {
    "train": L(build_detection_train_loader)(
        dataset=L(get_detection_dataset_dicts)(names="coco_2017_train", filter_empty=True),
        mapper=L(SelectionDatasetMapper)(
            is_train=True,
            augmentations=[
                L(OccasionalCrop)(
                    crop_type="absolute_range", crop_size=(384, 600), probability=0.5, min_sizes=(400, 500, 600)
                ),
                L(T.ResizeShortestEdge)(
                    short_edge_length=tuple(range(480, 801, 32)), max_size=1333, sample_style="choice"
                ),
                L(T.RandomFlip)(horizontal=True),
            ],
            image_format="RGB",
            use_instance_mask=True,
        ),
        total_batch_size=16,
        num_workers=4,
    ),
    "test": L(build_detection_test_loader)(
        dataset=L(get_detection_dataset_dicts)(names="coco_2017_val", filter_empty=False),
        mapper=L(SelectionDatasetMapper)(
            is_train=False,
            augmentations=[L(T.ResizeShortestEdge)(short_edge_length=800, max_size=1333, sample_style="choice")],
            image_format="${...train.mapper.image_format}",
        ),
        num_workers=4,
    ),
    "evaluator": L(build_evaluator)(
        dataset_name="${..test.dataset.names}",
        tasks=["bbox", "segm"],
        # Whether the model returns its selections (model.return_selections).
        selections=True,
        # Set by the program: a folder in train.output_dir, and the model's backbone, whose MACs are counted.
        output_folder=None,
        backbone=None,
    ),
}
