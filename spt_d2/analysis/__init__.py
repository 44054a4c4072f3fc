"""What a model costs: multiply-adds from real token counts."""

from spt_d2.analysis import svit_gated_swin_macs  # noqa: F401  registers its formulas
from spt_d2.analysis.hierarchy_macs import BackboneMacs, backbone_macs, image_macs, nominal_macs
from spt_d2.analysis.macs import BlockTokens, Macs, block_macs

__all__ = ["BackboneMacs", "BlockTokens", "Macs", "backbone_macs", "block_macs", "image_macs", "nominal_macs"]
