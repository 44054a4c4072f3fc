"""A tiny SparseViT detector, its data and its weights."""

from pathlib import Path

import pytest
import torch
import yaml

pytest.importorskip("detectron2")

from spt_d2.engine.model_config import ModelConfig, open_config
from tests.engine.conftest import tiny_config

__all__ = ["tiny_config"]


@pytest.fixture(scope="session")
def sparse_config(tiny_config: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny yaml config over SparseViT."""
    backbone = {"EMBED_DIM": 16, "DEPTHS": [1, 1, 4, 1], "NUM_HEADS": [1, 2, 4, 8], "WINDOW_SIZE": 2}
    choices = {"PRUNING_RATIOS": [[0.3], [0.0], [0.2, 0.5], [0.0]], "RATIO_CHOICES": [0.0, 0.2, 0.5, 0.8]}
    config = {
        "_BASE_": str(tiny_config),
        "MODEL": {"BACKBONE": {"NAME": "build_sparse_vit_fpn_backbone"}, "SPARSE_VIT": {**backbone, **choices}},
        "INPUT": {"SPT": {"STRIDES": [4, 8, 16, 32]}},
        "DATALOADER": {"NUM_WORKERS": 0},
    }
    path = tmp_path_factory.mktemp("sparse") / "sparse.yaml"
    path.write_text(yaml.safe_dump(config))
    return path


@pytest.fixture(scope="session")
def sparse(sparse_config: Path) -> ModelConfig:
    """That config, opened."""
    return open_config(str(sparse_config))


@pytest.fixture(scope="session")
def sparse_weights(sparse: ModelConfig, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A checkpoint of it."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "model.pth"
    torch.save({"model": sparse.build_model().state_dict()}, path)
    return str(path)
