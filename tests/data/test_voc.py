"""VOC 2012 from a devkit of a few images, against what its format says."""

import logging

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data import transforms as T
from detectron2.data.datasets.pascal_voc import CLASS_NAMES, load_voc_instances
from detectron2.structures import BoxMode

from spt_d2.data import MultiLabelDatasetMapper, register_voc_multilabel
from spt_d2.data.multi_label import image_labels
from spt_d2.data.voc import CLASSES, OBJECT_MASKS, add_object_masks, load_voc_multilabel, object_ratio
from tests.data.devkit import IMAGES, SPLITS, H, W, make_devkit, owners, registered, save_owners

pytestmark = [
    # Detectron2's.
    pytest.mark.filterwarnings("ignore:'mode' parameter is deprecated:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:The given NumPy array is not writable:UserWarning"),
]


@pytest.fixture(scope="module")
def devkit(tmp_path_factory):
    return make_devkit(tmp_path_factory.mktemp("devkit"))


def load(devkit, split="trainval", **options):
    return {image["image_id"]: image for image in load_voc_multilabel(str(devkit), split, **options)}


@pytest.mark.parametrize("split", SPLITS)
def test_splits_boxes_and_sizes_are_those_detectron2_reads(devkit, split):
    theirs = load_voc_instances(str(devkit), split, CLASS_NAMES)
    ours = load_voc_multilabel(str(devkit), split)
    assert [image["image_id"] for image in ours] == SPLITS[split]
    for mine, yours in zip(ours, theirs, strict=True):
        assert {key: mine[key] for key in yours if key != "annotations"} == {
            key: value for key, value in yours.items() if key != "annotations"
        }
        for a, b in zip(mine["annotations"], yours["annotations"], strict=True):
            assert {key: a[key] for key in b} == b and a["iscrowd"] == 0


def test_boxes_count_from_0_and_end_behind_their_last_pixel(devkit):
    images = load(devkit)
    assert images["2008_000001"]["annotations"][0]["bbox"] == [0, 0, W, H]
    # One pixel is one pixel.
    assert images["2009_000004"]["annotations"][1]["bbox"] == [39, 29, 40, 30]
    assert all(a["bbox_mode"] == BoxMode.XYXY_ABS for image in images.values() for a in image["annotations"])


@pytest.mark.parametrize("split", SPLITS)
def test_labels_are_those_of_the_devkits_lists(devkit, split):
    seen = set()
    images = load(devkit, split)
    for k, cls in enumerate(CLASSES):
        listed = (devkit / "ImageSets" / "Main" / f"{cls}_{split}.txt").read_text().splitlines()
        for name, value in (row.split() for row in listed):
            seen.add(int(value))
            annotations = images[name]["annotations"]
            labels, ignored = image_labels(annotations, len(CLASSES), count_difficult=False)
            assert (0 if ignored[k] else 1 if labels[k] else -1) == int(value), (name, cls)
            # In training a difficult object is one like any other.
            labels, ignored = image_labels(annotations, len(CLASSES), count_difficult=True)
            assert labels[k] == (int(value) >= 0) and not ignored.any()
    assert seen == {1, 0, -1}


def mapper(size=(H, W), label_source="auto", is_train=False):
    resize = T.Resize(size)
    return MultiLabelDatasetMapper(
        is_train, augmentations=[resize], image_format="RGB", num_classes=20, strides=(4,), label_source=label_source
    )


def cells(mask, stride=4):
    return torch.from_numpy(mask.reshape(H // stride, stride, W // stride, stride).any(axis=(1, 3)))


def drawn(objects):
    mask = np.zeros((H, W), dtype=bool)
    for _, _, x1, y1, x2, y2 in objects:
        mask[y1 - 1 : y2, x1 - 1 : x2] = True
    return mask


@pytest.mark.parametrize("is_train", [True, False])
@pytest.mark.parametrize("name", IMAGES)
def test_selection_labels_come_from_the_segmentation_where_the_image_has_one(devkit, name, is_train):
    image = load(devkit)[name]
    assert (OBJECT_MASKS in image) == (name in ("2008_000002", "2009_000003"))
    by_box = mapper(label_source="box", is_train=is_train)(image)["selection_labels"][4]
    assert torch.equal(by_box, cells(drawn(IMAGES[name])).to(torch.uint8))
    label = mapper(is_train=is_train)(image)["selection_labels"][4]
    if OBJECT_MASKS not in image:
        assert torch.equal(label, by_box)
        return
    owner = owners(IMAGES[name], missing=[2] if name == "2008_000002" else [])
    objects = (owner > 0) & (owner < 255)
    # What is not segmented keeps its box.
    objects |= drawn(IMAGES[name][1:2] if name == "2008_000002" else [])
    expected = torch.where(cells(objects), 1, torch.where(cells(owner == 255), 255, 0)).to(torch.uint8)
    assert torch.equal(label, expected)
    assert not torch.equal(label, by_box) and set(label.unique().tolist()) == {0, 1, 255}


def test_segmentations_follow_the_image(devkit):
    """Twice as large, a token sees what half as many pixels saw."""
    image = load(devkit)["2009_000003"]
    large = mapper(size=(2 * H, 2 * W))(image)["selection_labels"][4]
    owner = owners(IMAGES["2009_000003"])
    halves = np.where(owner == 1, 1, np.where(owner == 255, 255, 0)).reshape(H // 2, 2, W // 2, 2)
    objects, void = (halves == 1).any(axis=(1, 3)), (halves == 255).any(axis=(1, 3))
    assert np.array_equal(large.numpy(), np.where(objects, 1, np.where(void, 255, 0)))


def test_masks_insisted_on_are_an_error_where_there_are_none(devkit):
    with pytest.raises(ValueError, match=r"label_source='mask' expects a segmentation .* Got none in 2 of 2"):
        mapper(label_source="mask")(load(devkit)["2010_000005"])
    assert 1 in mapper(label_source="mask")(load(devkit)["2009_000003"])["selection_labels"][4]


def test_masks_are_added_to_a_copy(devkit):
    image = load(devkit)["2008_000002"]
    before = repr(image)
    added = add_object_masks(image)
    assert repr(image) == before and OBJECT_MASKS not in added
    assert ["segmentation" in annotation for annotation in added["annotations"]] == [True, False, True, True]
    assert added["annotations"][3]["iscrowd"] == 1


def test_pixels_of_no_annotation_are_ignored(devkit, tmp_path):
    (tmp_path / "SegmentationObject").mkdir()
    owner = np.zeros((H, W), dtype=np.uint8)
    owner[:20], owner[20:40] = 1, 7
    save_owners(tmp_path, "odd", owner)
    image = load(devkit)["2009_000003"] | {OBJECT_MASKS: str(tmp_path / "SegmentationObject" / "odd.png")}
    label = mapper()(image)["selection_labels"][4]
    for first, value in ((0, 1), (5, 255), (10, 0)):
        assert (label[first : first + 5] == value).all()


def test_object_ratios(devkit):
    images = load(devkit)
    assert object_ratio(images["2008_000001"]) == 1
    assert object_ratio(images["2008_000001"], ratio="sum") == 5200 / (H * W)
    # Two boxes of 30 x 20 that share 20 x 10.
    assert object_ratio(images["2010_000005"]) == 1000 / (H * W)
    assert object_ratio(images["2010_000005"], ratio="sum") == 1200 / (H * W)
    owner = owners(IMAGES["2009_000003"])
    assert object_ratio(images["2009_000003"], source="mask") == (owner == 1).sum() / (H * W) < 1 / 4
    for name, objects in IMAGES.items():
        assert object_ratio(images[name]) == drawn(objects).mean()


def test_the_sparse_subset_is_strictly_below_its_ratio(devkit):
    """The box of 2009_000003 covers a quarter exactly, and its segmentation less."""
    assert object_ratio(load(devkit)["2009_000003"]) == 0.25
    assert list(load(devkit, max_ratio=0.25)) == ["2008_000002", "2010_000005"]
    assert list(load(devkit, max_ratio=0.2500001)) == ["2008_000002", "2009_000003", "2009_000004", "2010_000005"]
    assert list(load(devkit, max_ratio=0.25, ratio="sum")) == ["2008_000002"]
    assert list(load(devkit, max_ratio=0.25, source="mask")) == ["2008_000002", "2009_000003"]


def test_data_sets_are_registered_by_name(devkit):
    register_voc_multilabel()  # once more does no harm
    kinds = {"": SPLITS["train"], "_sparse": ["2010_000005"], "_sparse_mask": ["2009_000003"]}
    with registered(devkit) as names:
        assert names == {f"voc_2012_multilabel{kind}_{split}" for kind in kinds for split in SPLITS}
        for kind, expected in kinds.items():
            name = f"voc_2012_multilabel{kind}_train"
            assert [image["image_id"] for image in DatasetCatalog.get(name)] == expected
            metadata = MetadataCatalog.get(name)
            assert (metadata.evaluator_type, metadata.thing_classes) == ("multi_label", list(CLASS_NAMES))


def test_other_lists_than_the_published_ones_are_warned_of(devkit, caplog):
    with caplog.at_level(logging.WARNING, logger="spt_d2"):
        load(devkit, "val")
    assert "val.txt lists 2 images; VOC 2012 has 5823 in 'val'" in caplog.text
    caplog.clear()
    (devkit / "ImageSets" / "Main" / "mine.txt").write_text("2009_000003  1\n\n2009_000004 -1\n")
    assert list(load(devkit, "mine")) == ["2009_000003", "2009_000004"]
    assert not caplog.text


def test_what_is_missing_or_unknown_is_named(devkit, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"Main/test.txt. There is none.\nHINT: VOC2012 of the devkit"):
        load(devkit, "test")
    for part in ("ImageSets/Main", "Annotations"):
        (tmp_path / part).mkdir(parents=True)
    (tmp_path / "ImageSets" / "Main" / "odd.txt").write_text("one\n")
    with pytest.raises(FileNotFoundError, match="one.xml"):
        load(tmp_path, "odd")
    (tmp_path / "Annotations" / "one.xml").write_text("<annotation><object><name>zebra</name></object></annotation>")
    with pytest.raises(ValueError, match=r"objects of its 20 classes. Got 'zebra' in .*one.xml"):
        load(tmp_path, "odd")
    image = load(devkit)["2010_000005"]
    with pytest.raises(ValueError, match=r"source='mask'\) expects a segmentation. Got none in .*2010_000005.jpg"):
        object_ratio(image, source="mask")
    with pytest.raises(ValueError, match=r"ratio among \('union', 'sum'\).* Got 'mean', 'box'"):
        object_ratio(image, ratio="mean")
