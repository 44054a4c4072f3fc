"""Backbones, configs and inputs small enough for a unit test."""

import pytest
import torch
from torch import Tensor

from tests import reference

pytest.importorskip("detectron2", reason="detectron2 is not installed")

from detectron2.config import CfgNode, get_cfg
from detectron2.structures import BitMasks, Boxes, Instances

from spt_d2.config import add_spt_config
from spt_d2.modeling import DAT, SPT, DynamicSwin, SparseViT, SvitGatedSwin, Swin, ViT
from spt_d2.peer_config import PEERS

SIZES = {"embed_dim": 8, "depths": (1, 1, 2, 2), "num_heads": (1, 2, 2, 4), "window_size": 4, "mlp_ratio": 2.0}
VIT_SIZES = {"embed_dim": 16, "depth": 3, "num_heads": 2, "mlp_ratio": 2.0, "pretrain_image_size": 64}
FEATURES = ("res2", "res3", "res4", "res5")
NUM_CLASSES = 3


def nano_swin(**values) -> Swin:
    return reference.randomise_(Swin(**{**SIZES, "drop_path_rate": 0.0, **values}))


def nano_spt(dtype: torch.dtype = torch.float64, **values) -> SPT:
    """An SPT whose gates keep some tokens and not others."""
    model = SPT(**{**SIZES, "drop_path_rate": 0.0, "threshold": 0.5, **values})
    reference.randomise_(model).to(dtype)
    for name, parameter in model.named_parameters():
        if "gate" in name and name.endswith("proj.bias"):
            torch.nn.init.constant_(parameter, -0.3)
    return model


def nano_dat(dtype: torch.dtype = torch.float64, **values) -> DAT:
    """A DAT whose samples move by a good part of their cells."""
    return reference.randomise_(DAT(**{**SIZES, "drop_path_rate": 0.0, "groups": (1, 1, 2, 2), **values})).to(dtype)


def nano_dynamic_swin(dtype: torch.dtype = torch.float64, **values) -> DynamicSwin:
    """A DynamicSwin with a plain block, and three predictors before some of the five others."""
    sizes = {**SIZES, "depths": (1, 1, 6, 1), "predictor_blocks": (1, 2, 4), "drop_path_rate": 0.0}
    return reference.randomise_(DynamicSwin(**{**sizes, **values})).to(dtype)


def nano_sparse_vit(dtype: torch.dtype = torch.float64, **values) -> SparseViT:
    """A SparseViT that skips windows in every stage, and in the third more of them as it goes."""
    ratios = {"pruning_ratios": [[0.3], [0.5], [0.2, 0.4], [0.5]]}
    return reference.randomise_(SparseViT(**{**SIZES, "drop_path_rate": 0.0, **ratios, **values})).to(dtype)


def nano_svit_gated_swin(dtype: torch.dtype = torch.float64, **values) -> SvitGatedSwin:
    """Swin with SViT's gates, which keep some tokens and not others: two in each of the last stages."""
    sizes = {**SIZES, "depths": (1, 1, 3, 2), "dense_blocks": 1, "drop_path_rate": 0.0}
    model = reference.randomise_(SvitGatedSwin(**{**sizes, **values})).to(dtype)
    gates = [module for name, module in model.named_modules() if name.endswith(".gate")]
    probe = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0)).to(dtype)
    for i, gate in enumerate(gates):
        # One after the other, for each changes what the next ones see.
        _, selections = model.eval().forward_with_selections(probe)
        gate.fc2.bias.data[0] -= selections[i].score.median().item()
    return model.train()


def nano_vit(dtype: torch.dtype = torch.float64, **values) -> ViT:
    """A plain ViT, whose gates keep some tokens and not others where it has any."""
    model = ViT(**{**VIT_SIZES, "drop_path_rate": 0.0, "threshold": 0.5, "window_size": 4, **values})
    reference.randomise_(model).to(dtype)
    for name, parameter in model.named_parameters():
        if name.endswith("gate.proj.bias"):
            torch.nn.init.constant_(parameter, -0.1)
    return model


def images(batch: int = 2, height: int = 64, width: int = 64, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(batch, 3, height, width, dtype=dtype)


def nano_cfg(backbone: str, meta_architecture: str = "SelectionGeneralizedRCNN") -> CfgNode:
    """A detector on the CPU that takes milliseconds."""
    cfg = get_cfg()
    add_spt_config(cfg)
    peers = [cfg.MODEL[peer.NODE] for peer in PEERS]
    for node in (cfg.MODEL.SPT, cfg.MODEL.SWIN, *peers):
        node.EMBED_DIM, node.DEPTHS, node.NUM_HEADS = 8, [1, 1, 2, 1], [1, 2, 2, 4]
        node.WINDOW_SIZE, node.MLP_RATIO, node.DROP_PATH_RATE = 4, 2.0, 0.0
    cfg.MODEL.DYNAMIC_SWIN.PREDICTOR_BLOCKS = [0, 1]
    cfg.MODEL.SPARSE_VIT.PRUNING_RATIOS = [[0.3], [0.0], [0.2, 0.4], [0.5]]
    # A stage of one block has no deformable one.
    cfg.MODEL.DAT.DEPTHS, cfg.MODEL.DAT.GROUPS = [1, 1, 2, 2], [1, 1, 2, 2]
    svit = cfg.MODEL.SVIT_GATED_SWIN
    svit.DEPTHS, svit.DENSE_BLOCKS = [1, 1, 4, 1], 1
    vit = cfg.MODEL.VIT
    vit.EMBED_DIM, vit.DEPTH, vit.NUM_HEADS, vit.SPA_BLOCKS = 16, 3, 2, [1, 2]
    vit.MLP_RATIO, vit.DROP_PATH_RATE, vit.PRETRAIN_IMAGE_SIZE = 2.0, 0.0, 64
    if "vit" in backbone:
        cfg.MODEL.SPT.SEGMENT = "image"
    cfg.MODEL.DEVICE = "cpu"
    cfg.MODEL.META_ARCHITECTURE = meta_architecture
    cfg.MODEL.BACKBONE.NAME, cfg.MODEL.BACKBONE.FREEZE_AT = backbone, 0
    cfg.MODEL.FPN.IN_FEATURES, cfg.MODEL.FPN.OUT_CHANNELS = list(FEATURES), 16
    cfg.MODEL.ANCHOR_GENERATOR.SIZES = [[16], [32], [64], [128], [256]]
    cfg.MODEL.RPN.IN_FEATURES = ["p2", "p3", "p4", "p5", "p6"]
    cfg.MODEL.RPN.PRE_NMS_TOPK_TRAIN = cfg.MODEL.RPN.PRE_NMS_TOPK_TEST = 50
    cfg.MODEL.RPN.POST_NMS_TOPK_TRAIN = cfg.MODEL.RPN.POST_NMS_TOPK_TEST = 20
    cfg.MODEL.ROI_HEADS.NAME = "StandardROIHeads"
    cfg.MODEL.ROI_HEADS.IN_FEATURES = ["p2", "p3", "p4", "p5"]
    cfg.MODEL.ROI_HEADS.NUM_CLASSES, cfg.MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE = NUM_CLASSES, 16
    cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST = 0.0
    cfg.MODEL.ROI_BOX_HEAD.NAME, cfg.MODEL.ROI_BOX_HEAD.NUM_FC = "FastRCNNConvFCHead", 1
    cfg.MODEL.ROI_BOX_HEAD.FC_DIM, cfg.MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION = 16, 3
    cfg.MODEL.MASK_ON = True
    cfg.MODEL.ROI_MASK_HEAD.NAME, cfg.MODEL.ROI_MASK_HEAD.NUM_CONV = "MaskRCNNConvUpsampleHead", 1
    cfg.MODEL.ROI_MASK_HEAD.CONV_DIM, cfg.MODEL.ROI_MASK_HEAD.POOLER_RESOLUTION = 8, 4
    cfg.MODEL.SEM_SEG_HEAD.NAME, cfg.MODEL.SEM_SEG_HEAD.IN_FEATURES = "SemSegFPNHead", ["p2", "p3", "p4", "p5"]
    cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES, cfg.MODEL.SEM_SEG_HEAD.CONVS_DIM, cfg.MODEL.SEM_SEG_HEAD.NORM = 4, 16, ""
    cfg.MODEL.RETINANET.NUM_CLASSES, cfg.MODEL.RETINANET.NUM_CONVS = NUM_CLASSES, 1
    cfg.INPUT.MASK_FORMAT = "bitmask"
    if "retinanet" in backbone:
        cfg.MODEL.RETINANET.IN_FEATURES = ["p3", "p4", "p5", "p6", "p7"]
        # As for Detectron2's ResNets: a map that nobody reads would leave its norm without a gradient.
        cfg.MODEL.FPN.IN_FEATURES = ["res3", "res4", "res5"]
        for node in (cfg.MODEL.SPT, cfg.MODEL.SWIN, *peers):
            node.OUT_FEATURES = ["res3", "res4", "res5"]
    return cfg


def batch_of_inputs(*sizes: tuple[int, int], strides: tuple[int, ...] = (4, 8, 16, 32)) -> list[dict]:
    """What a mapper gives: an image, one object in each (none in the last of several), its mask and labels."""
    inputs = []
    for i, (height, width) in enumerate(sizes):
        count = 0 if i and i == len(sizes) - 1 else 1
        masks = torch.zeros(count, height, width, dtype=torch.bool)
        masks[:, height // 4 : height // 2, width // 4 : width // 2] = True
        instances = Instances((height, width))
        instances.gt_boxes = Boxes(
            torch.tensor([[width // 4, height // 4, width // 2, height // 2]] * count).view(-1, 4).float()
        )
        instances.gt_classes = torch.zeros(count, dtype=torch.long)
        instances.gt_masks = BitMasks(masks)
        labels = {}
        for stride in strides:
            rows, columns = -(-height // stride), -(-width // stride)
            cells = torch.zeros(rows * stride, columns * stride, dtype=torch.bool)
            cells[:height, :width] = masks.any(dim=0) if count else False
            cells = cells.view(rows, stride, columns, stride).any(dim=3).any(dim=1)
            labels[stride] = cells.to(torch.uint8)
        inputs.append(
            {
                "image": torch.randint(0, 256, (3, height, width), dtype=torch.uint8),
                "height": 2 * height,
                "width": 2 * width,
                "instances": instances,
                "sem_seg": masks.any(dim=0).long() if count else torch.zeros(height, width, dtype=torch.long),
                "selection_labels": labels,
            }
        )
    return inputs
