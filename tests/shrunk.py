"""A config of any size, made small enough to train a step in a unit test; what it is about is left as it is."""

from detectron2.config import CfgNode

from spt_d2.peer_config import PEERS

CHANNELS = 8


def shrink(cfg: CfgNode) -> CfgNode:
    """Sizes of the backbone, the pyramid, the heads and the numbers of proposals, in place; on the CPU."""
    model = cfg.MODEL
    for node in (model.SPT, model.SWIN, *(model[peer.NODE] for peer in PEERS)):
        node.EMBED_DIM, node.NUM_HEADS, node.WINDOW_SIZE, node.MLP_RATIO = CHANNELS, [1, 2, 2, 4], 4, 2.0
        node.DEPTHS = [min(depth, 2) for depth in node.DEPTHS]
    model.DAT.GROUPS = [1, 1, 2, 2]
    sparse = model.SPARSE_VIT
    sparse.PRUNING_RATIOS = [ratios[:depth] for ratios, depth in zip(sparse.PRUNING_RATIOS, sparse.DEPTHS)]
    # Published places are those of more blocks.
    model.DYNAMIC_SWIN.PREDICTOR_BLOCKS = [1]
    model.SVIT_GATED_SWIN.DENSE_BLOCKS = 1
    model.DEVICE, model.FPN.OUT_CHANNELS = "cpu", 16
    model.RPN.PRE_NMS_TOPK_TRAIN = model.RPN.PRE_NMS_TOPK_TEST = 50
    model.RPN.POST_NMS_TOPK_TRAIN = model.RPN.POST_NMS_TOPK_TEST = 20
    model.ROI_HEADS.BATCH_SIZE_PER_IMAGE = 16
    model.ROI_BOX_HEAD.FC_DIM = model.ROI_BOX_HEAD.CONV_DIM = 16
    model.ROI_BOX_HEAD.POOLER_RESOLUTION, model.ROI_MASK_HEAD.POOLER_RESOLUTION = 3, 4
    model.ROI_MASK_HEAD.NUM_CONV, model.ROI_MASK_HEAD.CONV_DIM = 1, 8
    model.RETINANET.NUM_CONVS = 1
    cfg.INPUT.MASK_FORMAT = "bitmask"
    return cfg
