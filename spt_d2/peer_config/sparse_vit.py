"""Keys of SparseViT (:mod:`spt_d2.modeling.backbone.sparse_vit`)."""

from detectron2.config import CfgNode

from spt_d2.config_hierarchy import Expect, add_hierarchy, check_hierarchy
from spt_d2.ops.window_selection import spread_ratios

NODE = "SPARSE_VIT"


def add_keys(cfg: CfgNode) -> None:
    """Add ``MODEL.SPARSE_VIT``."""
    cfg.MODEL.SPARSE_VIT = CfgNode()
    node = cfg.MODEL.SPARSE_VIT
    add_hierarchy(node, [2, 2, 6, 2])
    # For each stage the share of windows that its blocks skip, in [0, 1), not decreasing: a value for each block, or
    # fewer, spread evenly over the blocks. [[0], [0], [0], [0]] is dense Swin. The default is what SparseViT published
    # for 42 ms where dense Swin-T takes 48.
    node.PRUNING_RATIOS = [[0.3], [0.0], [0.1, 0.2, 0.2], [0.0]]
    # Whether training draws the ratios of every forward pass from RATIO_CHOICES, one for every two blocks, sorted
    # within a stage (SparseViT's sparsity-aware adaptation). Evaluation keeps to PRUNING_RATIOS.
    node.SAMPLE_RATIOS = False
    # What they are drawn from, and what tools/search_sparsity.py chooses among; in [0, 1).
    node.RATIO_CHOICES = [0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8]


def check_keys(cfg: CfgNode, expect: Expect) -> None:
    """Sizes, and ratios that the stages can have."""
    node = cfg.MODEL.SPARSE_VIT
    check_hierarchy(cfg, NODE, expect)
    ratios, choices = node.PRUNING_RATIOS, list(node.RATIO_CHOICES)
    each = f"for each stage of DEPTHS {node.DEPTHS} 1 to so many shares in [0, 1), not decreasing"
    expect(_can_be(ratios, node.DEPTHS), "MODEL.SPARSE_VIT.PRUNING_RATIOS", each, ratios)
    shares = bool(choices) and all(0 <= ratio < 1 for ratio in choices)
    expect(shares, "MODEL.SPARSE_VIT.RATIO_CHOICES", "shares of windows in [0, 1)", choices)


def _can_be(ratios: list, depths: list[int]) -> bool:
    if len(ratios) != len(depths):
        return False
    try:
        for values, depth in zip(ratios, depths):
            spread_ratios(values, depth, "PRUNING_RATIOS")
    except (TypeError, ValueError):
        return False
    return True


def label_strides(cfg: CfgNode) -> list[int]:
    """Of the stages that skip windows, in training or evaluation: retention and density are measured there."""
    node = cfg.MODEL.SPARSE_VIT
    if node.SAMPLE_RATIOS:
        return [2 ** (stage + 2) for stage in range(len(node.DEPTHS))]
    if not _can_be(node.PRUNING_RATIOS, node.DEPTHS):
        return []
    return [2 ** (stage + 2) for stage, ratios in enumerate(node.PRUNING_RATIOS) if max(ratios) > 0]
