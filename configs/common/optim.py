"""Optimizers: AdamW as in Swin's detection recipe, and SGD."""

import torch
from detectron2.config import LazyCall as L

from spt_d2.engine.optimizer import optimizer_params

AdamW = L(torch.optim.AdamW)(
    params=L(optimizer_params)(
        # params.model is set by the program.
        base_lr="${..lr}",
        weight_decay_norm=0.0,
        weight_decay_position=0.0,
    ),
    lr=0.0001,
    betas=(0.9, 0.999),
    weight_decay=0.05,
)

SGD = L(torch.optim.SGD)(
    params=L(optimizer_params)(base_lr="${..lr}", weight_decay_norm=0.0, weight_decay_position=0.0),
    lr=0.02,
    momentum=0.9,
    weight_decay=0.0001,
)
