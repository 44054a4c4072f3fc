"""The same initial weights for models that are to be compared."""

from collections.abc import Mapping

import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from detectron2.utils.env import seed_all_rng
from torch import Tensor, nn

import spt_d2.modeling  # noqa: F401  registers backbones and meta-architectures


def dense_twin(cfg: CfgNode) -> CfgNode:
    """The config of the dense Swin twin of equal depth; a config that is no Select and Pack one is its own."""
    twin = cfg.clone()
    twin.defrost()
    if "spt" in twin.MODEL.BACKBONE.NAME:
        twin.MODEL.BACKBONE.NAME = twin.MODEL.BACKBONE.NAME.replace("spt", "swin")
        for key in twin.MODEL.SWIN:
            twin.MODEL.SWIN[key] = twin.MODEL.SPT[key]
    twin.freeze()
    return twin


def initial_weights(cfg: CfgNode) -> dict[str, Tensor]:
    """
    The state dict of a config's model, made from ``SEED``.

    Random numbers are drawn anew for it; seed again before another model is made.
    """
    seed_all_rng(max(cfg.SEED, 0))
    return build_model(cfg).state_dict()


@torch.no_grad()
def load_agreeing(model: nn.Module, weights: Mapping[str, Tensor]) -> list[str]:
    """
    Copy weights wherever names and shapes agree.

    Args:
        model: changed in place; not wrapped for several processes.
        weights: a state dict, of another kind of model perhaps.

    Returns:
        the names of the model's entries that keep their own start.
    """
    own = []
    for name, tensor in model.state_dict().items():
        if name in weights and weights[name].shape == tensor.shape:
            tensor.copy_(weights[name])
        else:
            own.append(name)
    return own
