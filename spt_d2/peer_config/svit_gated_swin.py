"""Keys of Swin with SViT's gates (Liu et al., WACV 2024)."""

from detectron2.config import CfgNode

from spt_d2.config_hierarchy import Expect, add_hierarchy, backbone_kind, check_hierarchy

NODE = "SVIT_GATED_SWIN"


def add_keys(cfg: CfgNode) -> None:
    """Add ``MODEL.SVIT_GATED_SWIN``."""
    cfg.MODEL.SVIT_GATED_SWIN = CfgNode()
    node = cfg.MODEL.SVIT_GATED_SWIN
    add_hierarchy(node, [2, 2, 6, 2])
    # Stages whose blocks have gates, any of 1 to 4; those of SPT by default.
    node.GATED_STAGES = [3, 4]
    # Blocks without a gate at the beginning of the first of these stages: a gate needs features to judge by. With two,
    # half of Swin-T's blocks are dense and a quarter of Swin-S's; of SViT's it is the first quarter.
    node.DENSE_BLOCKS = 2
    # Shares of tokens that gates are drawn to, each for an equal part of the gates in order (SViT: thirds). They are
    # means over the batch: an image keeps as many tokens as its gates say.
    node.KEEP_RATIOS = [0.7, 0.49, 0.343]
    # Weight of the squared distance from these shares, the mean over gates, as published.
    node.BUDGET_WEIGHT = 4.0


def check_keys(cfg: CfgNode, expect: Expect) -> None:
    """What one of the keys asks of another; where another backbone is built, their sizes alone."""
    node, key = cfg.MODEL.SVIT_GATED_SWIN, f"MODEL.{NODE}"
    check_hierarchy(cfg, NODE, expect)
    ratios = list(node.KEEP_RATIOS)
    fractions = bool(ratios) and all(0 < ratio <= 1 for ratio in ratios)
    expect(fractions, f"{key}.KEEP_RATIOS", "fractions in (0, 1]", ratios)
    expect(node.BUDGET_WEIGHT >= 0, f"{key}.BUDGET_WEIGHT", "a weight of at least 0", node.BUDGET_WEIGHT)
    known = list(range(1, len(node.DEPTHS) + 1))
    stages = sorted(set(node.GATED_STAGES))
    some = bool(stages) and set(stages) <= set(known)
    expect(some, f"{key}.GATED_STAGES", f"some of {known}", list(node.GATED_STAGES))
    # The defaults are those of the published depths, and of no concern to another backbone.
    if not some or backbone_kind(cfg) != NODE.lower():
        return
    depth = node.DEPTHS[stages[0] - 1]
    inside = 0 <= node.DENSE_BLOCKS < depth
    expect(inside, f"{key}.DENSE_BLOCKS", f"0 to {depth - 1}, for stage {stages[0]} has gates", node.DENSE_BLOCKS)
    gates = sum(node.DEPTHS[stage - 1] for stage in stages) - node.DENSE_BLOCKS
    enough = len(ratios) <= gates
    expect(enough, f"{key}.KEEP_RATIOS", f"at most one for each of {gates} gates", ratios)


def label_strides(cfg: CfgNode) -> list[int]:
    """Keep ratio, retention and density are those of the gated stages."""
    return sorted({2 ** (stage + 1) for stage in cfg.MODEL.SVIT_GATED_SWIN.GATED_STAGES})
