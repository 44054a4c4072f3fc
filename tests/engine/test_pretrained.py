"""A file of pretrained weights, as somebody else saved it, starts a run: by yaml, by LazyConfig, in a predictor."""

from pathlib import Path

import pytest
import torch
from detectron2.config import LazyConfig
from detectron2.engine.train_loop import TrainerBase
from torch import Tensor, nn

from spt_d2.data import setup_lazy_datasets
from spt_d2.engine.lazy import LazyTrainer
from spt_d2.engine.setup import load_config
from spt_d2.engine.trainer import Trainer
from spt_d2.predictor import build_predictor
from tests.conftest import ROOT

LEAF = ROOT / "projects" / "SPT" / "configs" / "Shapes-InstanceSegmentation" / "mask_rcnn_spt_nano_fpn_demo.py"
SIZES = {"embed_dim": 16, "depths": [1, 1, 2, 1], "num_heads": [1, 2, 4, 8]}


@pytest.fixture(scope="module")
def timm_file(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, dict[str, Tensor]]:
    """A classifier of timm's, and its file."""
    timm_swin = pytest.importorskip("timm.models.swin_transformer", reason="timm is not installed")
    torch.manual_seed(5)
    weights = timm_swin.SwinTransformer(num_classes=3, **SIZES).state_dict()
    path = tmp_path_factory.mktemp("timm") / "model.pth"
    torch.save(weights, path)
    return str(path), weights


def starts_from(model: nn.Module, weights: dict[str, Tensor]) -> bool:
    """The first block and the last merging are the file's, where timm counts its mergings from 1."""
    own = model.backbone.bottom_up.state_dict()
    pairs = {
        "layers.0.blocks.0.attn.qkv.weight": "layers.0.blocks.0.attn.qkv.weight",
        "layers.2.downsample.reduction.weight": "layers.3.downsample.reduction.weight",
    }
    return all(torch.equal(own[name], weights[theirs]) for name, theirs in pairs.items())


def close_writers(*trainers: TrainerBase) -> None:
    """They open their files when they are made, and close them when training ends."""
    for trainer in trainers:
        for hook in trainer._hooks:
            for writer in getattr(hook, "_writers", ()):
                writer.close()


def test_yaml(timm_file: tuple[str, dict[str, Tensor]], tiny_config: Path, tmp_path: Path) -> None:
    path, weights = timm_file
    cfg = load_config(str(tiny_config), ["MODEL.WEIGHTS", path, "OUTPUT_DIR", str(tmp_path)])
    trainer = Trainer(cfg)
    assert not starts_from(trainer.model, weights)
    trainer.resume_or_load(resume=False)
    assert starts_from(trainer.model, weights)
    # Asked to resume where there is nothing to resume, a run starts from the same file.
    other = Trainer(cfg)
    other.resume_or_load(resume=True)
    assert starts_from(other.model, weights)
    close_writers(trainer, other)
    assert starts_from(build_predictor(cfg).model, weights)


def test_lazy_config(timm_file: tuple[str, dict[str, Tensor]], tiny_shapes: list[list[str]], tmp_path: Path) -> None:
    path, weights = timm_file
    cfg = LazyConfig.load(str(LEAF))
    cfg.datasets = {"custom": tiny_shapes}
    cfg.dataloader.train.dataset.names, cfg.dataloader.test.dataset.names = "tiny_train", "tiny_val"
    cfg.dataloader.train.num_workers = 0
    cfg.model.backbone.bottom_up.update(SIZES)
    cfg.train.update(init_checkpoint=path, output_dir=str(tmp_path), device="cpu")
    setup_lazy_datasets(cfg, [])
    trainer = LazyTrainer(cfg)
    trainer.resume_or_load(resume=False)
    assert starts_from(trainer.model, weights)
    close_writers(trainer.trainer)
