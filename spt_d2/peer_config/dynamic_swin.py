"""Keys of DynamicSwin (Rao et al., T-PAMI 2023)."""

from detectron2.config import CfgNode

from spt_d2.config_hierarchy import Expect, add_hierarchy, backbone_kind, check_hierarchy

NODE = "DYNAMIC_SWIN"
# Pixels per token of the stage with predictors.
_STRIDE = 16


def add_keys(cfg: CfgNode) -> None:
    """Add ``MODEL.DYNAMIC_SWIN``."""
    cfg.MODEL.DYNAMIC_SWIN = CfgNode()
    node = cfg.MODEL.DYNAMIC_SWIN
    add_hierarchy(node, [2, 2, 6, 2])
    # Blocks of stage 3, numbers from 0, that have a predictor before them. Published: [1, 2, 3] at depth 6, and
    # [2, 4, 6] at depth 18.
    node.PREDICTOR_BLOCKS = [1, 2, 3]
    # Share of an image's tokens that the first predictor keeps for the full FFN, rho, in (0, 1]; each further one keeps
    # 0.2 less.
    node.KEEP_RATIO = 0.7
    # Weight of the loss that holds the shares kept in training to these, as published; divided by the predictors.
    node.RATIO_WEIGHT = 10.0
    # File of a dense Swin of the same sizes, in any layout that MODEL.WEIGHTS takes, whose last map is learned from;
    # empty for none. Read in training only, which a forward pass of the teacher makes longer.
    node.TEACHER_WEIGHTS = ""
    # Weight of the squared distance from the teacher's last map, as published.
    node.DISTILL_WEIGHT = 0.5


def check_keys(cfg: CfgNode, expect: Expect) -> None:
    """What one of the keys asks of another; where another backbone is built, their sizes alone."""
    node, key = cfg.MODEL.DYNAMIC_SWIN, f"MODEL.{NODE}"
    check_hierarchy(cfg, NODE, expect)
    expect(node.RATIO_WEIGHT >= 0, f"{key}.RATIO_WEIGHT", "a weight of at least 0", node.RATIO_WEIGHT)
    expect(node.DISTILL_WEIGHT >= 0, f"{key}.DISTILL_WEIGHT", "a weight of at least 0", node.DISTILL_WEIGHT)
    if backbone_kind(cfg) != NODE.lower():
        return
    places = list(node.PREDICTOR_BLOCKS)
    depth = node.DEPTHS[2] if len(node.DEPTHS) > 2 else 0
    good = bool(places) and places == sorted(set(places)) and 0 <= places[0] <= places[-1] < depth
    expect(good, f"{key}.PREDICTOR_BLOCKS", f"ascending numbers of 0 to {depth - 1}, blocks of stage 3", places)
    lowest = round(0.2 * (len(places) - 1), 6)
    good = lowest < node.KEEP_RATIO <= 1
    expect(good, f"{key}.KEEP_RATIO", f"a fraction in ({lowest}, 1] for {len(places)} predictors", node.KEEP_RATIO)
    last = f"res{len(node.DEPTHS) + 1}"
    learned = not node.TEACHER_WEIGHTS or last in node.OUT_FEATURES
    expect(learned, f"{key}.OUT_FEATURES", f"{last}, which is compared with the teacher's", list(node.OUT_FEATURES))


def label_strides(cfg: CfgNode) -> list[int]:
    """Keep ratio, retention and density are those of the blocks of stage 3."""
    return [_STRIDE]
