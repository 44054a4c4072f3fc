"""Keys of a backbone of stages, as Swin is one, and which backbone a config names."""

from collections.abc import Callable

from detectron2.config import CfgNode

# Takes whether all is well, the key, what it expects, and what it got.
Expect = Callable[[bool, str, str, object], None]


def backbone_kind(cfg: CfgNode) -> str:
    """What ``MODEL.BACKBONE.NAME`` builds, a pyramid aside: ``spt``, ``swin``, ``vit`` and so on; ``resnet`` too."""
    name = cfg.MODEL.BACKBONE.NAME.removeprefix("build_").removeprefix("retinanet_")
    return name.removesuffix("_backbone").removesuffix("_fpn")


def add_hierarchy(node: CfgNode, depths: list[int]) -> None:
    """Keys that every backbone built as Swin is has in common: dense Swin, SPT and their peers."""
    # Channels of the first stage, C; each further stage doubles them.
    node.EMBED_DIM = 96
    # Blocks per stage, N_i in Sec. 3.1.
    node.DEPTHS = depths
    # Attention heads per stage.
    node.NUM_HEADS = [3, 6, 12, 24]
    # Window size M, in tokens.
    node.WINDOW_SIZE = 7
    # Hidden channels of the MLP over those of the stage.
    node.MLP_RATIO = 4.0
    # Whether queries, keys and values have a bias.
    node.QKV_BIAS = True
    # Dropout of tokens, MLPs and projections, a probability.
    node.DROP_RATE = 0.0
    # Dropout of attention weights, a probability.
    node.ATTN_DROP_RATE = 0.0
    # Stochastic depth of the last block, a probability; it grows linearly from 0 at the first block.
    node.DROP_PATH_RATE = 0.2
    # Feature maps to return: some of res2, res3, res4, res5 (strides 4, 8, 16, 32).
    node.OUT_FEATURES = ["res2", "res3", "res4", "res5"]
    # Recompute activations in the backward pass, block by block: less memory, more time.
    node.USE_CHECKPOINT = False


def check_hierarchy(cfg: CfgNode, name: str, expect: Expect) -> None:
    """Sizes of a node of :func:`add_hierarchy`, and whether an FPN reads the maps that its backbone gives."""
    node, key = cfg.MODEL[name], f"MODEL.{name}"
    good = 1 <= len(node.DEPTHS) <= 4 and all(depth >= 1 for depth in node.DEPTHS)
    expect(good, f"{key}.DEPTHS", "1 to 4 stages of at least 1 block", node.DEPTHS)
    same = len(node.DEPTHS) == len(node.NUM_HEADS)
    expect(same, f"{key}.NUM_HEADS", f"one number per stage of DEPTHS {node.DEPTHS}", node.NUM_HEADS)
    widths = [node.EMBED_DIM * 2**i for i in range(len(node.NUM_HEADS))]
    shared = all(heads >= 1 and width % heads == 0 for width, heads in zip(widths, node.NUM_HEADS))
    expect(shared, f"{key}.NUM_HEADS", f"divisors of the stages' channels {widths}", node.NUM_HEADS)
    expect(node.WINDOW_SIZE >= 1, f"{key}.WINDOW_SIZE", "at least 1 token", node.WINDOW_SIZE)
    expect(node.MLP_RATIO > 0, f"{key}.MLP_RATIO", "a ratio above 0", node.MLP_RATIO)
    for rate in ("DROP_RATE", "ATTN_DROP_RATE", "DROP_PATH_RATE"):
        expect(0 <= node[rate] < 1, f"{key}.{rate}", "a probability in [0, 1)", node[rate])
    known = [f"res{i + 2}" for i in range(len(node.DEPTHS))]
    some = bool(node.OUT_FEATURES) and set(node.OUT_FEATURES) <= set(known)
    expect(some, f"{key}.OUT_FEATURES", f"some of {known}", node.OUT_FEATURES)
    read = cfg.MODEL.FPN.IN_FEATURES
    # A file that names a backbone only, to stand on, has no FPN yet.
    if some and read and backbone_kind(cfg) == name.lower() and "_fpn" in cfg.MODEL.BACKBONE.NAME:
        # A map that nobody reads leaves its norm without a gradient, and several processes then wait for it for ever.
        same = set(node.OUT_FEATURES) == set(read)
        expect(same, f"{key}.OUT_FEATURES", f"the maps {read} that MODEL.FPN.IN_FEATURES reads", node.OUT_FEATURES)
