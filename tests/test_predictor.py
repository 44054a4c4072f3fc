"""From one image to an output: as evaluation gives it, for yaml and LazyConfig, and errors."""

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from torch import nn

pytest.importorskip("detectron2", reason="detectron2 is not installed")
from detectron2.config import CfgNode, instantiate
from detectron2.data import DatasetCatalog, Metadata
from detectron2.data import transforms as T
from detectron2.modeling import build_model
from detectron2.structures import Instances
from omegaconf import DictConfig

from spt_d2 import get_config
from spt_d2.data import SelectionDatasetMapper, setup_datasets, setup_lazy_datasets
from spt_d2.predictor import SelectionPredictor, build_predictor
from tests.modeling.nano import nano_cfg

# The tiny set's images are of 64 px, and are enlarged.
SIDE = 96


class Recorder(nn.Module):
    """Stands for a model: keeps what it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.inputs: list[dict] = []

    def forward(self, batched_inputs: list[dict]) -> list[dict]:
        assert not torch.is_grad_enabled()
        self.inputs += batched_inputs
        return [{"instances": None}]


def image(height: int = 48, width: int = 80) -> np.ndarray:
    """Every pixel and channel another value."""
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def yaml_cfg(tiny_shapes: list[list[str]]) -> CfgNode:
    cfg = nano_cfg("build_spt_fpn_backbone")
    cfg.DATASETS.CUSTOM, cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = tiny_shapes, ("tiny_train",), ("tiny_val",)
    cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST, cfg.INPUT.FORMAT = SIDE, 2 * SIDE, "RGB"
    cfg.TEST.DETECTIONS_PER_IMAGE = 5
    setup_datasets(cfg, [])
    return cfg


@pytest.fixture(scope="module")
def lazy_cfg(tiny_shapes: list[list[str]]) -> DictConfig:
    """Small, but of the same parts as the project's own."""
    cfg = DictConfig(
        {
            "model": get_config("common/models/spt_nano_fpn.py").model,
            "dataloader": get_config("common/data/shapes.py").dataloader,
            "train": get_config("common/train.py").train,
            "datasets": {"custom": tiny_shapes},
        },
        flags={"allow_objects": True},
    )
    cfg.model.backbone.bottom_up.update(embed_dim=8, depths=[1, 1, 2, 1], num_heads=[1, 2, 2, 4])
    cfg.model.backbone.out_channels = 16
    cfg.model.roi_heads.box_head.fc_dims = [16, 16]
    cfg.model.roi_heads.mask_head.conv_dims = [8, 8]
    cfg.model.roi_heads.box_predictor.update(test_score_thresh=0.0, test_topk_per_image=5)
    cfg.dataloader.train.dataset.names, cfg.dataloader.test.dataset.names = "tiny_train", ["tiny_val"]
    cfg.dataloader.test.mapper.augmentations[0].update(short_edge_length=SIDE, max_size=2 * SIDE)
    setup_lazy_datasets(cfg, [])
    return cfg


@pytest.fixture(scope="module")
def weights(yaml_cfg: CfgNode, lazy_cfg: DictConfig, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """A checkpoint of each model, with weights that nobody gets by chance."""
    paths = {}
    for name, model in (("yaml", build_model(yaml_cfg)), ("lazy", instantiate(lazy_cfg.model))):
        torch.manual_seed(5)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.05 * torch.randn_like(parameter))
        paths[name] = str(tmp_path_factory.mktemp("weights") / f"{name}.pth")
        torch.save({"model": model.state_dict()}, paths[name])
    return paths


def assert_same_instances(first: Instances, second: Instances) -> None:
    assert first.image_size == second.image_size and len(first) == len(second) > 0
    assert first.get_fields().keys() == second.get_fields().keys() >= {"pred_boxes", "scores", "pred_masks"}
    for name, value in first.get_fields().items():
        other = second.get(name)
        assert torch.equal(getattr(value, "tensor", value), getattr(other, "tensor", other)), name


@pytest.mark.parametrize("kind", ["yaml", "lazy"])
def test_it_gives_what_evaluation_gives(kind: str, yaml_cfg: CfgNode, lazy_cfg: DictConfig, weights: dict) -> None:
    """The same image through the mapper of an evaluation, and a model that was built and loaded by hand."""
    if kind == "yaml":
        cfg, mapper, model = yaml_cfg, SelectionDatasetMapper(yaml_cfg, is_train=False), build_model(yaml_cfg)
    else:
        cfg, mapper, model = lazy_cfg, instantiate(lazy_cfg.dataloader.test.mapper), instantiate(lazy_cfg.model)
        model.return_selections = True
    model.load_state_dict(torch.load(weights[kind])["model"])
    predictor = build_predictor(cfg, weights[kind])
    record = DatasetCatalog.get("tiny_val")[0]
    with torch.no_grad():
        (expected,) = model.eval()([mapper(record)])
    output = predictor(cv2.imread(record["file_name"]))
    assert_same_instances(output["instances"], expected["instances"])
    names = json.loads(Path(record["file_name"]).parents[1].joinpath("val.json").read_text())["categories"]
    assert predictor.metadata.thing_classes == [category["name"] for category in names]
    assert output["input_size"] == (SIDE, SIDE)
    if kind == "lazy":
        for mine, other in zip(output["selection"].blocks, expected["selection"].blocks):
            assert torch.equal(mine.score, other.score)


@pytest.mark.parametrize("kind", ["yaml", "lazy"])
def test_weights_are_those_asked_for_else_the_configs(
    kind: str, yaml_cfg: CfgNode, lazy_cfg: DictConfig, weights: dict
) -> None:
    cfg = lazy_cfg.copy() if kind == "lazy" else yaml_cfg.clone()
    name = "backbone.bottom_up.norm3.weight"
    expected = torch.load(weights[kind])["model"][name]
    assert not torch.equal(build_predictor(cfg, "").model.state_dict()[name], expected)
    if kind == "yaml":
        cfg.MODEL.WEIGHTS = weights[kind]
        cfg.freeze()
    else:
        cfg.train = {**cfg.train, "init_checkpoint": weights[kind]}
    assert torch.equal(build_predictor(cfg).model.state_dict()[name], expected)
    assert not torch.equal(build_predictor(cfg, "").model.state_dict()[name], expected)


@pytest.mark.parametrize("kind", ["yaml", "lazy"])
def test_a_cuda_device_gives_way_to_the_cpu_where_there_is_none(
    kind: str, yaml_cfg: CfgNode, lazy_cfg: DictConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    cfg = lazy_cfg if kind == "lazy" else yaml_cfg.clone()
    if kind == "yaml":
        cfg.MODEL.DEVICE = "cuda"
    else:
        assert cfg.train.device == "cuda"
    assert next(build_predictor(cfg).model.parameters()).device.type == "cpu"
    assert kind == "lazy" or cfg.MODEL.DEVICE == "cuda", "the caller's config is not changed"


@pytest.mark.parametrize("wanted", [True, False])
def test_selections_are_returned_on_request(wanted: bool, yaml_cfg: CfgNode) -> None:
    predictor = build_predictor(yaml_cfg, "", return_selections=wanted)
    output = predictor(image(48, 80))
    assert ("selection" in output) == wanted
    assert not predictor.model.training
    # 48 x 80, enlarged to 96 on its short side.
    assert output["input_size"] == (96, 160)
    assert output["instances"].image_size == (48, 80)
    if wanted:
        assert [block.score.shape for block in output["selection"].blocks] == [(12, 20), (6, 10), (6, 10), (3, 5)]


def test_a_model_that_has_no_selections_returns_none(yaml_cfg: CfgNode) -> None:
    cfg = yaml_cfg.clone()
    cfg.MODEL.META_ARCHITECTURE = "GeneralizedRCNN"
    assert build_predictor(cfg, "")(image()).keys() == {"instances", "input_size"}


@pytest.mark.parametrize("image_format", ["RGB", "BGR"])
def test_the_model_sees_the_channels_in_its_order(image_format: str) -> None:
    model, bgr = Recorder(), image()
    before = bgr.copy()
    SelectionPredictor(model, [], image_format=image_format)(bgr)
    (given,) = model.inputs
    expected = bgr[..., ::-1] if image_format == "RGB" else bgr
    assert given["image"].dtype == torch.float32
    assert np.array_equal(given["image"].numpy(), expected.transpose(2, 0, 1).astype(np.float32))
    assert (given["height"], given["width"]) == (48, 80)
    assert np.array_equal(bgr, before)


def test_the_channel_order_is_the_configs(yaml_cfg: CfgNode, lazy_cfg: DictConfig) -> None:
    for image_format in ("RGB", "BGR"):
        cfg, lazy = yaml_cfg.clone(), lazy_cfg.copy()
        cfg.INPUT.FORMAT = lazy.dataloader.train.mapper.image_format = image_format
        assert [build_predictor(one, "").image_format for one in (cfg, lazy)] == [image_format] * 2


def test_augmentations_act_on_the_image_and_its_size_stays_the_originals() -> None:
    model, bgr = Recorder(), image()
    output = SelectionPredictor(model, [T.ResizeShortestEdge([24, 24], 30)], image_format="BGR")(bgr)
    (given,) = model.inputs
    assert output["input_size"] == tuple(given["image"].shape[1:]) == (18, 30)
    assert (given["height"], given["width"]) == (48, 80)
    resized = T.ResizeShortestEdge([24, 24], 30).get_transform(bgr).apply_image(bgr)
    assert np.array_equal(given["image"].numpy(), resized.transpose(2, 0, 1).astype(np.float32))


def test_an_image_is_predicted_alike_each_time_and_whatever_came_before(yaml_cfg: CfgNode, weights: dict) -> None:
    predictor = build_predictor(yaml_cfg, weights["yaml"])
    first = predictor(image())["instances"]
    predictor(image(100, 30))
    assert_same_instances(predictor(image())["instances"], first)


def test_class_names_are_those_given_or_unknown() -> None:
    metadata = Metadata(thing_classes=["cat"])
    assert SelectionPredictor(Recorder(), [], metadata=metadata).metadata is metadata
    assert SelectionPredictor(Recorder(), []).metadata is None


def test_a_config_without_data_sets_has_no_class_names(yaml_cfg: CfgNode) -> None:
    cfg = yaml_cfg.clone()
    cfg.DATASETS.TEST = ()
    assert build_predictor(cfg, "").metadata is None


@pytest.mark.parametrize("image_format", ["rgb", "L", ""])
def test_another_channel_order_is_an_error(image_format: str) -> None:
    with pytest.raises(ValueError, match=rf"image_format=\) expects 'RGB' or 'BGR'. Got '{image_format}'"):
        SelectionPredictor(Recorder(), [], image_format=image_format)


@pytest.mark.parametrize(
    "bad",
    [image()[..., 0], image()[..., :2], image().astype(np.float32), image()[None], image()[:0]],
    ids=["grey", "two_channels", "float", "batch", "empty"],
)
def test_what_is_no_image_is_an_error_that_says_what_came(bad: np.ndarray) -> None:
    with pytest.raises(ValueError, match=r"shape \(H, W, 3\) and dtype uint8, in BGR order") as caught:
        SelectionPredictor(Recorder(), [])(bad)
    assert str(bad.shape) in str(caught.value) and str(bad.dtype) in str(caught.value)


@pytest.mark.parametrize(
    "bad, message",
    [
        (
            cv2.imread(str(Path(__file__).with_name("nowhere.jpg"))),
            "Got NoneType.\nHINT: cv2.imread returns None where",
        ),
        ("photo.jpg", r"Got str.\nHINT: pass the image itself: cv2.imread\(path\)"),
        (torch.zeros(4, 4, 3, dtype=torch.uint8), "Got Tensor.\nHINT: pass the image itself"),
    ],
    ids=["unread", "path", "tensor"],
)
def test_what_is_no_array_is_an_error_with_the_likely_mistake(bad: object, message: str) -> None:
    with pytest.raises(TypeError, match=message):
        SelectionPredictor(Recorder(), [])(bad)


def test_a_whole_checkpoint_is_asked_for_on_request(yaml_cfg: CfgNode, weights: dict, tmp_path: Path) -> None:
    """By default a predictor for other classes, or a model of which only a part is there, starts from chance."""
    name = "roi_heads.box_predictor.cls_score.bias"
    content = torch.load(weights["yaml"])
    assert torch.equal(
        build_predictor(yaml_cfg, weights["yaml"], whole=True).model.state_dict()[name], content["model"][name]
    )
    lacking = {key: value for key, value in content["model"].items() if "mask_head" not in key}
    other = {**content["model"], name: torch.zeros(3)}
    for model, message in (
        (lacking, r"(?s)It lacks 6,.*mask_head.*: none in the checkpoint.*and 1 more\nHINT: take the config.yaml"),
        (other, rf"(?s)It lacks 1,.*{name}: \(3,\) in the checkpoint, \(\d,\) here"),
    ):
        torch.save({"model": model}, tmp_path / "part.pth")
        build_predictor(yaml_cfg, str(tmp_path / "part.pth"))
        with pytest.raises(ValueError, match=message):
            build_predictor(yaml_cfg, str(tmp_path / "part.pth"), whole=True)


def test_a_file_that_does_not_exist_is_an_error(yaml_cfg: CfgNode, tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="not found"):
        build_predictor(yaml_cfg, str(tmp_path / "nowhere.pth"))
