"""Yaml configs and LazyConfigs behind one door: twins build, load, read and evaluate alike."""

import json
from pathlib import Path

import pytest
import torch

from spt_d2.engine.model_config import LazyModelConfig, YamlModelConfig, open_config

from .conftest import ROOT, assert_same
from .test_lazy import LEAF, tiny_lazy_config

__all__ = ["tiny_lazy_config"]


@pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning")
def test_twins_load_read_and_evaluate_alike(tiny_config: Path, tiny_lazy_config: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    torch.save({"model": open_config(str(tiny_config)).build_model().state_dict()}, tmp_path / "model.pth")
    overrides = (
        ["MODEL.WEIGHTS", str(tmp_path / "model.pth"), "DATALOADER.NUM_WORKERS", "0"],
        [f"train.init_checkpoint={tmp_path / 'model.pth'}"],
    )
    found = []
    for path, opts, kind in zip(
        (tiny_config, tiny_lazy_config), overrides, (YamlModelConfig, LazyModelConfig), strict=True
    ):
        config = open_config(str(path), opts)
        assert isinstance(config, kind) and config.device == "cpu" and config.datasets == ["tiny_val"]
        model = config.load_model()
        assert not model.training
        folder = tmp_path / kind.__name__
        results = config.evaluate(model, "tiny_val", str(folder))
        (detections,) = folder.glob("coco_instances_results.json")
        inputs = [{k: v for k, v in given.items() if k != "instances"} for given in config.inputs("tiny_val", 2)]
        found.append((dict(results["selection"]), json.loads(detections.read_text()), inputs))
        assert {"bbox", "segm"} <= results.keys()
    assert_same(*found)
    assert len(found[0][1]) > 0


def test_images_are_spread_evenly_over_the_data_set(tiny_config: Path) -> None:
    config = open_config(str(tiny_config), ["DATALOADER.NUM_WORKERS", "0"])
    everything = [given["image_id"] for given in config.inputs("tiny_val")]
    assert len(everything) == 6
    assert [given["image_id"] for given in config.inputs("tiny_val", 3)] == everything[::2]
    assert [given["image_id"] for given in config.inputs("tiny_val", 99)] == everything


def test_a_model_on_the_meta_device_has_shapes_and_no_weights() -> None:
    yaml = open_config(str(ROOT / "configs" / "Shapes-InstanceSegmentation" / "mask_rcnn_spt_nano_fpn_demo.yaml"))
    states = [config.build_model("meta").state_dict() for config in (yaml, open_config(str(LEAF)))]
    shapes = [{name: tuple(value.shape) for name, value in state.items()} for state in states]
    assert shapes[0] == shapes[1]
    assert all(value.device.type == "meta" for state in states for value in state.values())


def test_errors_name_the_cure(tiny_config: Path) -> None:
    with pytest.raises(FileNotFoundError, match="Got 'nowhere.yaml', which does not exist"):
        open_config("nowhere.yaml")
    config = open_config(str(tiny_config))
    with pytest.raises(ValueError, match="expects a checkpoint(.|\n)*HINT: MODEL.WEIGHTS FILE"):
        config.load_model()
    with pytest.raises(KeyError, match="Got 'tiny_vla'"):
        config.inputs("tiny_vla")
