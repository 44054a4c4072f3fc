"""Optimizers: who decays, and how gradients are clipped."""

from collections.abc import Callable

import torch
from detectron2.config import CfgNode
from detectron2.layers.batch_norm import LayerNorm
from detectron2.solver.build import get_default_optimizer_params, reduce_param_groups
from torch import Tensor, nn
from torch.optim import Optimizer

CLIP_TYPES = ("value", "norm", "full_model")
# What variants have beside a dense Swin or ViT, by names of modules: no checkpoint of one holds them.
ADDED_PARTS = ("gate", "output_gates", "light", "pos_conv", "score_predictor", "fastmlp", "offset")


def optimizer_params(
    model: nn.Module,
    *,
    base_lr: float | None = None,
    weight_decay_norm: float | None = 0.0,
    weight_decay_position: float | None = 0.0,
    weight_decay_bias: float | None = None,
    bias_lr_factor: float = 1.0,
    backbone_lr_factor: float = 1.0,
) -> list[dict]:
    """
    Parameter groups by Swin's detection recipe: norms, position bias tables and embeddings do not decay.

    Args:
        model: parameters that need no gradient are left out.
        base_lr: learning rate of the groups; None leaves it to the optimizer.
        weight_decay_norm: of weights and biases of normalisation layers. For this and those below, None is the
            optimizer's.
        weight_decay_position: of relative position bias tables and absolute position embeddings.
        weight_decay_bias: of biases other than those of normalisation layers.
        bias_lr_factor: learning rate of biases over that of weights; needs ``base_lr``.
        backbone_lr_factor: learning rate of what a pretrained backbone brings over that of all else, which is heads,
            the pyramid, and :data:`ADDED_PARTS` of the backbone; needs ``base_lr``.

    Returns:
        as few groups as there are different settings.

    Raises:
        ValueError: both factors at once.
    """
    if bias_lr_factor != 1.0 and backbone_lr_factor != 1.0:
        raise ValueError(
            "optimizer_params expects one factor of learning rates at most.\n"
            f"  bias_lr_factor    : {bias_lr_factor}\n  backbone_lr_factor: {backbone_lr_factor}"
        )
    positions = {} if weight_decay_position is None else {"weight_decay": weight_decay_position}
    groups = get_default_optimizer_params(
        model,
        base_lr=base_lr,
        weight_decay_norm=weight_decay_norm,
        weight_decay_bias=weight_decay_bias,
        bias_lr_factor=bias_lr_factor,
        lr_factor_func=None
        if backbone_lr_factor == 1.0
        else lambda name: backbone_lr_factor if _is_pretrained(name) else 1.0,
        overrides={"relative_position_bias_table": positions, "pos_embed": positions},
    )
    if weight_decay_norm is not None:
        # Biases of norms are norms first; and Detectron2's function overlooks its own channels-first LayerNorm.
        norms = [
            parameter
            for module in model.modules()
            if isinstance(module, (nn.LayerNorm, nn.GroupNorm, nn.modules.batchnorm._NormBase, LayerNorm))
            for parameter in module.parameters(recurse=False)
            if parameter.requires_grad
        ]
        if norms:
            groups.append({"params": norms, "weight_decay": weight_decay_norm})
    return reduce_param_groups(groups)


def _is_pretrained(name: str) -> bool:
    """Whether a parameter of a model is one that its backbone has from a dense one: not the pyramid's, nor added."""
    module, *parts = name.split(".")
    return module == "backbone" and not parts[0].startswith("fpn_") and not set(parts) & set(ADDED_PARTS)


def build_optimizer(cfg: CfgNode, model: nn.Module) -> Optimizer:
    """AdamW or SGD from ``SOLVER``, with its gradient clipping."""
    node = cfg.SOLVER
    params = optimizer_params(
        model,
        base_lr=node.BASE_LR,
        weight_decay_norm=node.WEIGHT_DECAY_NORM,
        weight_decay_position=node.WEIGHT_DECAY_POSITION,
        weight_decay_bias=node.WEIGHT_DECAY_BIAS,
        bias_lr_factor=node.BIAS_LR_FACTOR,
        backbone_lr_factor=node.BACKBONE_LR_FACTOR,
    )
    optimizer: Optimizer
    if node.OPTIMIZER == "adamw":
        optimizer = torch.optim.AdamW(
            params, lr=node.BASE_LR, betas=tuple(node.ADAMW_BETAS), weight_decay=node.WEIGHT_DECAY
        )
    elif node.OPTIMIZER == "sgd":
        optimizer = torch.optim.SGD(
            params, lr=node.BASE_LR, momentum=node.MOMENTUM, nesterov=node.NESTEROV, weight_decay=node.WEIGHT_DECAY
        )
    else:
        raise ValueError(f"SOLVER.OPTIMIZER expects 'adamw' or 'sgd'. Got {node.OPTIMIZER!r}.")
    clip = node.CLIP_GRADIENTS
    if clip.ENABLED:
        clip_gradients(optimizer, clip.CLIP_TYPE, clip.CLIP_VALUE, clip.NORM_TYPE)
    return optimizer


def clip_gradients(optimizer: Optimizer, kind: str, value: float, norm_type: float = 2.0) -> Optimizer:
    """
    Let an optimizer clip gradients at the beginning of each of its steps.

    Under a gradient scaler that is after the gradients were unscaled, as it must be, so long as the training loop calls
    ``unscale_`` (as :class:`~spt_d2.engine.step.AutocastTrainer` does) or the optimizer is not a fused one.

    Args:
        optimizer: changed in place.
        kind: ``value`` clamps every component to [-value, value]; ``norm`` scales every parameter's gradient to a norm
            of at most ``value``; ``full_model`` scales all gradients together so that their joint norm is at most that.
        value: above 0.
        norm_type: p of the norm.

    Returns:
        the optimizer.
    """
    if kind not in CLIP_TYPES:
        raise ValueError(f"SOLVER.CLIP_GRADIENTS.CLIP_TYPE expects one of {CLIP_TYPES}. Got {kind!r}.")
    if not value > 0:
        raise ValueError(f"SOLVER.CLIP_GRADIENTS.CLIP_VALUE expects a number above 0. Got {value}.")
    clippers: dict[str, Callable[[list[Tensor]], object]] = {
        "value": lambda parameters: nn.utils.clip_grad_value_(parameters, value),
        "norm": lambda parameters: [nn.utils.clip_grad_norm_(p, value, norm_type) for p in parameters],
        "full_model": lambda parameters: nn.utils.clip_grad_norm_(parameters, value, norm_type),
    }
    clip = clippers[kind]

    def before_step(optimizer: Optimizer, args: tuple, kwargs: dict) -> None:
        clip([p for group in optimizer.param_groups for p in group["params"] if p.grad is not None])

    optimizer.register_step_pre_hook(before_step)
    return optimizer
