"""What one key of the config asks of another, for :func:`spt_d2.config.validate_spt_config`."""

from collections.abc import Callable

from detectron2.config import CfgNode

# Takes whether all is well, the key, what it expects, and what it got.
Expect = Callable[[bool, str, str, object], None]


def check_packing(node: CfgNode, expect: Expect) -> None:
    """Combinations of ``MODEL.SPT`` that no block can have; each value by itself may be good."""
    area, size = node.WINDOW_SIZE**2, node.CONTAINER_SIZE
    expect(size >= 0, "MODEL.SPT.CONTAINER_SIZE", "0 (WINDOW_SIZE squared) or more tokens", size)
    if node.SEGMENT == "window":
        expect(node.ORDER == "window", "MODEL.SPT.ORDER", "'window' under SEGMENT 'window'", node.ORDER)
        whole = f"0, or whole windows of {area} tokens, under SEGMENT 'window'"
        expect(size <= 0 or size >= area, "MODEL.SPT.CONTAINER_SIZE", whole, size)
    if node.GATING == "centred":
        above = "a probability above 0 under GATING 'centred'"
        expect(node.THRESHOLD != 0, "MODEL.SPT.THRESHOLD", above, node.THRESHOLD)
    if node.POSITION == "rope":
        # Two coordinates, each of which turns pairs of channels.
        stages = [stage for stage in node.SPA_STAGES if 1 <= stage <= len(node.NUM_HEADS)]
        dims = [node.EMBED_DIM * 2 ** (stage - 1) // max(node.NUM_HEADS[stage - 1], 1) for stage in stages]
        fours = all(dim % 4 == 0 for dim in dims)
        expect(fours, "MODEL.SPT.NUM_HEADS", "heads of a multiple of 4 channels under POSITION 'rope'", node.NUM_HEADS)


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
    read = cfg.MODEL.FPN.IN_FEATURES
    # A file that names a backbone only, to stand on, has no FPN yet.
    if some and read and f"{name.lower()}_fpn" in cfg.MODEL.BACKBONE.NAME:
        # A map that nobody reads leaves its norm without a gradient, and several processes then wait for it for ever.
        same = set(node.OUT_FEATURES) == set(read)
        expect(same, f"{key}.OUT_FEATURES", f"the maps {read} that MODEL.FPN.IN_FEATURES reads", node.OUT_FEATURES)


def check_crop(node: CfgNode, expect: Expect) -> None:
    """What ``INPUT.CROP`` has beyond Detectron2's keys."""
    expect(0 <= node.PROBABILITY <= 1, "INPUT.CROP.PROBABILITY", "a probability in [0, 1]", node.PROBABILITY)
    sizes = all(size > 0 for size in node.MIN_SIZES)
    expect(sizes, "INPUT.CROP.MIN_SIZES", "short sides above 0 px", list(node.MIN_SIZES))
