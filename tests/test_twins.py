"""A yaml config and the LazyConfig of the same name describe one run: model, recipe and data, down to thresholds."""

import dataclasses
import enum
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
from spt_d2.data import SelectionDatasetMapper
from spt_d2.engine.evaluators import detection_tasks
from spt_d2.engine.optimizer import build_optimizer

LAZY = Path(__file__).resolve().parents[1] / "projects" / "SPT" / "configs"
# Twins by folder and name; those of Shapes, tests/engine/test_lazy.py trains.
FOLDERS = ("COCO-InstanceSegmentation", "COCO-Detection", "BDD100K-Detection")
PAIRS = sorted(path.relative_to(LAZY).with_suffix("").as_posix() for f in FOLDERS for path in (LAZY / f).glob("*.py"))


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


def test_there_are_twins_of_every_main_variant() -> None:
    sizes = ("spt_t", "spt_s", "spt_b", "swin_t", "swin_s", "swin_b", "swin_t16", "swin_s28", "swin_b28")
    for schedule in ("1x", "3x"):
        for size in (*sizes, "spt_t12"):
            assert f"COCO-InstanceSegmentation/mask_rcnn_{size}_fpn_{schedule}" in PAIRS
        for size in sizes:
            assert f"COCO-InstanceSegmentation/cascade_mask_rcnn_{size}_fpn_{schedule}" in PAIRS
        for size in ("spt_t", "swin_t", "swin_t16"):
            assert f"COCO-Detection/retinanet_{size}_fpn_{schedule}" in PAIRS
        for size in ("dat_t", "dat_s"):
            assert f"COCO-InstanceSegmentation/mask_rcnn_{size}_fpn_{schedule}" in PAIRS
    for kind in ("dynamic_swin", "sparse_vit", "svit_gated_swin"):
        for size in (f"{kind}_t", f"{kind}_s"):
            assert f"COCO-InstanceSegmentation/mask_rcnn_{size}_fpn_3x" in PAIRS
    for size in (*sizes, "spt_t12"):
        assert f"BDD100K-Detection/faster_rcnn_{size}_fpn_3x" in PAIRS


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
        mappers = SelectionDatasetMapper(cfg, is_train), instantiate(loader[split].mapper)
        first, second = (plain(mapper) for mapper in mappers)
        if not is_train:
            # What the detector learns from; at evaluation it is not read.
            del first["use_instance_mask"], second["use_instance_mask"]
        assert first == second
    assert loader.train.total_batch_size == cfg.SOLVER.IMS_PER_BATCH
    assert loader.train.num_workers == loader.test.num_workers == cfg.DATALOADER.NUM_WORKERS
    assert loader.train.dataset.filter_empty == cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS
    assert (loader.train.dataset.names,) == tuple(cfg.DATASETS.TRAIN)
    assert (loader.test.dataset.names,) == tuple(cfg.DATASETS.TEST) == (loader.evaluator.dataset_name,)
    assert tuple(loader.evaluator.tasks) == detection_tasks(cfg.MODEL.MASK_ON)
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


@pytest.mark.parametrize("key", CHANGES)
def test_a_difference_anywhere_is_found(key: str, monkeypatch: pytest.MonkeyPatch) -> None:
    name = "COCO-InstanceSegmentation/mask_rcnn_spt_t_fpn_3x"
    cfg, lazy = load_pair(name)
    OmegaConf.update(lazy, key, CHANGES[key], force_add=True)
    monkeypatch.setattr(f"{__name__}.load_pair", lambda _: (cfg, lazy))
    with pytest.raises(AssertionError):
        test_twins_describe_one_run(name)


@pytest.mark.parametrize("name", PAIRS)
def test_a_leaf_is_short_and_says_what_it_is(name: str) -> None:
    text = (LAZY / f"{name}.py").read_text()
    assert text.startswith('"""') and len(text.splitlines()) <= 12
