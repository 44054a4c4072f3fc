"""Modules over :mod:`spt_d2.ops`: patches, MLP, gate, attention, blocks, stages. Needs torch only."""
