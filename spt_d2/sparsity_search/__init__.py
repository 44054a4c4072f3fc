"""SparseViT's evolutionary search: pruning ratios of high accuracy within a measured latency (Sec. 3.3)."""

from spt_d2.sparsity_search.evolution import evolve
from spt_d2.sparsity_search.search import SearchOptions, search_sparsity
from spt_d2.sparsity_search.space import Ratios, RatioSpace

__all__ = ["RatioSpace", "Ratios", "SearchOptions", "evolve", "search_sparsity"]
