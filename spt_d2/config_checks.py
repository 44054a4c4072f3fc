"""What one key of the config asks of another, for :func:`spt_d2.config.validate_spt_config`."""

from detectron2.config import CfgNode

from spt_d2.config_hierarchy import Expect, backbone_kind

_FOURS = "heads of a multiple of 4 channels under POSITION 'rope'"


def check_packing(node: CfgNode, expect: Expect) -> None:
    """Combinations of ``MODEL.SPT`` that no block can have; each value by itself may be good."""
    area, size = node.WINDOW_SIZE**2, node.CONTAINER_SIZE
    expect(size >= 0, "MODEL.SPT.CONTAINER_SIZE", "0 (WINDOW_SIZE squared) or more tokens", size)
    if node.SEGMENT == "window":
        expect(node.ORDER == "window", "MODEL.SPT.ORDER", "'window' under SEGMENT 'window'", node.ORDER)
        whole = f"0, or whole windows of {area} tokens, under SEGMENT 'window'"
        expect(size <= 0 or size >= area, "MODEL.SPT.CONTAINER_SIZE", whole, size)
    if node.SEGMENT == "image":
        biased = node.POSITION == "relative_bias"
        expect(not biased, "MODEL.SPT.POSITION", "none, rope or conv under SEGMENT 'image'", node.POSITION)
    if node.GATING == "centred":
        above = "a probability above 0 under GATING 'centred'"
        expect(node.THRESHOLD != 0, "MODEL.SPT.THRESHOLD", above, node.THRESHOLD)


def check_rope(cfg: CfgNode, expect: Expect) -> None:
    """Whether heads can turn under POSITION ``rope``: two coordinates, each of which turns pairs of channels."""
    spt, vit, kind = cfg.MODEL.SPT, cfg.MODEL.VIT, backbone_kind(cfg)
    if spt.POSITION != "rope":
        return
    if kind == "vit":
        fours = not vit.SPA_BLOCKS or vit.EMBED_DIM // max(vit.NUM_HEADS, 1) % 4 == 0
        expect(fours, "MODEL.VIT.NUM_HEADS", _FOURS, vit.NUM_HEADS)
    else:
        stages = [stage for stage in spt.SPA_STAGES if 1 <= stage <= len(spt.NUM_HEADS)]
        dims = [spt.EMBED_DIM * 2 ** (stage - 1) // max(spt.NUM_HEADS[stage - 1], 1) for stage in stages]
        expect(all(dim % 4 == 0 for dim in dims), "MODEL.SPT.NUM_HEADS", _FOURS, spt.NUM_HEADS)


def check_vit(cfg: CfgNode, expect: Expect) -> None:
    """Sizes of ``MODEL.VIT``."""
    node, of_vit = cfg.MODEL.VIT, backbone_kind(cfg) == "vit"
    patch, heads = node.PATCH_SIZE, node.NUM_HEADS
    good = patch == 16 if of_vit and "_fpn" in cfg.MODEL.BACKBONE.NAME else patch > 1 and patch & (patch - 1) == 0
    expect(good, "MODEL.VIT.PATCH_SIZE", "a power of two above 1; 16 for a pyramid", patch)
    expect(node.DEPTH >= 1, "MODEL.VIT.DEPTH", "at least 1 block", node.DEPTH)
    shared = heads >= 1 and node.EMBED_DIM % heads == 0
    expect(shared, "MODEL.VIT.NUM_HEADS", f"a divisor of EMBED_DIM {node.EMBED_DIM}", heads)
    distinct = len(set(node.SPA_BLOCKS)) == len(node.SPA_BLOCKS)
    inside = distinct and all(0 <= block < node.DEPTH for block in node.SPA_BLOCKS)
    # The default is that of 12 blocks, and of no concern to another backbone.
    if of_vit:
        expect(inside, "MODEL.VIT.SPA_BLOCKS", f"distinct numbers of 0 to {node.DEPTH - 1}", list(node.SPA_BLOCKS))
    size = node.PRETRAIN_IMAGE_SIZE
    whole = size > 0 and patch > 0 and size % patch == 0
    expect(whole, "MODEL.VIT.PRETRAIN_IMAGE_SIZE", f"a multiple of PATCH_SIZE {patch}", size)
    for key in ("DROP_RATE", "ATTN_DROP_RATE", "DROP_PATH_RATE"):
        expect(0 <= node[key] < 1, f"MODEL.VIT.{key}", "a probability in [0, 1)", node[key])
    expect(node.MLP_RATIO > 0, "MODEL.VIT.MLP_RATIO", "a ratio above 0", node.MLP_RATIO)


def check_crop(node: CfgNode, expect: Expect) -> None:
    """What ``INPUT.CROP`` has beyond Detectron2's keys."""
    expect(0 <= node.PROBABILITY <= 1, "INPUT.CROP.PROBABILITY", "a probability in [0, 1]", node.PROBABILITY)
    sizes = all(size > 0 for size in node.MIN_SIZES)
    expect(sizes, "INPUT.CROP.MIN_SIZES", "short sides above 0 px", list(node.MIN_SIZES))
