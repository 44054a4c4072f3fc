"""The tiny data set and model of the engine's tests, yaml and LazyConfig, with weights that keep some tokens."""

from pathlib import Path

import pytest
import torch

pytest.importorskip("detectron2")

from spt_d2.engine.model_config import ModelConfig, open_config
from tests import reference
from tests.engine.conftest import tiny_config
from tests.engine.test_lazy import LEAF, TINY

__all__ = ["tiny_config"]


@pytest.fixture(scope="session")
def tiny_lazy_config(tiny_shapes: list[list[str]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The twin of the tiny yaml config."""
    path = tmp_path_factory.mktemp("lazy") / "tiny.py"
    path.write_text(TINY.format(leaf=str(LEAF), custom=tiny_shapes))
    return path


@pytest.fixture(scope="session")
def tiny(tiny_config: Path) -> ModelConfig:
    """The tiny yaml config, opened."""
    return open_config(str(tiny_config), ["DATALOADER.NUM_WORKERS", "0"])


@pytest.fixture(scope="session")
def tiny_weights(tiny: ModelConfig, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A checkpoint whose gates spread their scores around the threshold."""
    torch.manual_seed(0)
    model = tiny.build_model()
    for name, module in model.named_modules():
        if name.endswith("gate.proj"):
            reference.randomise_(module, scale=2.0)
            torch.nn.init.constant_(module.bias, -3.0)
    path = tmp_path_factory.mktemp("weights") / "model.pth"
    torch.save({"model": model.state_dict()}, path)
    return str(path)
