"""Keys of the Deformable Attention Transformer, ``MODEL.DAT``."""

from detectron2.config import CfgNode

from spt_d2.config_hierarchy import Expect, add_hierarchy, check_hierarchy

NODE = "DAT"


def add_keys(cfg: CfgNode) -> None:
    """Sizes are those of DAT-T; of keys with a value for each stage, those of DEFORMABLE_STAGES are read."""
    cfg.MODEL.DAT = CfgNode()
    node = cfg.MODEL.DAT
    add_hierarchy(node, [2, 2, 6, 2])

    # Stages whose every second block is deformable, any of 1 to 4; in other stages its windows are shifted.
    node.DEFORMABLE_STAGES = [3, 4]
    # For each stage, groups of channels and heads with samples of their own; divisors of NUM_HEADS.
    node.GROUPS = [1, 1, 3, 6]
    # For each stage, the side of the convolution that finds offsets, in tokens, odd.
    node.OFFSET_KERNELS = [9, 7, 5, 3]
    # For each stage, the stride r of samples, in tokens: N tokens attend to N / r^2 samples. The released classifiers
    # have 1 in stages 3 and 4; in stage 3, 2 is what the published multiply-adds of detectors are nearest to.
    node.OFFSET_STRIDES = [8, 4, 2, 1]
    # The most that a sample moves, in halves of its cell (published: 2); 0 for any distance within the map (DAT++).
    node.OFFSET_RANGE = 2.0
    # Side in pixels of images whose maps the tables of displacements are as fine as; stretched for other images.
    node.PRETRAIN_IMAGE_SIZE = 224


def check_keys(cfg: CfgNode, expect: Expect) -> None:
    """Sizes of ``MODEL.DAT``."""
    check_hierarchy(cfg, NODE, expect)
    node = cfg.MODEL.DAT
    number = len(node.DEPTHS)
    stages = list(range(1, number + 1))
    known = bool(node.DEFORMABLE_STAGES) and set(node.DEFORMABLE_STAGES) <= set(stages)
    expect(known, "MODEL.DAT.DEFORMABLE_STAGES", f"some of {stages}", node.DEFORMABLE_STAGES)
    for key in ("GROUPS", "OFFSET_KERNELS", "OFFSET_STRIDES"):
        positive = len(node[key]) == number and all(value >= 1 for value in node[key])
        expect(positive, f"MODEL.DAT.{key}", f"{number} values of at least 1", node[key])
    pairs = [pair for i, pair in enumerate(zip(node.NUM_HEADS, node.GROUPS), 1) if i in node.DEFORMABLE_STAGES]
    shared = all(groups < 1 or heads % groups == 0 for heads, groups in pairs)
    expect(shared, "MODEL.DAT.GROUPS", f"divisors of NUM_HEADS {node.NUM_HEADS}", node.GROUPS)
    odd = all(kernel < 1 or kernel % 2 == 1 for kernel in node.OFFSET_KERNELS)
    expect(odd, "MODEL.DAT.OFFSET_KERNELS", "odd sides", node.OFFSET_KERNELS)
    expect(node.OFFSET_RANGE >= 0, "MODEL.DAT.OFFSET_RANGE", "a range above 0, or 0 for none", node.OFFSET_RANGE)
    size = node.PRETRAIN_IMAGE_SIZE
    expect(size >= 1, "MODEL.DAT.PRETRAIN_IMAGE_SIZE", "at least 1 px", size)


def label_strides(cfg: CfgNode) -> list[int]:
    """None: it takes no decision that could be judged."""
    return []
