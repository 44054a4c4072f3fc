"""PASCAL VOC 2012 for multi-label classification, train against val; ``model.num_classes`` is that of the config."""

import detectron2.data.transforms as T
from detectron2.config import LazyCall as L

from spt_d2.data import MultiLabelDatasetMapper

from .coco import dataloader

dataloader.train.dataset.update(names="voc_2012_multilabel_train", filter_empty=False)
dataloader.train.mapper = L(MultiLabelDatasetMapper)(
    is_train=True,
    augmentations=[
        L(T.ResizeShortestEdge)(short_edge_length=tuple(range(320, 481, 32)), max_size=800, sample_style="choice"),
        L(T.RandomFlip)(horizontal=True),
    ],
    image_format="RGB",
    num_classes="${model.num_classes}",
)
dataloader.test.dataset.names = "voc_2012_multilabel_val"
dataloader.test.mapper = L(MultiLabelDatasetMapper)(
    is_train=False,
    augmentations=[L(T.ResizeShortestEdge)(short_edge_length=448, max_size=800, sample_style="choice")],
    image_format="${...train.mapper.image_format}",
    num_classes="${...train.mapper.num_classes}",
)
dataloader.evaluator.update(tasks=["multi_label"], average_precision="voc10")
