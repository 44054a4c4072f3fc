"""Classes of an image, whatever happened to it; everything else is the detector's mapper's."""

import pickle

import numpy as np
import pytest
import torch
from detectron2.config import get_cfg
from detectron2.data import transforms as T

from spt_d2.config import add_spt_config
from spt_d2.data import MultiLabelDatasetMapper, SelectionDatasetMapper, build_mapper
from spt_d2.data.multi_label import image_labels
from tests.data.scenes import AUGMENTATIONS, annotation, assert_same_labels, mask_object, polygon_object, scene

pytestmark = [
    # Detectron2's.
    pytest.mark.filterwarnings("ignore:'mode' parameter is deprecated:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:The given NumPy array is not writable:UserWarning"),
]

CLASSES = 6


def mapper(steps=(), is_train=True, cls=MultiLabelDatasetMapper, **options):
    more = {"num_classes": CLASSES} if cls is MultiLabelDatasetMapper else {}
    augmentations = [step.transform for step in steps]
    return cls(is_train, augmentations=augmentations, image_format="RGB", **more, **options)


def objects():
    rng = np.random.default_rng(0)
    annotations = [polygon_object(rng), mask_object(rng, "compressed"), polygon_object(rng), polygon_object(rng)]
    for anno, category in zip(annotations, (4, 1, 4, 0)):
        anno["category_id"] = category
    annotations[1]["iscrowd"] = 1
    annotations[3]["difficult"] = 1
    return annotations


# Flags of the annotations of one class, then what the class is in training and at evaluation: label, ignored.
FLAGS = [
    ([], (0, False), (0, False)),
    ([{}], (1, False), (1, False)),
    ([{"iscrowd": 1}], (1, False), (1, False)),
    ([{"difficult": 1}], (1, False), (1, True)),
    ([{"difficult": 1}, {"difficult": 1}], (1, False), (1, True)),
    ([{"difficult": 1}, {"difficult": 0}], (1, False), (1, False)),
    ([{"ignored": 1}], (1, True), (1, True)),
    ([{"ignore": 1, "iscrowd": 1}], (1, True), (1, True)),
    ([{"ignored": 1}, {}], (1, False), (1, False)),
    ([{"ignored": 1}, {"difficult": 1}], (1, False), (1, True)),
]


@pytest.mark.parametrize(("flags", "training", "evaluation"), FLAGS, ids=[str(flags) for flags, *_ in FLAGS])
def test_a_class_counts_as_its_annotations_say(flags, training, evaluation):
    annotations = [annotation([0, 0, 5, 5]) | {"category_id": 2} | more for more in flags]
    for count_difficult, expected in ((True, training), (False, evaluation)):
        labels, ignored = image_labels(annotations, CLASSES, count_difficult=count_difficult)
        assert (labels.dtype, ignored.dtype) == (torch.float32, torch.bool)
        assert (labels[2].item(), ignored[2].item()) == expected
        labels[2], ignored[2] = 0, False
        assert not labels.any() and not ignored.any()


@pytest.mark.parametrize("is_train", [True, False])
@pytest.mark.parametrize("steps", AUGMENTATIONS.values(), ids=AUGMENTATIONS)
def test_labels_are_those_of_the_whole_image_and_selection_labels_those_of_what_is_left(tmp_path, steps, is_train):
    given = scene(tmp_path, objects())
    output = mapper(steps, is_train)(given)
    assert output["labels"].tolist() == [1, 1, 0, 0, 1, 0]
    assert output["labels_ignored"].tolist() == [not is_train, *[False] * 5]
    expected = mapper(steps, is_train, cls=SelectionDatasetMapper)(given)
    assert_same_labels(output["selection_labels"], expected["selection_labels"])
    assert torch.equal(output["image"], expected["image"])
    added = {"labels", "labels_ignored"}
    assert set(output) == (set(expected) | added) - {"instances"}


def test_a_crop_of_nothing_leaves_the_classes(tmp_path):
    given = scene(tmp_path, [annotation([40.0, 40.0, 10.0, 10.0])])
    output = MultiLabelDatasetMapper(
        True, augmentations=[T.CropTransform(0, 0, 20, 20)], image_format="RGB", num_classes=1
    )(given)
    assert output["labels"].tolist() == [1]
    assert not any(label.any() for label in output["selection_labels"].values())


def test_an_image_of_nothing_is_a_negative_of_all_and_one_without_annotations_of_none(tmp_path):
    given = scene(tmp_path, [])
    assert mapper()(given)["labels"].tolist() == [0] * CLASSES
    del given["annotations"]
    for is_train in (True, False):
        assert not {"labels", "labels_ignored", "selection_labels"} & mapper(is_train=is_train)(given).keys()


def test_the_given_dict_is_not_changed(tmp_path):
    given = scene(tmp_path, objects())
    before = pickle.dumps(given)
    for is_train in (True, False):
        mapper(is_train=is_train)(given)
        assert pickle.dumps(given) == before


@pytest.mark.parametrize("category", [-1, CLASSES])
def test_an_unknown_category_is_an_error(category):
    with pytest.raises(ValueError, match=rf"categories in \[0, 6\). Got {category}.\nHINT: MODEL.MULTI_LABEL.NUM"):
        image_labels([{"category_id": category}], CLASSES, count_difficult=True)


def multi_label_cfg():
    cfg = get_cfg()
    add_spt_config(cfg)
    cfg.MODEL.META_ARCHITECTURE = "SelectionMultiLabelClassifier"
    cfg.MODEL.MULTI_LABEL.NUM_CLASSES = CLASSES
    cfg.INPUT.SPT.STRIDES, cfg.INPUT.SPT.LABEL_SOURCE = [16], "box"
    return cfg


def test_the_config_chooses_the_mapper_and_its_arguments(tmp_path):
    cfg = multi_label_cfg()
    # What a detector's base may have set.
    cfg.MODEL.MASK_ON = cfg.INPUT.CROP.ENABLED = True
    for is_train in (True, False):
        built = build_mapper(cfg, is_train)
        assert type(built) is MultiLabelDatasetMapper
        assert (built.num_classes, built.strides, built.label_source) == (CLASSES, (16,), "box")
        assert set(built(scene(tmp_path, objects()))) >= {"labels", "selection_labels"}
    cfg.MODEL.META_ARCHITECTURE = "SelectionGeneralizedRCNN"
    assert type(build_mapper(cfg, True)) is SelectionDatasetMapper
