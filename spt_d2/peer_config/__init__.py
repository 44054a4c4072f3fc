"""
Keys of the backbones that SPT is compared with, a module for each.

Such a module has ``NODE``, the name of its node under ``MODEL``, upper case of the backbone's kind (``DAT`` of
``build_dat_backbone``); ``add_keys(cfg)``, whose assignments to ``node`` have comments that become docs/options.md;
``check_keys(cfg, expect)`` for :func:`spt_d2.config.validate_spt_config`; and ``label_strides(cfg)``, the strides in
pixels at which its decisions are judged.
"""

from types import ModuleType

from spt_d2.peer_config import dat, dynamic_swin, sparse_vit, svit_gated_swin

PEERS: tuple[ModuleType, ...] = (dat, dynamic_swin, sparse_vit, svit_gated_swin)
