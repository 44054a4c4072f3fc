"""The number of classes: from the training json into the model, and an error with both numbers where others differ."""

import json
import logging
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

pytest.importorskip("detectron2", reason="detectron2 is not installed")
from detectron2.config import CfgNode, LazyConfig, get_cfg, instantiate
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.modeling import build_model
from omegaconf import DictConfig, OmegaConf

from spt_d2 import get_config
from spt_d2.config import add_spt_config
from spt_d2.data import num_classes, setup_datasets, setup_lazy_datasets
from spt_d2.data.num_classes import lazy_names
from spt_d2.engine.setup import load_config

ROI, RETINANET = "MODEL.ROI_HEADS.NUM_CLASSES", "MODEL.RETINANET.NUM_CLASSES"
PETS, FARM = ["cat", "dog", "mouse"], ["cow", "pig"]


@pytest.fixture(autouse=True)
def catalogs() -> Iterator[None]:
    """What a test registers is gone after it."""
    before = [set(catalog) for catalog in (DatasetCatalog, MetadataCatalog)]
    yield
    for catalog, names in zip((DatasetCatalog, MetadataCatalog), before):
        for name in set(catalog) - names:
            catalog.pop(name)


Entry = Callable[..., list[str]]


@pytest.fixture
def entry(tmp_path: Path) -> Entry:
    """Write a json with these classes, ids 10, 20, ... or those given; its entry in a config."""

    def entry(name: str, classes: list[str], ids: list[int] | None = None) -> list[str]:
        categories = [{"id": i, "name": c} for i, c in zip(ids or range(10, 1000, 10), classes)]
        images = [{"id": 1, "file_name": "a.jpg", "height": 32, "width": 32}]
        path = tmp_path / f"{name}.json"
        path.write_text(json.dumps({"images": images, "annotations": [], "categories": categories}))
        return [name, str(path), str(tmp_path)]

    return entry


def yaml_cfg(custom: list[list[str]], train: tuple[str, ...], test: tuple[str, ...] = ()) -> CfgNode:
    cfg = get_cfg()
    add_spt_config(cfg)
    cfg.DATASETS.CUSTOM, cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = custom, train, test
    return cfg


def lazy_cfg(custom: list[list[str]], train: object, test: object = ()) -> DictConfig:
    leaf = "projects/SPT/configs/Shapes-InstanceSegmentation/mask_rcnn_spt_nano_fpn_demo.py"
    cfg = LazyConfig.load(str(Path(__file__).parents[2] / leaf))
    cfg.datasets = {"custom": custom}
    cfg.dataloader.train.dataset.names, cfg.dataloader.test.dataset.names = train, test
    return cfg


def counts(cfg: CfgNode | DictConfig) -> list[int]:
    if isinstance(cfg, CfgNode):
        return [cfg.MODEL.ROI_HEADS.NUM_CLASSES, cfg.MODEL.RETINANET.NUM_CLASSES]
    heads = cfg.model.roi_heads
    return [heads.num_classes, heads.box_predictor.num_classes, heads.mask_head.num_classes]


def set_up(cfg: CfgNode | DictConfig, *overrides: str) -> None:
    """As the programs do, whose command lines differ: ``KEY VALUE`` and ``key=value``."""
    if isinstance(cfg, CfgNode):
        cfg.merge_from_list(list(overrides))
        setup_datasets(cfg, overrides)
    else:
        LazyConfig.apply_overrides(cfg, list(overrides))
        setup_lazy_datasets(cfg, overrides)


# The same of both kinds of config: how it is made, an override of the number of classes, and the key it names.
KINDS = [
    pytest.param(yaml_cfg, lambda n: (ROI, str(n)), ROI, id="yaml"),
    pytest.param(
        lazy_cfg, lambda n: (f"model.roi_heads.num_classes={n}",), "model.roi_heads.num_classes", id="LazyConfig"
    ),
]
kinds = pytest.mark.parametrize("make, override, key", KINDS)


@kinds
def test_the_number_is_that_of_the_training_json_and_is_logged(make, override, key, entry: Entry, caplog) -> None:
    own = entry("mine_train", PETS)
    cfg = make([own, entry("mine_val", PETS)], ("mine_train",), ("mine_val",))
    assert 3 not in counts(cfg)
    with caplog.at_level(logging.INFO, logger=num_classes.__name__):
        set_up(cfg)
    assert set(counts(cfg)) == {3}
    (record,) = [record for record in caplog.records if record.name == num_classes.__name__]
    assert record.getMessage().startswith(f"3 classes from {own[1]}: ") and key in record.getMessage()


@kinds
def test_ids_with_gaps_are_counted_and_not_their_largest(make, override, key, entry: Entry) -> None:
    cfg = make([entry("mine", FARM, [7, 91])], ("mine",))
    set_up(cfg)
    assert set(counts(cfg)) == {2}


@kinds
def test_a_validation_json_with_other_classes_is_an_error_that_names_both_numbers(
    make, override, key, entry: Entry
) -> None:
    train, test = entry("mine_train", PETS), entry("mine_val", [*PETS[:2], *FARM])
    cfg = make([train, test], ("mine_train",), ("mine_val",))
    with pytest.raises(ValueError) as caught:
        set_up(cfg)
    assert str(caught.value) == (
        "Data sets of one run expect the same classes in the same order of ids.\n"
        f"  'mine_train': 3 classes, {train[1]}\n  'mine_val': 4 classes, {test[1]}\n"
        "  only in 'mine_train': ['mouse']\n  only in 'mine_val': ['cow', 'pig']"
    )


@kinds
def test_the_same_classes_in_another_order_are_an_error_that_shows_both(make, override, key, entry: Entry) -> None:
    cfg = make([entry("a", PETS), entry("b", PETS[::-1])], ("a",), ("b",))
    with pytest.raises(ValueError, match=r"order of 'a': \['cat', 'dog', 'mouse'\]\n  order of 'b': \['mouse', "):
        set_up(cfg)


@kinds
def test_the_same_classes_under_other_ids_are_the_same(make, override, key, entry: Entry, caplog) -> None:
    cfg = make([entry("a", PETS), entry("b", PETS, [1, 2, 5])], ("a",), ("b",))
    with caplog.at_level(logging.INFO, logger=num_classes.__name__):
        set_up(cfg)
    assert set(counts(cfg)) == {3}
    assert "'a' and 'b' number the same classes differently" in caplog.text


@kinds
def test_two_training_sets_must_agree_too(make, override, key, entry: Entry) -> None:
    cfg = make([entry("a", PETS), entry("b", FARM)], ("a", "b"))
    with pytest.raises(ValueError, match=r"'a': 3 classes(.|\n)*'b': 2 classes"):
        set_up(cfg)


@kinds
def test_a_set_of_others_beside_ones_own_must_agree(make, override, key, entry: Entry) -> None:
    cfg = make([entry("a", PETS)], ("a",), ("coco_2017_val",))
    with pytest.raises(ValueError, match=r"'a': 3 classes(.|\n)*'coco_2017_val': 80 classes"):
        set_up(cfg)


@kinds
def test_an_override_that_says_otherwise_is_an_error_that_names_both_numbers(make, override, key, entry: Entry) -> None:
    own = entry("mine", PETS)
    with pytest.raises(ValueError) as caught:
        set_up(make([own], ("mine",)), *override(5))
    assert str(caught.value) == (
        f"{key} is 5 on the command line, but the training set has 3 classes.\n  {own[1]}: {PETS}\n"
        "HINT: leave the override out; the number is set from the json."
    )


@kinds
def test_an_override_that_says_the_same_is_accepted(make, override, key, entry: Entry) -> None:
    cfg = make([entry("mine", PETS)], ("mine",))
    set_up(cfg, *override(3))
    assert set(counts(cfg)) == {3}


@kinds
def test_without_a_training_set_of_ones_own_the_configs_number_stands(
    make, override, key, entry: Entry, caplog
) -> None:
    """Trained on COCO, evaluated on one's own json with COCO's classes; and nothing but COCO."""
    coco = MetadataCatalog.get("coco_2017_train")
    ids = list(coco.thing_dataset_id_to_contiguous_id)
    for custom, test in (([], "coco_2017_val"), ([entry("mine", coco.thing_classes, ids)], "mine")):
        cfg = make(custom, ("coco_2017_train",), (test,))
        set_up(cfg, *override(7))
        assert counts(cfg)[0] == 7
    cfg = make([entry("other", PETS)], ("coco_2017_train",), ("other",))
    with pytest.raises(ValueError, match=r"'coco_2017_train': 80 classes(.|\n)*'other': 3 classes"):
        set_up(cfg)


@kinds
def test_sets_that_are_named_but_not_used_decide_nothing(make, override, key, entry: Entry) -> None:
    cfg = make([entry("a", PETS), entry("unused", FARM)], ("a",))
    set_up(cfg)
    assert set(counts(cfg)) == {3} and "unused" in DatasetCatalog


# yaml


@pytest.mark.parametrize("key", [ROI, RETINANET])
def test_either_key_may_be_the_one_that_disagrees(key: str, entry: Entry) -> None:
    with pytest.raises(ValueError, match=rf"{re.escape(key)} is 80 on the command line.*has 3 classes"):
        set_up(yaml_cfg([entry("mine", PETS)], ("mine",)), "SOLVER.MAX_ITER", "7", key, "80")


def test_a_number_in_the_file_is_no_override(entry: Entry, tmp_path: Path) -> None:
    """A base that was made for other classes serves: what was asked for by hand alone has to agree."""
    own = entry("mine", PETS)
    content = {"MODEL": {"ROI_HEADS": {"NUM_CLASSES": 4}}, "DATASETS": {"CUSTOM": [own], "TRAIN": ["mine"]}}
    (tmp_path / "mine.yaml").write_text(json.dumps({"VERSION": 2, **content}))
    cfg = load_config(str(tmp_path / "mine.yaml"))
    assert set(counts(cfg)) == {3} and cfg.is_frozen()
    with pytest.raises(ValueError, match="is 4 on the command line"):
        load_config(str(tmp_path / "mine.yaml"), [ROI, "4"])


@pytest.mark.parametrize(
    "architecture, backbone",
    [("SelectionGeneralizedRCNN", "build_spt_fpn_backbone"), ("RetinaNet", "build_retinanet_spt_fpn_backbone")],
)
def test_the_model_has_an_output_for_every_class(architecture: str, backbone: str, entry: Entry) -> None:
    cfg = get_config("Base-nano-RCNN-FPN.yaml")
    cfg.DATASETS.CUSTOM, cfg.DATASETS.TRAIN = [entry("mine", PETS)], ("mine",)
    cfg.MODEL.META_ARCHITECTURE, cfg.MODEL.BACKBONE.NAME, cfg.MODEL.DEVICE = architecture, backbone, "meta"
    setup_datasets(cfg, [])
    with torch.device("meta"):
        model = build_model(cfg)
    if architecture == "RetinaNet":
        assert model.num_classes == 3
        assert model.head.cls_score.out_channels == 3 * model.anchor_generator.num_anchors[0]
    else:
        heads = model.roi_heads
        assert heads.box_predictor.cls_score.out_features == 4 and heads.mask_head.predictor.out_channels == 3


# LazyConfig


def test_references_to_the_number_stay_references_and_the_model_follows(entry: Entry) -> None:
    cfg = lazy_cfg([entry("mine", PETS)], "mine", "mine")
    set_up(cfg)
    # A later change of the one number still reaches those that refer to it.
    cfg.model.roi_heads.num_classes = 9
    assert counts(cfg) == [9, 9, 9]
    with torch.device("meta"):
        model = instantiate(cfg.model)
    assert model.roi_heads.box_predictor.cls_score.out_features == 10


def test_an_override_of_one_part_that_says_otherwise_is_an_error_too(entry: Entry) -> None:
    """What refers to the one number in the file is a number of its own once the command line has set it."""
    key = "model.roi_heads.box_predictor.num_classes"
    with pytest.raises(ValueError, match=rf"{re.escape(key)} is 5 on the command line.*has 3 classes"):
        set_up(lazy_cfg([entry("mine", PETS)], "mine"), f"{key}=5")


def test_numbers_that_are_not_the_detectors_are_left_alone(entry: Entry) -> None:
    """Semantic segmentation has classes of its own, and so has a backbone that was a classifier; lists are entered."""
    cfg = lazy_cfg([entry("mine", PETS)], "mine")
    cfg.model.sem_seg_head = {"num_classes": 54}
    cfg.model.backbone.num_classes = 1000
    cfg.model.roi_heads.box_predictors = [{"num_classes": 80}, {"num_classes": "${model.roi_heads.num_classes}"}]
    set_up(cfg)
    assert cfg.model.sem_seg_head.num_classes == 54 and cfg.model.backbone.num_classes == 1000
    assert [node.num_classes for node in cfg.model.roi_heads.box_predictors] == [3, 3]


def test_a_retinanet_is_set_too(entry: Entry) -> None:
    cfg = lazy_cfg([entry("mine", PETS)], "mine")
    cfg.model = {"num_classes": 80, "head": {"num_classes": "${..num_classes}"}}
    set_up(cfg)
    assert cfg.model.num_classes == cfg.model.head.num_classes == 3
    cfg.model = {"num_classes": 80}
    with pytest.raises(ValueError, match=r"model.num_classes is 5 on the command line.*has 3 classes"):
        set_up(cfg, "model.num_classes=5")


def test_a_config_without_data_sets_of_ones_own_needs_no_mention_of_them(entry: Entry) -> None:
    cfg = lazy_cfg([], "coco_2017_train", "coco_2017_val")
    del cfg["datasets"]
    set_up(cfg)
    assert counts(cfg)[0] == 4


@pytest.mark.parametrize(
    "data_set, names",
    [
        ({"names": "a"}, ["a"]),
        ({"names": ["a", "b"]}, ["a", "b"]),
        ({"names": ("a",)}, ["a"]),
        ({"names": {"_target_": "f"}}, []),
        ({"names": None}, []),
        ({"_target_": "MyDataset"}, []),
        ([{"file_name": "a.jpg"}], []),
        (None, []),
    ],
    ids=str,
)
def test_names_of_a_lazy_configs_data_sets_are_read_where_there_are_any(data_set: object, names: list[str]) -> None:
    """A loader may have data of any kind."""
    cfg = OmegaConf.create({"dataloader": {"train": {"dataset": data_set}}})
    assert lazy_names(cfg, "train") == names
    assert lazy_names(cfg, "test") == []
