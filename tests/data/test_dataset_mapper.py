"""Labels of the mapper against annotations drawn one by one; everything else against the stock mapper."""

import copy
import pickle
import sys

import numpy as np
import pytest
import torch
from detectron2.config import LazyCall, get_cfg, instantiate
from detectron2.data import DatasetMapper
from detectron2.data import transforms as T
from detectron2.structures import BitMasks, BoxMode, PolygonMasks
from PIL import Image

from spt_d2.config import add_spt_config
from spt_d2.data import SelectionDatasetMapper
from spt_d2.ops.labels import pool_labels
from tests.data.scenes import (
    AUGMENTATIONS,
    STRIDES,
    H,
    W,
    annotation,
    assert_same_labels,
    draw_box,
    draw_mask,
    draw_polygon,
    encode,
    hflip,
    mask_object,
    polygon_object,
    resize,
    rotate,
    scene,
    truth,
)

# All three are Detectron2's: it names the mode of grey images to Pillow, and hands lists of arrays, and arrays that
# Pillow keeps to itself, to torch.
pytestmark = [
    pytest.mark.filterwarnings("ignore:'mode' parameter is deprecated:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:Creating a tensor from a list of numpy.ndarrays:UserWarning"),
    pytest.mark.filterwarnings("ignore:The given NumPy array is not writable:UserWarning"),
]


def mapper(steps=(), is_train=True, cls=SelectionDatasetMapper, **options):
    options = {"image_format": "RGB", **options}
    return cls(is_train, augmentations=[step.transform for step in steps], **options)


def labels_of(dataset_dict, steps=(), **options):
    return mapper(steps, **options)(dataset_dict)["selection_labels"]


def objects(kind, seed=0, count=5):
    """Objects of one kind of mask, one of them a crowd, one marked ``ignored``; sometimes one over another."""
    rng = np.random.default_rng(seed)
    if kind == "polygons":
        annotations = [polygon_object(rng) for _ in range(count)]
        annotations[0]["segmentation"] += polygon_object(rng)["segmentation"]
    elif kind == "boxes":
        annotations = [polygon_object(rng) for _ in range(count)]
        for anno in annotations:
            del anno["segmentation"]
    elif kind == "mixed":
        annotations = [mask_object(rng, "compressed"), mask_object(rng, "bitmask"), polygon_object(rng)]
        annotations += [annotation([70.3, 2.0, 90.1, 15.5], BoxMode.XYXY_ABS), mask_object(rng, "uncompressed")]
    else:
        annotations = [mask_object(rng, kind) for _ in range(count)]
    annotations[1]["ignored"] = 1
    annotations[2]["iscrowd"] = 1
    return annotations


@pytest.mark.parametrize("kind", ["boxes", "polygons", "compressed", "uncompressed", "bitmask", "mixed"])
@pytest.mark.parametrize("steps", AUGMENTATIONS.values(), ids=AUGMENTATIONS)
def test_labels_are_the_annotations_drawn_one_by_one(tmp_path, kind, steps):
    values = set()
    for seed in range(3):
        annotations = objects(kind, seed)
        expected = truth(annotations, steps)
        values |= set(expected[8].unique().tolist())
        for is_train in (True, False):
            assert_same_labels(labels_of(scene(tmp_path, annotations), steps, is_train=is_train), expected)
    assert values == {0, 1, 255}


def crops(steps):
    return any(isinstance(step.transform, T.CropTransform) for step in steps)


@pytest.mark.parametrize("mask_format", ["polygon", "bitmask"])
@pytest.mark.parametrize("steps", [s for s in AUGMENTATIONS.values() if not crops(s)], ids=lambda s: len(s))
def test_labels_of_polygons_the_detector_trains_on(tmp_path, steps, mask_format):
    for seed in range(3):
        annotations = objects("polygons", seed)
        got = labels_of(scene(tmp_path, annotations), steps, use_instance_mask=True, instance_mask_format=mask_format)
        assert_same_labels(got, truth(annotations, steps))


@pytest.mark.parametrize("steps", AUGMENTATIONS.values(), ids=AUGMENTATIONS)
def test_labels_of_encodings_the_detector_trains_on(tmp_path, steps):
    for seed in range(3):
        annotations = objects("compressed", seed)
        options = {"use_instance_mask": True, "instance_mask_format": "bitmask"}
        assert_same_labels(labels_of(scene(tmp_path, annotations), steps, **options), truth(annotations, steps))


@pytest.mark.parametrize("kind", ["polygons", "compressed"])
@pytest.mark.parametrize("steps", AUGMENTATIONS.values(), ids=AUGMENTATIONS)
def test_labels_are_the_union_of_the_instances(tmp_path, steps, kind):
    """Detectron2 moves the corners of a polygon that it crops, so its own polygons are the truth here."""
    if crops(steps) and kind == "polygons":
        pytest.importorskip("shapely", reason="Detectron2 crops polygons with shapely")
    mask_format = "polygon" if kind == "polygons" else "bitmask"
    for seed in range(5):
        annotations = [{**anno, "iscrowd": 0, "ignored": 0} for anno in objects(kind, seed)]
        output = mapper(steps, use_instance_mask=True, instance_mask_format=mask_format)(scene(tmp_path, annotations))
        instances = output["instances"]
        size = instances.image_size
        union = np.zeros(size, dtype=bool)
        for mask, box in zip(instances.gt_masks, instances.gt_boxes, strict=True):
            if kind == "polygons":
                mask = np.any([draw_polygon(polygon, size) for polygon in mask], axis=0)
            union |= np.asarray(mask) if mask.any() else draw_box(box.tolist(), size)
        expected = {s: pool_labels(torch.from_numpy(union), s) for s in STRIDES}
        assert_same_labels(output["selection_labels"], expected)


@pytest.mark.parametrize("steps", AUGMENTATIONS.values(), ids=AUGMENTATIONS)
def test_label_source_box(tmp_path, steps):
    annotations = objects("polygons", 1)
    expected = truth(annotations, steps, use_mask=False)
    assert_same_labels(labels_of(scene(tmp_path, annotations), steps, label_source="box"), expected)
    assert any(not torch.equal(expected[s], label) for s, label in truth(annotations, steps).items())


def test_label_source_mask_insists_on_masks(tmp_path):
    annotations = objects("polygons")
    assert_same_labels(labels_of(scene(tmp_path, annotations), label_source="mask"), truth(annotations, []))
    del annotations[3]["segmentation"]
    with pytest.raises(ValueError, match="segmentation in every annotation. Got none in 1 of 5"):
        labels_of(scene(tmp_path, annotations), label_source="mask")


@pytest.mark.parametrize("strides", [(4, 8, 16, 32), (32,), (1,), (8, 12), (7, 3)])
def test_any_strides(tmp_path, strides):
    annotations, steps = objects("mixed", 2), AUGMENTATIONS["enlarged"]
    got = labels_of(scene(tmp_path, annotations), steps, strides=strides)
    assert_same_labels(got, truth(annotations, steps, strides))


def test_crowd_is_ignored_unless_an_object_covers_it(tmp_path):
    crowd = np.zeros((H, W), dtype=np.uint8)
    crowd[:, :40] = 1
    annotations = [
        annotation([0.0, 0.0, 40.0, float(H)], segmentation=encode(crowd), iscrowd=1),
        annotation([10.0, 10.0, 4.0, 4.0], segmentation=[[10, 10, 14, 10, 14, 14, 10, 14]]),
    ]
    for options in ({}, {"use_instance_mask": True}, {"label_source": "box"}):
        label = labels_of(scene(tmp_path, annotations), **options)[8]
        assert label[1, 1] == 1
        assert (label[:, :5] == 255).sum() == 5 * 8 - 1
        assert (label[:, 5:] == 0).all()


@pytest.mark.parametrize("key", ["iscrowd", "ignore", "ignored"])
def test_marks_of_an_ignore_region(tmp_path, key):
    annotations = [{**annotation([8.0, 8.0, 8.0, 8.0]), key: 1}]
    assert labels_of(scene(tmp_path, annotations))[8].unique().tolist() == [0, 255]
    assert labels_of(scene(tmp_path, [{**annotations[0], key: 0}]))[8].unique().tolist() == [0, 1]


def test_no_annotations_give_empty_labels(tmp_path):
    for is_train in (True, False):
        labels = labels_of(scene(tmp_path, []), is_train=is_train, use_instance_mask=is_train)
        assert {s: tuple(label.shape) for s, label in labels.items()} == {8: (8, 11), 16: (4, 6), 32: (2, 3)}
        assert not any(label.any() for label in labels.values())


def test_a_dict_without_annotations_gives_no_labels(tmp_path):
    dataset_dict = scene(tmp_path, [])
    del dataset_dict["annotations"]
    for is_train in (True, False):
        output = mapper(is_train=is_train)(dataset_dict)
        assert "selection_labels" not in output and "instances" not in output


# Where an instance leaves nothing


@pytest.mark.parametrize("mask", [None, [[-20, 5, -4, 5, -4, 9]], [[5, 5, 15, 5, 15, 15]]])
@pytest.mark.parametrize("bbox", [[-20.0, 5.0, 16.0, 4.0], [83.0, 5.0, 9.0, 9.0], [5.0, 5.0, 0.0, 9.0]])
def test_a_box_clipped_to_nothing_marks_nothing(tmp_path, bbox, mask):
    annotations = [annotation(bbox, **({} if mask is None else {"segmentation": mask}))]
    output = mapper(use_instance_mask=mask is not None)(scene(tmp_path, annotations))
    assert len(output["instances"]) == 0
    assert not output["selection_labels"][8].any()
    assert not labels_of(scene(tmp_path, annotations), is_train=False)[8].any()


@pytest.mark.parametrize("options", [{}, {"use_instance_mask": True}, {"is_train": False}])
def test_a_polygon_too_thin_to_draw_falls_back_to_its_box(tmp_path, options):
    annotations = [
        annotation([20.1, 20.1, 0.2, 0.2], segmentation=[[20.1, 20.1, 20.3, 20.1, 20.3, 20.3]]),
        annotation([40.0, 40.1, 30.0, 0.2], segmentation=[[40, 40.1, 70, 40.2, 70, 40.3]]),
        polygon_object(np.random.default_rng(0)),
    ]
    boxes = [{**annotations[0], "segmentation": None}, {**annotations[1], "segmentation": None}, annotations[2]]
    assert not any(draw_mask(anno, []).any() for anno in annotations[:2])
    assert_same_labels(labels_of(scene(tmp_path, annotations), **options), truth(boxes, []))


@pytest.mark.parametrize("options", [{}, {"use_instance_mask": True, "instance_mask_format": "bitmask"}])
def test_a_mask_lost_in_shrinking_falls_back_to_its_box(tmp_path, options):
    steps = [resize(H, W, 20, 27), hflip(20, 27)]
    annotations = []
    for x in range(0, 80, 5):
        mask = np.zeros((H, W), dtype=np.uint8)
        mask[28, x] = 1
        annotations.append(annotation([float(x), 28.0, 1.0, 1.0], segmentation=encode(mask)))
    lost = [anno for anno in annotations if not truth([anno], steps)[8].any()]
    assert 0 < len(lost) < len(annotations)
    expected = truth([{**anno, "segmentation": None} if anno in lost else anno for anno in annotations], steps, (1,))
    assert_same_labels(labels_of(scene(tmp_path, annotations), steps, strides=(1,), **options), expected)


@pytest.mark.parametrize("kind", ["polygon", "compressed"])
@pytest.mark.parametrize("source", ["auto", "box"])
def test_a_mask_cropped_away_is_dropped_with_its_instance(tmp_path, kind, source):
    """An L whose box reaches into the crop and whose mask does not."""
    steps = AUGMENTATIONS["cropped"]  # x from 11 to 61, y from 7 to 47
    mask = np.zeros((H, W), dtype=np.uint8)
    mask[2:6, 2:40] = mask[2:40, 2:8] = 1
    outline = [[2, 2, 40, 2, 40, 6, 8, 6, 8, 40, 2, 40]]
    if kind == "polygon":
        pytest.importorskip("shapely", reason="Detectron2 crops polygons with shapely")
    anno = annotation([2.0, 2.0, 38.0, 38.0], segmentation=outline if kind == "polygon" else encode(mask))
    options = {"use_instance_mask": True, "instance_mask_format": "bitmask" if kind == "compressed" else "polygon"}
    output = mapper(steps, label_source=source, **options)(scene(tmp_path, [anno]))
    assert len(output["instances"]) == 0
    assert not output["selection_labels"][8].any()
    # A detector without masks trains on the box; the label is the mask's all the same, where masks are wanted.
    output = mapper(steps, label_source=source)(scene(tmp_path, [anno]))
    assert len(output["instances"]) == 1
    assert output["selection_labels"][8].any() == (source == "box")


@pytest.mark.parametrize("kind", ["polygon", "compressed"])
def test_recomputed_boxes_are_those_of_the_label(tmp_path, kind):
    steps = AUGMENTATIONS["cropped"]
    mask = np.zeros((H, W), dtype=np.uint8)
    mask[2:40, 2:20] = mask[2:6, 2:60] = 1
    outline = [[2, 2, 60, 2, 60, 6, 20, 6, 20, 40, 2, 40]]
    if kind == "polygon":
        pytest.importorskip("shapely", reason="Detectron2 crops polygons with shapely")
    anno = annotation([2.0, 2.0, 58.0, 38.0], segmentation=outline if kind == "polygon" else encode(mask))
    output = mapper(
        steps,
        label_source="box",
        use_instance_mask=True,
        instance_mask_format="bitmask" if kind == "compressed" else "polygon",
        recompute_boxes=True,
    )(scene(tmp_path, [anno]))
    assert output["instances"].gt_boxes.tensor.tolist() == [[0, 0, 9, 33]]
    assert output["selection_labels"][8].nonzero().max(dim=0).values.tolist() == [4, 1]


def test_padding_of_a_fixed_size_crop_shows_no_object(tmp_path):
    """Detectron2 pads segmentations with 255 there."""
    annotations = [mask_object(np.random.default_rng(0), "compressed")]
    options = {"augmentations": [T.FixedSizeCrop((128, 128))], "image_format": "RGB"}
    for more in ({}, {"use_instance_mask": True, "instance_mask_format": "bitmask"}):
        label = SelectionDatasetMapper(True, **options, **more)(scene(tmp_path, annotations))["selection_labels"][8]
        assert label.shape == (16, 16)
        assert torch.equal(label[:8, :11], truth(annotations, [])[8])
        assert not label[8:].any() and not label[:, 11:].any()


def test_rotated_boxes_are_hulls_and_rotated_masks_are_exact(tmp_path):
    steps = [rotate(H, W, 45)]
    anno = annotation([20.0, 20.0, 30.0, 2.0], segmentation=[[20, 20, 50, 20, 50, 22, 20, 22]])
    by_mask = labels_of(scene(tmp_path, [anno]), steps)[8]
    by_box = labels_of(scene(tmp_path, [anno]), steps, label_source="box")[8]
    assert (by_box >= by_mask).all() and by_box.sum() > 1.5 * by_mask.sum()


# Against the stock mapper


def assert_same_value(got, expected):
    if isinstance(expected, torch.Tensor):
        assert got.dtype == expected.dtype and torch.equal(got, expected)
    elif isinstance(expected, PolygonMasks):
        assert len(got) == len(expected)
        for a, b in zip(got.polygons, expected.polygons, strict=True):
            assert len(a) == len(b) and all(np.array_equal(p, q) for p, q in zip(a, b, strict=True))
    elif isinstance(expected, BitMasks):
        assert torch.equal(got.tensor, expected.tensor)
    elif hasattr(expected, "tensor"):
        assert torch.equal(got.tensor, expected.tensor)
    else:
        assert got == expected


def assert_same_output(got, expected):
    assert {key for key in got if not key.startswith("selection_")} == set(expected)
    for key, value in expected.items():
        if key != "instances":
            assert_same_value(got[key], value)
            continue
        assert got[key].image_size == value.image_size
        assert sorted(got[key].get_fields()) == sorted(value.get_fields())
        for name, field in value.get_fields().items():
            assert_same_value(got[key].get(name), field)


STOCK_OPTIONS = {
    "boxes": ("polygons", {}),
    "polygons": ("polygons", {"use_instance_mask": True}),
    "bitmasks": ("compressed", {"use_instance_mask": True, "instance_mask_format": "bitmask"}),
    "recomputed": (
        "compressed",
        {"use_instance_mask": True, "instance_mask_format": "bitmask", "recompute_boxes": True},
    ),
    "keypoints": ("boxes", {"use_keypoint": True, "keypoint_hflip_indices": np.array([1, 0])}),
}


@pytest.mark.parametrize("is_train", [True, False])
@pytest.mark.parametrize("kind, options", STOCK_OPTIONS.values(), ids=STOCK_OPTIONS)
def test_all_other_keys_are_the_stock_mappers(tmp_path, kind, options, is_train):
    augmentations = [
        T.ResizeShortestEdge((50, 70), 120, "range"),
        T.RandomFlip(),
        T.RandomRotation([-20, 20]),
        T.RandomBrightness(0.5, 1.5),
    ]
    options = {"augmentations": augmentations, "image_format": "BGR", **options}
    ours, stock = SelectionDatasetMapper(is_train, **options), DatasetMapper(is_train, **options)
    for seed in range(4):
        annotations = objects(kind, seed)
        for anno in annotations:
            anno["keypoints"] = [20.0, 20.0, 2, 30.0, 30.0, 1]
        dataset_dict = scene(tmp_path, annotations, seed=seed)
        dataset_dict["sem_seg_file_name"] = str(tmp_path / "sem_seg.png")
        Image.fromarray(np.arange(H * W, dtype=np.uint8).reshape(H, W)).save(dataset_dict["sem_seg_file_name"])
        outputs = []
        for one in (ours, stock):
            np.random.seed(seed)
            outputs.append(one(dataset_dict))
            outputs[-1]["draw"] = np.random.rand()
        assert_same_output(*outputs)
        assert "selection_labels" in outputs[0] and "annotations" not in outputs[0]
        assert ("instances" in outputs[0]) == is_train


def test_the_dataset_dict_is_not_changed(tmp_path):
    dataset_dict = scene(tmp_path, objects("mixed"))
    for options in ({}, {"is_train": False}):
        before = copy.deepcopy(dataset_dict)
        mapper(AUGMENTATIONS["enlarged"], **options)(dataset_dict)
        np.testing.assert_equal(dataset_dict, before)


def test_calls_leave_nothing_behind(tmp_path):
    first, second = scene(tmp_path, objects("mixed", 0)), scene(tmp_path, objects("polygons", 1), seed=1)
    for is_train in (True, False):
        one = mapper(AUGMENTATIONS["rotated"], is_train=is_train)
        state = dict(vars(one))
        expected = one(first)["selection_labels"]
        one(second)
        assert_same_labels(one(first)["selection_labels"], expected)
        assert vars(one) == state and one.is_train == is_train


@pytest.mark.parametrize("is_train", [True, False])
@pytest.mark.parametrize("clone", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))], ids=["deepcopy", "pickle"])
def test_the_mapper_travels_to_workers(tmp_path, clone, is_train):
    original = mapper(AUGMENTATIONS["rotated"], is_train=is_train, strides=(4, 8), label_source="box")
    dataset_dict = scene(tmp_path, objects("polygons"))
    expected, got = original(dataset_dict), clone(original)(dataset_dict)
    assert_same_labels(got["selection_labels"], expected["selection_labels"])
    assert torch.equal(got["image"], expected["image"])


# How it is built


def spt_cfg(*opts):
    cfg = get_cfg()
    add_spt_config(cfg)
    cfg.merge_from_list(list(opts))
    return cfg


@pytest.mark.parametrize("is_train", [True, False])
def test_from_config(tmp_path, is_train):
    options = ("INPUT.SPT.STRIDES", "[4, 8]", "INPUT.SPT.LABEL_SOURCE", "box", "INPUT.MIN_SIZE_TRAIN", "(61,)")
    cfg = spt_cfg(*options, "INPUT.MIN_SIZE_TEST", "61", "MODEL.MASK_ON", "True", "INPUT.RANDOM_FLIP", "none")
    one = SelectionDatasetMapper(cfg, is_train=is_train)
    assert one.is_train == is_train and one.use_instance_mask
    annotations = objects("polygons")
    assert_same_labels(one(scene(tmp_path, annotations))["selection_labels"], truth(annotations, [], (4, 8), False))


def test_defaults_are_those_of_the_config():
    one, other = SelectionDatasetMapper(spt_cfg()), mapper()
    assert (one.strides, one.label_source) == (other.strides, other.label_source) == (STRIDES, "auto")


def test_cropping_config_recomputes_boxes():
    one = SelectionDatasetMapper(spt_cfg("INPUT.CROP.ENABLED", "True", "MODEL.MASK_ON", "True"))
    assert one.recompute_boxes and isinstance(one.augmentations.augs[0], T.RandomCrop)


def test_lazy_config(tmp_path):
    lazy = LazyCall(SelectionDatasetMapper)(
        is_train=True,
        augmentations=[LazyCall(T.RandomFlip)(horizontal=True, prob=0.0)],
        image_format="RGB",
        strides=[8, 16],
    )
    annotations = objects("mixed")
    assert_same_labels(
        instantiate(lazy)(scene(tmp_path, annotations))["selection_labels"], truth(annotations, [], (8, 16))
    )


@pytest.mark.parametrize("strides", [(), (8, 8), (0,), (8.0,), (-8,)])
def test_bad_strides_are_refused(strides):
    with pytest.raises(ValueError, match=r"strides=\) expects distinct whole numbers"):
        mapper(strides=strides)


def test_a_bad_label_source_is_refused():
    with pytest.raises(ValueError, match=r"label_source=\) expects one of .*Got 'masks'"):
        mapper(label_source="masks")


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_box_that_is_not_finite_is_refused(tmp_path, bad):
    with pytest.raises(ValueError, match="bbox expects finite"):
        labels_of(scene(tmp_path, [annotation([1.0, 1.0, bad, 4.0])]))


def test_masks_of_another_size_or_kind_are_refused(tmp_path):
    small = np.ones((4, 5), dtype=np.uint8)
    for kind in ("compressed", "bitmask"):
        with pytest.raises(ValueError, match=r"size of its image[\s\S]*\(4, 5\)[\s\S]*\(61, 83\)"):
            labels_of(scene(tmp_path, [annotation([1.0, 1.0, 4.0, 4.0], segmentation=encode(small, kind))]))
    with pytest.raises(TypeError, match="Got str"):
        labels_of(scene(tmp_path, [annotation([1.0, 1.0, 4.0, 4.0], segmentation="mask.png")]))


def test_cropping_polygons_without_shapely_names_the_cure(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "shapely", None)
    monkeypatch.delitem(sys.modules, "shapely.geometry", raising=False)
    dataset_dict = scene(tmp_path, objects("polygons"))
    with pytest.raises(ImportError, match="HINT: pip install shapely"):
        labels_of(dataset_dict, AUGMENTATIONS["cropped"], use_instance_mask=True)


def test_a_mask_detector_on_boxes_names_the_image_and_the_cure(tmp_path):
    """The stock mapper leaves gt_masks out, or raises a KeyError; a crowd needs none."""
    boxes, masks = (
        [annotation([10.0, 10.0, 20.0, 20.0])],
        [annotation([10.0, 10.0, 20.0, 20.0], segmentation=[[10, 10, 30, 10, 30, 30]])],
    )
    crowd = [annotation([0.0, 0.0, 9.0, 9.0], iscrowd=1)]
    with_masks = mapper(use_instance_mask=True)
    record = scene(tmp_path, masks + boxes)
    with pytest.raises(ValueError, match=rf"Got none in 1 of 2 of {record['file_name']}.\nHINT: MODEL.MASK_ON False"):
        with_masks(record)
    assert with_masks(scene(tmp_path, masks + crowd))["instances"].has("gt_masks")
    plain = mapper(use_instance_mask=False)
    assert len(plain(record)["instances"]) == 2


def test_at_evaluation_objects_come_with_their_boxes_and_areas(tmp_path):
    """Boxes as the network sees them, areas as annotated; crowds, ignored and vanished ones are no objects."""
    square = [[10.0, 10.0, 30.0, 10.0, 30.0, 30.0, 10.0, 30.0]]
    bitmask = np.zeros((H, W), np.uint8)
    bitmask[5:10, 40:44] = 1
    annotations = [
        annotation([10.0, 10.0, 20.0, 30.0]),
        annotation([10.0, 10.0, 20.0, 20.0], segmentation=[*square, [0.0, 0.0, 4.0, 0.0, 4.0, 4.0, 0.0, 4.0]]),
        annotation([40.0, 5.0, 4.0, 5.0], segmentation=encode(bitmask)),
        annotation([40.0, 5.0, 44.0, 10.0], BoxMode.XYXY_ABS, segmentation=bitmask),
        annotation([10.0, 10.0, 20.0, 20.0], area=123.0, segmentation=square),
        annotation([0.0, 0.0, 9.0, 9.0], iscrowd=1),
        annotation([0.0, 0.0, 9.0, 9.0], ignored=1),
        annotation([-20.0, 0.0, 9.0, 9.0]),
    ]
    record = scene(tmp_path, annotations)
    output = mapper([resize(H, W, 2 * H, 3 * W), hflip(2 * H, 3 * W)], is_train=False)(record)
    wide = 3 * W
    left_to_right = [(10, 10, 30, 40), (10, 10, 30, 30), (40, 5, 44, 10), (40, 5, 44, 10), (10, 10, 30, 30)]
    expected = [(wide - 3 * x2, 2 * y1, wide - 3 * x1, 2 * y2) for x1, y1, x2, y2 in left_to_right]
    torch.testing.assert_close(output["selection_boxes"], torch.tensor(expected, dtype=torch.float32))
    assert output["selection_areas"].tolist() == [600.0, 416.0, 20.0, 20.0, 123.0]
    assert not {"selection_boxes", "selection_areas"} & mapper(is_train=True)(record).keys()
    empty = mapper(is_train=False)(scene(tmp_path, []))
    assert empty["selection_boxes"].shape == (0, 4) and empty["selection_areas"].shape == (0,)
