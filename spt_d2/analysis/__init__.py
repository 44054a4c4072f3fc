"""What a model costs: multiply-adds from real token counts."""

# For the formulas that they register.
from spt_d2.analysis import dat_macs, dynamic_swin_macs, sparse_vit_macs, svit_gated_swin_macs  # noqa: F401
from spt_d2.analysis.hierarchy_macs import BackboneMacs, backbone_macs, image_macs, nominal_macs
from spt_d2.analysis.macs import BlockTokens, Macs, block_macs

__all__ = ["BackboneMacs", "BlockTokens", "Macs", "backbone_macs", "block_macs", "image_macs", "nominal_macs"]
