"""What one key of the config asks of another, for :func:`spt_d2.config.validate_spt_config`."""

from collections.abc import Callable

from detectron2.config import CfgNode

# Takes whether all is well, the key, what it expects, and what it got.
Expect = Callable[[bool, str, str, object], None]

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


def check_hierarchy(cfg: CfgNode, name: str, expect: Expect) -> None:
    """Sizes of ``MODEL.SPT`` or ``MODEL.SWIN``, and whether an FPN reads the maps that they give."""
    node, key = cfg.MODEL[name], f"MODEL.{name}"
    good = 1 <= len(node.DEPTHS) <= 4 and all(depth >= 1 for depth in node.DEPTHS)
    expect(good, f"{key}.DEPTHS", "1 to 4 stages of at least 1 block", node.DEPTHS)
    widths = [node.EMBED_DIM * 2**i for i in range(len(node.NUM_HEADS))]
    shared = all(heads >= 1 and width % heads == 0 for width, heads in zip(widths, node.NUM_HEADS))
    expect(shared, f"{key}.NUM_HEADS", f"divisors of the stages' channels {widths}", node.NUM_HEADS)
    expect(node.WINDOW_SIZE >= 1, f"{key}.WINDOW_SIZE", "at least 1 token", node.WINDOW_SIZE)
    expect(node.MLP_RATIO > 0, f"{key}.MLP_RATIO", "a ratio above 0", node.MLP_RATIO)
    for rate in ("DROP_RATE", "ATTN_DROP_RATE"):
        expect(0 <= node[rate] < 1, f"{key}.{rate}", "a probability in [0, 1)", node[rate])
    known = [f"res{i + 2}" for i in range(len(node.DEPTHS))]
    some = bool(node.OUT_FEATURES) and set(node.OUT_FEATURES) <= set(known)
    expect(some, f"{key}.OUT_FEATURES", f"some of {known}", node.OUT_FEATURES)
    if name == "SPT" and node.POSITION == "rope" and "vit" not in cfg.MODEL.BACKBONE.NAME:
        # Two coordinates, each of which turns pairs of channels.
        stages = [stage for stage in node.SPA_STAGES if 1 <= stage <= len(node.NUM_HEADS)]
        fours = all(widths[stage - 1] // max(node.NUM_HEADS[stage - 1], 1) % 4 == 0 for stage in stages)
        expect(fours, f"{key}.NUM_HEADS", _FOURS, node.NUM_HEADS)
    read = cfg.MODEL.FPN.IN_FEATURES
    # A file that names a backbone only, to stand on, has no FPN yet.
    if some and read and f"{name.lower()}_fpn" in cfg.MODEL.BACKBONE.NAME:
        # A map that nobody reads leaves its norm without a gradient, and several processes then wait for it for ever.
        same = set(node.OUT_FEATURES) == set(read)
        expect(same, f"{key}.OUT_FEATURES", f"the maps {read} that MODEL.FPN.IN_FEATURES reads", node.OUT_FEATURES)


def check_vit(cfg: CfgNode, expect: Expect) -> None:
    """Sizes of ``MODEL.VIT``."""
    node, backbone = cfg.MODEL.VIT, cfg.MODEL.BACKBONE.NAME
    patch, heads = node.PATCH_SIZE, node.NUM_HEADS
    good = patch == 16 if "vit_fpn" in backbone else patch > 1 and patch & (patch - 1) == 0
    expect(good, "MODEL.VIT.PATCH_SIZE", "a power of two above 1; 16 for a pyramid", patch)
    expect(node.DEPTH >= 1, "MODEL.VIT.DEPTH", "at least 1 block", node.DEPTH)
    shared = heads >= 1 and node.EMBED_DIM % heads == 0
    expect(shared, "MODEL.VIT.NUM_HEADS", f"a divisor of EMBED_DIM {node.EMBED_DIM}", heads)
    distinct = len(set(node.SPA_BLOCKS)) == len(node.SPA_BLOCKS)
    inside = distinct and all(0 <= block < node.DEPTH for block in node.SPA_BLOCKS)
    # The default is that of 12 blocks, and of no concern to another backbone.
    if "vit" in backbone:
        turned = cfg.MODEL.SPT.POSITION == "rope" and bool(node.SPA_BLOCKS)
        expect(not turned or node.EMBED_DIM // max(heads, 1) % 4 == 0, "MODEL.VIT.NUM_HEADS", _FOURS, heads)
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
