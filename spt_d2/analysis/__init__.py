"""What a model costs: multiply-adds from real token counts."""

from spt_d2.analysis.macs import BackboneMacs, BlockTokens, Macs, backbone_macs, block_macs, image_macs, nominal_macs

__all__ = ["BackboneMacs", "BlockTokens", "Macs", "backbone_macs", "block_macs", "image_macs", "nominal_macs"]
