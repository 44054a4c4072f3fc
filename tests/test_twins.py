"""A yaml config and the LazyConfig of the same name describe one run: model, recipe and data, down to thresholds."""

import dataclasses
import enum
import fnmatch
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from detectron2.config import CfgNode, LazyConfig, instantiate
from detectron2.layers import ShapeSpec
from detectron2.modeling import build_anchor_generator, build_model
from detectron2.solver import LRMultiplier
from detectron2.solver.build import build_lr_scheduler
from omegaconf import DictConfig, ListConfig, OmegaConf
from torch import Tensor, nn

from spt_d2 import get_config
from spt_d2.config import classifies
from spt_d2.data import MultiLabelDatasetMapper, SelectionDatasetMapper
from spt_d2.engine.evaluators import detection_tasks
from spt_d2.engine.optimizer import build_optimizer

ROOT = Path(__file__).resolve().parents[1]
LAZY = ROOT / "projects" / "SPT" / "configs"
# By folder and name, which are those of the yaml.
PAIRS = sorted(path.relative_to(LAZY).with_suffix("").as_posix() for path in LAZY.rglob("*.py"))
YAMLS = sorted(
    path.relative_to(ROOT / "configs").with_suffix("").as_posix()
    for path in (ROOT / "configs").rglob("*.yaml")
    if not path.name.startswith("Base")
)
# Yaml configs that have no LazyConfig leaf, and why.
WITHOUT_A_LEAF = {
    "Ablations/*": "overrides of another leaf, which docs/ablations.md names",
    "*/*_finetune": "its 3x leaf with lr, weight decay and schedule overridden",
    "*/*_distill": "its leaf with model.backbone.bottom_up.teacher_weights and optimizer.params.backbone_lr_factor",
    "*/*sparse_vit*_adapt": "its leaf with model.backbone.bottom_up.sample_ratios, lr and drop path overridden",
    "*/*sparse_vit*_[0-9][0-9]ms": "its leaf with model.backbone.bottom_up.pruning_ratios, lr and warm-up overridden",
    "*/*sparse_vit*_uniform[0-9]0": "its leaf with model.backbone.bottom_up.pruning_ratios overridden",
}


@pytest.fixture(autouse=True)
def unset_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    """Optimizers and models without the seconds that drawing weights takes; none is looked at."""
    for name in ("trunc_normal_", "kaiming_uniform_", "uniform_", "normal_", "constant_", "kaiming_normal_"):
        monkeypatch.setattr(nn.init, name, lambda tensor, *_, **__: tensor)


def plain(value: Any) -> Any:
    """A value as nested lists, dicts and scalars that compare by what they mean, not by the type they came in."""
    if isinstance(value, (list, tuple, ListConfig)):
        return [plain(item) for item in value]
    if isinstance(value, (dict, DictConfig)):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, nn.Module):
        # FPN keeps lists of its children, which are described as such.
        return type(value).__qualname__
    if isinstance(value, Tensor):
        return (tuple(value.shape), value.dtype)
    if isinstance(value, bool) or value is None or isinstance(value, (str, enum.Enum, torch.dtype, torch.device)):
        return value
    if isinstance(value, (int, float)):
        return float(value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if callable(value) and hasattr(value, "__qualname__"):
        return value.__qualname__
    assert hasattr(value, "__dict__"), f"{value!r} is not compared"
    return {"type": type(value).__qualname__, **plain(vars(value))}


def describe(module: nn.Module) -> dict[str, Any]:
    """Everything that a module is made of: its class, plain attributes, shapes of tensors, children."""
    kept = {name: value for name, value in vars(module).items() if not name.startswith("_") or name == "_fuse_type"}
    attributes = {name: plain(value) for name, value in kept.items()}
    # Detectron2 takes a weight that is not named for 1.
    if isinstance(attributes.get("loss_weight"), dict):
        attributes["loss_weight"] = {key: weight for key, weight in attributes["loss_weight"].items() if weight != 1.0}
    return {
        "type": type(module).__qualname__,
        **attributes,
        "parameters": {name: (*plain(p), p.requires_grad) for name, p in module.named_parameters(recurse=False)},
        "buffers": {name: plain(buffer) for name, buffer in module.named_buffers(recurse=False)},
        "children": {name: describe(child) for name, child in module.named_children()},
    }


def load_pair(name: str) -> tuple[CfgNode, DictConfig]:
    cfg = get_config(f"{name}.yaml")
    assert isinstance(cfg, CfgNode)
    cfg.MODEL.DEVICE = "meta"
    return cfg, LazyConfig.load(str(LAZY / f"{name}.py"))


def build_pair(cfg: CfgNode, lazy: DictConfig) -> tuple[nn.Module, nn.Module]:
    with torch.device("meta"):
        return build_model(cfg), instantiate(lazy.model)


def describe_groups(optimizer: torch.optim.Optimizer, model: nn.Module) -> list[dict]:
    """Parameter groups, with names in place of parameters."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return [plain({**group, "params": [names[id(p)] for p in group["params"]]}) for group in optimizer.param_groups]


def test_every_yaml_has_a_leaf_of_its_folder_and_name_but_those_that_are_overrides() -> None:
    excused = {name for name in YAMLS for pattern in WITHOUT_A_LEAF if fnmatch.fnmatchcase(name, pattern)}
    assert set(YAMLS) - excused == set(PAIRS)
    for pattern in WITHOUT_A_LEAF:
        assert fnmatch.filter(YAMLS, pattern), pattern


def test_every_detector_of_the_paper_has_its_configs() -> None:
    sizes = ("spt_t", "spt_s", "spt_b", "swin_t", "swin_s", "swin_b", "swin_t16", "swin_s28", "swin_b28")
    wanted = {f"BDD100K-Detection/faster_rcnn_{size}_fpn_3x" for size in (*sizes, "spt_t12")}
    for schedule in ("1x", "3x"):
        wanted |= {f"COCO-InstanceSegmentation/mask_rcnn_{size}_fpn_{schedule}" for size in (*sizes, "spt_t12")}
        wanted |= {f"COCO-InstanceSegmentation/cascade_mask_rcnn_{size}_fpn_{schedule}" for size in sizes}
        wanted |= {f"COCO-Detection/retinanet_{size}_fpn_{schedule}" for size in ("spt_t", "swin_t", "swin_t16")}
    assert wanted <= set(PAIRS)


def test_every_spt_of_a_main_schedule_is_there_read_literally() -> None:
    plain = [name for name in PAIRS if re.search(r"_spt_[a-z]+\d*(_fpn_[13]x)?(_sparse)?$", name)]
    assert len(plain) >= 20 and "VOC-Classification/multilabel_spt_t" in plain
    assert {f"{name}_literal" for name in plain} <= set(PAIRS)


@pytest.mark.parametrize("name", PAIRS)
def test_twins_describe_one_run(name: str) -> None:
    cfg, lazy = load_pair(name)
    check_pixels_and_anchors(cfg, lazy)
    check_data(cfg, lazy)
    check_schedule(cfg, lazy)
    models = build_pair(cfg, lazy)
    assert describe(models[0]) == describe(models[1])

    node = lazy.copy()
    node.optimizer.params.model = models[1]
    optimizers = build_optimizer(cfg, models[0]), instantiate(node.optimizer)
    assert type(optimizers[0]) is type(optimizers[1])
    groups = [describe_groups(optimizer, model) for optimizer, model in zip(optimizers, models)]
    assert groups[0] == groups[1]


def check_pixels_and_anchors(cfg: CfgNode, lazy: DictConfig) -> None:
    """Values that a model keeps in buffers, which are empty on the meta device."""
    assert plain(cfg.MODEL.PIXEL_MEAN) == plain(list(lazy.model.pixel_mean))
    assert plain(cfg.MODEL.PIXEL_STD) == plain(list(lazy.model.pixel_std))
    if classifies(cfg):
        return
    node = (
        lazy.model.anchor_generator
        if "anchor_generator" in lazy.model
        else lazy.model.proposal_generator.anchor_generator
    )
    built = build_anchor_generator(cfg, [ShapeSpec(stride=stride) for stride in node.strides]), instantiate(node)
    for first, second in zip(*(generator.cell_anchors for generator in built), strict=True):
        torch.testing.assert_close(first, second, rtol=1e-6, atol=0)
    assert plain(built[0].strides) == plain(built[1].strides) and built[0].offset == built[1].offset


def check_data(cfg: CfgNode, lazy: DictConfig) -> None:
    loader = lazy.dataloader
    for is_train, split in ((True, "train"), (False, "test")):
        kind = MultiLabelDatasetMapper if classifies(cfg) else SelectionDatasetMapper
        mappers = kind(cfg, is_train), instantiate(loader[split].mapper)
        assert type(mappers[1]) is kind
        first, second = (plain(mapper) for mapper in mappers)
        if not is_train:
            # What the detector learns from; at evaluation it is not read.
            del first["use_instance_mask"], second["use_instance_mask"]
        assert first == second
    assert loader.train.total_batch_size == cfg.SOLVER.IMS_PER_BATCH
    assert loader.train.num_workers == loader.test.num_workers == cfg.DATALOADER.NUM_WORKERS
    assert loader.train.dataset.filter_empty == cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS
    if cfg.DATASETS.TRAIN:
        assert (loader.train.dataset.names,) == tuple(cfg.DATASETS.TRAIN)
        assert (loader.test.dataset.names,) == tuple(cfg.DATASETS.TEST) == (loader.evaluator.dataset_name,)
    else:
        # Of one's own: named in the file or on the command line.
        assert not cfg.DATASETS.TEST and not loader.train.dataset.names and not loader.test.dataset.names
        assert list(lazy.datasets.custom) == cfg.DATASETS.CUSTOM == []
    tasks = ("multi_label",) if classifies(cfg) else detection_tasks(cfg.MODEL.MASK_ON)
    assert tuple(loader.evaluator.tasks) == tasks
    if classifies(cfg):
        assert loader.evaluator.average_precision == cfg.MODEL.MULTI_LABEL.AVERAGE_PRECISION
    assert loader.evaluator.selections == cfg.MODEL.SPT.RETURN_SELECTIONS == lazy.model.return_selections


def check_schedule(cfg: CfgNode, lazy: DictConfig) -> None:
    solver, train = cfg.SOLVER, lazy.train
    parameter = nn.Parameter(torch.zeros(1))
    rates = []
    for lr in (solver.BASE_LR, lazy.optimizer.lr):
        optimizer = torch.optim.SGD([parameter], lr=lr)
        if not rates:
            scheduler = build_lr_scheduler(cfg, optimizer)
        else:
            scheduler = LRMultiplier(optimizer, instantiate(lazy.lr_multiplier), train.max_iter)
        rates.append([rate_at(scheduler, i) for i in sampled_iterations(cfg)])
    assert rates[0] == pytest.approx(rates[1], rel=1e-9)
    assert len(set(rates[0])) > 4
    assert (train.max_iter, train.seed, train.log_period) == (solver.MAX_ITER, cfg.SEED, solver.METRIC_PERIOD)
    assert (train.checkpointer.period, train.eval_period) == (solver.CHECKPOINT_PERIOD, cfg.TEST.EVAL_PERIOD)
    assert (train.amp.enabled, train.amp.precision) == (solver.AMP.ENABLED, solver.AMP.PRECISION)
    assert (train.ema.enabled, train.clip_gradients.enabled) == (cfg.MODEL.EMA.ENABLED, solver.CLIP_GRADIENTS.ENABLED)
    if train.clip_gradients.enabled:
        clip, node = solver.CLIP_GRADIENTS, train.clip_gradients
        assert (node.kind, node.value, node.norm_type) == (clip.CLIP_TYPE, clip.CLIP_VALUE, clip.NORM_TYPE)
    assert train.init_checkpoint == cfg.MODEL.WEIGHTS
    assert train.batch_scale == solver.BATCH_SCALE == 1.0


def sampled_iterations(cfg: CfgNode) -> list[int]:
    """In the warm-up, about its end, about each step, and at the end."""
    solver = cfg.SOLVER
    edges = [solver.WARMUP_ITERS, *solver.STEPS, solver.MAX_ITER]
    return [0, 1, 250, *(edge + offset for edge in edges for offset in (-1, 1) if edge + offset < solver.MAX_ITER)]


def rate_at(scheduler: LRMultiplier, iteration: int) -> float:
    scheduler.last_epoch = iteration
    return scheduler.get_lr()[0]


CHANGES = {
    "model.roi_heads.box_predictor.test_score_thresh": 0.1,
    "model.roi_heads.batch_size_per_image": 256,
    "model.proposal_generator.nms_thresh": 0.6,
    "model.backbone.bottom_up.drop_path_rate": 0.1,
    "model.backbone.bottom_up.threshold": 0.01,
    "model.loss_weight": 0.01,
    "dataloader.train.mapper.augmentations.0.probability": 0.4,
    "dataloader.train.mapper.augmentations.1.max_size": 1000,
    "dataloader.test.mapper.augmentations.0.short_edge_length": 640,
    "dataloader.train.dataset.names": "coco_2017_val",
    "optimizer.weight_decay": 0.1,
    "optimizer.params.weight_decay_position": 0.05,
    "lr_multiplier.warmup_length": 0.01,
    "lr_multiplier.scheduler.milestones": [202500, 247600],
    "train.max_iter": 270001,
    "model.pixel_std": [58.395, 57.12, 57.0],
    "model.proposal_generator.anchor_generator.sizes": [[32], [64], [128], [256], [500]],
}


MORE_CHANGES = {
    "VOC-Classification/multilabel_spt_t": {
        "model.num_classes": 21,
        "model.backbone.select": "topk",
        "dataloader.test.mapper.augmentations.0.sample_style": "range",
        "dataloader.evaluator.average_precision": "voc07",
    },
    "COCO-InstanceSegmentation/mask_rcnn_spa_vit_b_fpn_3x": {
        "model.backbone.net.segment": "container",
        "model.backbone.net.spa_blocks": [5, 6, 7, 8, 9, 10, 11],
        "dataloader.train.mapper.strides": [8, 16, 32],
    },
    "Custom/faster_rcnn_spt_nano_fpn": {"train.clip_gradients.value": 2.0, "datasets.custom": [["a", "b", "c"]]},
    "Custom/faster_rcnn_spt_t_fpn": {"train.init_checkpoint": "", "dataloader.train.dataset.filter_empty": True},
}
ALL_CHANGES = [("COCO-InstanceSegmentation/mask_rcnn_spt_t_fpn_3x", *change) for change in CHANGES.items()]
ALL_CHANGES += [(name, *change) for name, changes in MORE_CHANGES.items() for change in changes.items()]


@pytest.mark.parametrize("name, key, value", ALL_CHANGES, ids=[f"{name}-{key}" for name, key, _ in ALL_CHANGES])
def test_a_difference_anywhere_is_found(name: str, key: str, value: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    cfg, lazy = load_pair(name)
    OmegaConf.update(lazy, key, value, merge=False, force_add=True)
    monkeypatch.setattr(f"{__name__}.load_pair", lambda _: (cfg, lazy))
    with pytest.raises(AssertionError):
        test_twins_describe_one_run(name)


@pytest.mark.parametrize("name", PAIRS)
def test_a_leaf_is_short_and_says_what_it_is(name: str) -> None:
    text = (LAZY / f"{name}.py").read_text()
    assert text.startswith('"""') and len(text.splitlines()) <= 12
