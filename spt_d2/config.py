"""Every key this project adds to Detectron2's config, and what it may be."""

from detectron2.config import CfgNode

from spt_d2.config_checks import check_crop, check_packing, check_rope, check_vit
from spt_d2.config_hierarchy import add_hierarchy, backbone_kind, check_hierarchy
from spt_d2.evaluation.average_precision import FLAVOURS
from spt_d2.layers.select_pack_attention import FFN_TOKENS, GATES, POSITIONS, PROJ_TOKENS
from spt_d2.ops.attention import BACKENDS
from spt_d2.ops.gating import GATINGS
from spt_d2.ops.labels import LABEL_SOURCES
from spt_d2.ops.losses import REDUCTIONS
from spt_d2.ops.packing import SEGMENTS
from spt_d2.ops.padding import PACKINGS
from spt_d2.ops.selection import NOISES, SELECTS
from spt_d2.ops.windows import ORDERS
from spt_d2.peer_config import PEERS


def add_spt_config(cfg: CfgNode) -> None:
    """
    Add ``MODEL.SWIN``, ``MODEL.SPT``, ``MODEL.VIT``, ``MODEL.MULTI_LABEL``, ``MODEL.EMA``, ``INPUT.SPT``,
    ``DATASETS.CUSTOM``, keys of ``INPUT.CROP`` and ``SOLVER``, and the nodes of :mod:`spt_d2.peer_config`.

    The paper's value is named where a default differs. The gate's defaults follow experiments (docs/experiments.md):
    read literally, it keeps every token or costs accuracy. POSITION, ORDER, GATE and MULTI_SCALE are the paper's choice
    or the cheaper one, and not yet compared there.

    Args:
        cfg: a config of :func:`detectron2.config.get_cfg`, changed in place.
    """
    _add_swin(cfg)
    _add_spt(cfg)
    _add_vit(cfg)
    for peer in PEERS:
        peer.add_keys(cfg)
    _add_multi_label(cfg)
    _add_input(cfg)
    _add_training(cfg)


def _add_swin(cfg: CfgNode) -> None:
    cfg.MODEL.SWIN = CfgNode()
    add_hierarchy(cfg.MODEL.SWIN, [2, 2, 6, 2])


def _add_spt(cfg: CfgNode) -> None:
    cfg.MODEL.SPT = CfgNode()
    node = cfg.MODEL.SPT
    # The paper adds four blocks to the third stage of Swin (Sec. 3.1).
    add_hierarchy(node, [2, 2, 10, 2])

    # Stages made of Select and Pack blocks, any of 1 to 4. The paper: 3 and 4 (Table 6).
    node.SPA_STAGES = [3, 4]
    # Whether a stage's scores join the next stage's by maximum, s_up in eq. 4.
    node.MULTI_SCALE = True
    # per_block (paper) or per_stage: one decision for all blocks of a stage.
    node.GATE = "per_block"
    # Factor by which the score scales what enters attention (eq. 5): sigmoid (paper), centred (at the threshold) or
    # none. A calibrated score is far below 1 for nearly every token, and the paper's factor then flattens attention.
    node.GATING = "none"
    # Who decides: gate (paper), topk, random, oracle (ground-truth labels) or all.
    node.SELECT = "gate"
    # Share of valid tokens kept per image and block under SELECT topk and random, in (0, 1].
    node.KEEP_RATIO = 0.25
    # At inference, the most tokens K that a block keeps of an image, whatever its size: the K of highest score among
    # those that SELECT keeps. Bounds the time of an image full of objects; 0 for no limit. Training does not apply it.
    # With SELECT all the gate decides which tokens, and every image of one size keeps K: all shapes are static.
    node.TOKEN_BUDGET = 0
    # A token is kept if sigmoid((score + noise) / tau) exceeds this probability, in [0, 1). The paper: 0.01, which
    # prunes only what the gate is 99 % sure of and so takes long training.
    node.THRESHOLD = 0.05
    # Temperature tau of the Gumbel-Softmax (App. A), above 0; the paper names none.
    node.TAU = 1.0
    # Noise in training: logistic (the binary Gumbel-Softmax, the literal reading), gumbel (one sample) or none.
    node.NOISE = "none"
    # Expected share of object tokens, in (0, 1): the probability gates start from. tools/dataset_stats.py measures it.
    # Raised to just above the keep rule's border where it is below that, so that all tokens are kept at first.
    node.GATE_PRIOR = 0.1
    # Order in which an image's tokens are packed: window (a container holds neighbours) or raster.
    node.ORDER = "window"
    # Which packed tokens attend to each other: container (of one image, independent of its batch), shared (containers
    # run on over the images, the paper's Fig. 3b), window, or image (all of an image; natural for a plain ViT; not with
    # POSITION relative_bias).
    node.SEGMENT = "container"
    # Container length L, in tokens; 0 stands for WINDOW_SIZE squared (the paper: 49). Not read under SEGMENT image.
    node.CONTAINER_SIZE = 0
    # How the kept tokens of a batch come together: containers (paper), or padded: each image to as many as the fullest
    # one keeps, in projections and in attention, which the paper's Fig. 1 argues against. The result is the same; the
    # time and the memory of every image become those of the fullest one. A batch of one has nothing to pad.
    node.PACKING = "containers"
    # Position inside the Select and Pack blocks: none (the paper names none), rope, conv or relative_bias.
    node.POSITION = "none"
    # Tokens that take the out-projection: selected, or all (eq. 9 read literally).
    node.PROJ_TOKENS = "selected"
    # Tokens that take the FFN: all (paper), light (unselected ones take one Linear(C, C)) or selected.
    node.FFN_TOKENS = "all"
    # Attention over packed tokens: auto (xformers on CUDA where its kernels take the input, else sdpa), xformers, sdpa.
    node.ATTENTION_BACKEND = "auto"

    # Weight alpha of the selection loss. The paper: 0.01.
    node.LOSS_WEIGHT = 0.1
    # Reduction of eq. 10 over tokens: mean (over an image's tokens, then over images) or sum (over tokens; literal).
    node.LOSS_REDUCTION = "mean"
    # Weight of object tokens in the selection loss, above 0 (App. B.1 tried 5).
    node.POS_WEIGHT = 1.0
    # Whether gates are supervised; False leaves them to the task's gradient (Tables 6 and 7 without L_select).
    node.SUPERVISE = True
    # Whether outputs at inference carry their selections, for SelectionEvaluator and pictures.
    node.RETURN_SELECTIONS = False
    # Iterations between two records of keep ratio, retention and density while training.
    node.LOG_PERIOD = 20


def _add_vit(cfg: CfgNode) -> None:
    """A plain vision transformer; how its blocks select and pack is said in ``MODEL.SPT``."""
    cfg.MODEL.VIT = CfgNode()
    node = cfg.MODEL.VIT
    # Stride of the patches, in pixels, a power of two. Pyramids are made from stride 16.
    node.PATCH_SIZE = 16
    # Channels C of every block.
    node.EMBED_DIM = 768
    # Number of blocks.
    node.DEPTH = 12
    # Attention heads of every block.
    node.NUM_HEADS = 12
    # Blocks that select and pack, numbers from 0 to DEPTH - 1; [] for a dense ViT. The first third is dense by default:
    # a gate needs features to judge by.
    node.SPA_BLOCKS = [4, 5, 6, 7, 8, 9, 10, 11]
    # Side in pixels, a multiple of PATCH_SIZE, of the images whose positions are learned; resized for other images.
    node.PRETRAIN_IMAGE_SIZE = 224
    # Hidden channels of the MLP over C.
    node.MLP_RATIO = 4.0
    # Whether queries, keys and values have a bias.
    node.QKV_BIAS = True
    # Dropout of tokens, MLPs and projections, a probability.
    node.DROP_RATE = 0.0
    # Dropout of attention weights, a probability.
    node.ATTN_DROP_RATE = 0.0
    # Stochastic depth of the last block, a probability; it grows linearly from 0 at the first block.
    node.DROP_PATH_RATE = 0.1
    # Recompute activations in the backward pass, block by block: less memory, more time.
    node.USE_CHECKPOINT = False


def _add_multi_label(cfg: CfgNode) -> None:
    """Keys of the meta-architectures ``SelectionMultiLabelClassifier`` and ``MultiLabelClassifier`` (Tables 5, 7)."""
    cfg.MODEL.MULTI_LABEL = CfgNode()
    node = cfg.MODEL.MULTI_LABEL
    # Classes K, each present or absent by itself (VOC: 20); set from the json of a training set of one's own.
    node.NUM_CLASSES = 20
    # The backbone's feature map that is averaged over tokens, such as res5. Let OUT_FEATURES name this one only.
    node.FEATURE = "res5"
    # Average precision behind mAP: voc10 (area under the precision envelope, VOC's devkit since 2010), voc07 (11
    # points) or step (scikit-learn's). The paper does not say which; the other two are reported beside it.
    node.AVERAGE_PRECISION = "voc10"


def _add_input(cfg: CfgNode) -> None:
    cfg.INPUT.SPT = CfgNode()
    # Strides in pixels at which selection labels are made; those of the stages that have gates. 4 when stage 1 has; a
    # plain ViT's is PATCH_SIZE.
    cfg.INPUT.SPT.STRIDES = [8, 16, 32]
    # Where labels come from: auto (masks where an annotation has one, else its box), box or mask (Sec. 3.2).
    cfg.INPUT.SPT.LABEL_SOURCE = "auto"
    # Under INPUT.CROP.ENABLED: probability that an image is cropped. Swin's recipe crops half of them.
    cfg.INPUT.CROP.PROBABILITY = 1.0
    # Short sides in pixels, to one of which an image is resized before its crop; [] for a crop of the original image.
    cfg.INPUT.CROP.MIN_SIZES = []
    # Whether boxes become tight around what a crop left of their masks, as Detectron2 has it, or are only clipped, as
    # in Swin's recipe.
    cfg.INPUT.CROP.RECOMPUTE_BOXES = True
    # Data sets of one's own, COCO format: a list of [name, json file, image folder]; DATASETS.TRAIN / TEST name them.
    # Relative paths are taken from the working directory, else from $DETECTRON2_DATASETS.
    cfg.DATASETS.CUSTOM = []


def _add_training(cfg: CfgNode) -> None:
    # sgd (Detectron2's) or adamw (Swin's detection recipe; no decay on norms and position bias tables).
    cfg.SOLVER.OPTIMIZER = "adamw"
    # Betas of AdamW.
    cfg.SOLVER.ADAMW_BETAS = [0.9, 0.999]
    # Weight decay of relative position bias tables and of a ViT's position embeddings.
    cfg.SOLVER.WEIGHT_DECAY_POSITION = 0.0
    # Learning rate of what a pretrained backbone brings over that of all else, gates and predictors included, above 0;
    # not beside a BIAS_LR_FACTOR.
    cfg.SOLVER.BACKBONE_LR_FACTOR = 1.0
    # Factor from the config's batch size to that of the run: 0.25 trains on a quarter of the images per iteration, at a
    # quarter of the rate, for four times the iterations. Steps, warm-up and periods follow.
    cfg.SOLVER.BATCH_SCALE = 1.0
    # Iterations between two gatherings of metrics from the device; a gathering waits for it.
    cfg.SOLVER.METRIC_PERIOD = 20
    # Precision under SOLVER.AMP.ENABLED: float16 or bfloat16.
    cfg.SOLVER.AMP.PRECISION = "float16"
    # Exponential moving average of the weights: whether to keep one.
    cfg.MODEL.EMA = CfgNode({"ENABLED": False})
    # Decay per iteration, in [0, 1).
    cfg.MODEL.EMA.DECAY = 0.999


_CHOICES = {
    "GATE": GATES,
    "GATING": GATINGS,
    "SELECT": SELECTS,
    "NOISE": NOISES,
    "ORDER": ORDERS,
    "SEGMENT": SEGMENTS,
    "PACKING": PACKINGS,
    "POSITION": POSITIONS,
    "PROJ_TOKENS": PROJ_TOKENS,
    "FFN_TOKENS": FFN_TOKENS,
    "ATTENTION_BACKEND": BACKENDS,
    "LOSS_REDUCTION": REDUCTIONS,
}


def validate_spt_config(cfg: CfgNode) -> None:
    """
    Check what a yaml file or a command line may have got wrong, before anything is built.

    Raises:
        ValueError: one message that names every key that is off.
    """
    spt, problems = cfg.MODEL.SPT, []

    def expect(good: bool, key: str, what: str, got: object) -> None:
        if not good:
            problems.append(f"  {key} expects {what}. Got {got!r}.")

    for key, allowed in _CHOICES.items():
        expect(spt[key] in allowed, f"MODEL.SPT.{key}", f"one of {allowed}", spt[key])
    check_packing(spt, expect)
    for name in ("SPT", "SWIN"):
        check_hierarchy(cfg, name, expect)
    check_rope(cfg, expect)
    for peer in PEERS:
        peer.check_keys(cfg, expect)
    check_crop(cfg.INPUT.CROP, expect)
    expect(cfg.SOLVER.BATCH_SCALE > 0, "SOLVER.BATCH_SCALE", "a factor above 0", cfg.SOLVER.BATCH_SCALE)
    factor = cfg.SOLVER.BACKBONE_LR_FACTOR
    expect(factor > 0, "SOLVER.BACKBONE_LR_FACTOR", "a factor above 0", factor)
    stages = list(range(1, len(spt.DEPTHS) + 1))
    known = bool(spt.SPA_STAGES) and all(stage in stages for stage in spt.SPA_STAGES)
    expect(known, "MODEL.SPT.SPA_STAGES", f"some of {stages}", spt.SPA_STAGES)
    expect(0 <= spt.THRESHOLD < 1, "MODEL.SPT.THRESHOLD", "a probability in [0, 1)", spt.THRESHOLD)
    expect(0 < spt.KEEP_RATIO <= 1, "MODEL.SPT.KEEP_RATIO", "a fraction in (0, 1]", spt.KEEP_RATIO)
    expect(spt.TOKEN_BUDGET >= 0, "MODEL.SPT.TOKEN_BUDGET", "0 (no limit) or more tokens", spt.TOKEN_BUDGET)
    expect(0 < spt.GATE_PRIOR < 1, "MODEL.SPT.GATE_PRIOR", "a fraction in (0, 1)", spt.GATE_PRIOR)
    expect(spt.TAU > 0, "MODEL.SPT.TAU", "a temperature above 0", spt.TAU)
    expect(spt.LOSS_WEIGHT >= 0, "MODEL.SPT.LOSS_WEIGHT", "a weight of at least 0", spt.LOSS_WEIGHT)
    expect(spt.POS_WEIGHT > 0, "MODEL.SPT.POS_WEIGHT", "a weight above 0", spt.POS_WEIGHT)
    expect(spt.LOG_PERIOD >= 1, "MODEL.SPT.LOG_PERIOD", "at least 1 iteration", spt.LOG_PERIOD)
    source = cfg.INPUT.SPT.LABEL_SOURCE
    expect(source in LABEL_SOURCES, "INPUT.SPT.LABEL_SOURCE", f"one of {LABEL_SOURCES}", source)
    check_vit(cfg, expect)
    needed = _label_strides(cfg) if known else []
    covered = set(needed) <= set(cfg.INPUT.SPT.STRIDES)
    expect(covered, "INPUT.SPT.STRIDES", f"the strides {needed} of the gated stages", list(cfg.INPUT.SPT.STRIDES))
    expect(cfg.SOLVER.OPTIMIZER in ("adamw", "sgd"), "SOLVER.OPTIMIZER", "'adamw' or 'sgd'", cfg.SOLVER.OPTIMIZER)
    precision = cfg.SOLVER.AMP.PRECISION
    expect(precision in ("float16", "bfloat16"), "SOLVER.AMP.PRECISION", "'float16' or 'bfloat16'", precision)
    expect(cfg.SOLVER.METRIC_PERIOD >= 1, "SOLVER.METRIC_PERIOD", "at least 1 iteration", cfg.SOLVER.METRIC_PERIOD)
    expect(0 <= cfg.MODEL.EMA.DECAY < 1, "MODEL.EMA.DECAY", "a decay in [0, 1)", cfg.MODEL.EMA.DECAY)
    multi_label = cfg.MODEL.MULTI_LABEL
    expect(multi_label.NUM_CLASSES >= 1, "MODEL.MULTI_LABEL.NUM_CLASSES", "at least 1 class", multi_label.NUM_CLASSES)
    flavour = multi_label.AVERAGE_PRECISION
    expect(flavour in FLAVOURS, "MODEL.MULTI_LABEL.AVERAGE_PRECISION", f"one of {FLAVOURS}", flavour)
    augmented = cfg.TEST.AUG.ENABLED
    expect(not (classifies(cfg) and augmented), "TEST.AUG.ENABLED", "False with a classifier", augmented)
    if problems:
        raise ValueError("The config is not valid:\n" + "\n".join(problems))


def _label_strides(cfg: CfgNode) -> list[int]:
    """Strides in pixels at which the model asks for selection labels: to supervise or judge gates, or to select."""
    spt, kind = cfg.MODEL.SPT, backbone_kind(cfg)
    if not cfg.MODEL.META_ARCHITECTURE.startswith("Selection"):
        return []
    for peer in PEERS:
        if kind == peer.NODE.lower():
            return peer.label_strides(cfg)
    if not (spt.SUPERVISE or spt.SELECT == "oracle"):
        return []
    if kind == "spt":
        # Labels that select are those of the SPA stages; an extra gate decides nothing.
        return gate_strides(spt.SPA_STAGES, spt.MULTI_SCALE and spt.SUPERVISE)
    return [cfg.MODEL.VIT.PATCH_SIZE] if kind == "vit" and cfg.MODEL.VIT.SPA_BLOCKS else []


def gate_strides(spa_stages: list[int], multi_scale: bool) -> list[int]:
    """Strides in pixels of the stages that have gates: the SPA stages and, multi-scale, those before them."""
    stages = set(spa_stages)
    if multi_scale:
        stages |= {stage - 1 for stage in spa_stages if stage > 1}
    return sorted(2 ** (stage + 1) for stage in stages)


def classifies(cfg: CfgNode) -> bool:
    """Whether the config's model says which classes an image shows, where others detect objects."""
    return cfg.MODEL.META_ARCHITECTURE.endswith("MultiLabelClassifier")
