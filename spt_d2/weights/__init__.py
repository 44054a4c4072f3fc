"""Pretrained Swin weights, of whoever's layout, for the backbones here."""

from spt_d2.weights.files import read_weights, unwrap_weights, write_weights
from spt_d2.weights.fit import fit_to_model
from spt_d2.weights.layouts import LAYOUTS, Layout, detect_layout, to_native
from spt_d2.weights.report import WeightReport

__all__ = [
    "LAYOUTS",
    "Layout",
    "WeightReport",
    "detect_layout",
    "fit_to_model",
    "read_weights",
    "to_native",
    "unwrap_weights",
    "write_weights",
]
