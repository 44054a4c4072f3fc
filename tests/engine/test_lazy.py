"""tools/lazyconfig_train_net.py: the twin of train_net.py, down to the last bit."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from detectron2.config import CfgNode, LazyConfig, instantiate
from detectron2.modeling import build_model
from detectron2.solver import LRMultiplier
from detectron2.solver.build import build_lr_scheduler
from detectron2.structures import BitMasks, Boxes, Instances
from detectron2.utils.events import EventStorage
from omegaconf import DictConfig
from torch import nn

from spt_d2 import get_config
from spt_d2.engine.evaluation_file import EVALUATION_FILE
from spt_d2.engine.lazy import load_lazy
from spt_d2.engine.optimizer import build_optimizer

from .conftest import LAZY_TRAIN_NET, ROOT, assert_same, metrics, predictions, run_here

LEAF = ROOT / "projects" / "SPT" / "configs" / "Shapes-InstanceSegmentation" / "mask_rcnn_spt_nano_fpn_demo.py"


@pytest.fixture(scope="module")
def yaml_twin() -> CfgNode:
    cfg = get_config("Shapes-InstanceSegmentation/mask_rcnn_spt_nano_fpn_demo.yaml")
    cfg.MODEL.DEVICE = "cpu"
    return cfg


@pytest.fixture(scope="module")
def lazy_twin() -> DictConfig:
    return LazyConfig.load(str(LEAF))


@pytest.fixture(scope="module")
def models(yaml_twin: CfgNode, lazy_twin: DictConfig) -> tuple[nn.Module, nn.Module]:
    """Both models, with the weights of the first."""
    torch.manual_seed(0)
    first, second = build_model(yaml_twin), instantiate(lazy_twin.model)
    second.load_state_dict(first.state_dict())
    return first, second


@pytest.mark.parametrize("text", ["MODEL: {}\n", "[model, train]\n", "model: {}\n"])
def test_a_yaml_config_is_refused_with_the_program_that_it_is_for(text: str, tmp_path: Path) -> None:
    path = tmp_path / "detector.yaml"
    path.write_text(text)
    message = r"Got the yaml config .*detector.yaml.\nHINT: its LazyConfig twin .* projects/SPT/train_net.py"
    with pytest.raises(ValueError, match=message):
        run_here(LAZY_TRAIN_NET, "--config-file", path, "MODEL.MASK_ON", "True")


def test_the_yaml_that_a_lazy_run_leaves_is_a_lazy_config(lazy_twin: DictConfig, tmp_path: Path) -> None:
    LazyConfig.save(lazy_twin, str(tmp_path / "config.yaml"))
    cfg = load_lazy(str(tmp_path / "config.yaml"), ["train.max_iter=7"])
    assert cfg.train.max_iter == 7 and cfg.model.roi_heads.num_classes == lazy_twin.model.roi_heads.num_classes


def inputs() -> list[dict]:
    """Two images of 64 px with two objects each."""
    batch = []
    for seed in range(2):
        generator = torch.Generator().manual_seed(seed)
        boxes = torch.tensor([[4.0, 6.0, 30.0, 28.0], [30.0, 34.0, 60.0, 60.0]])
        masks = torch.zeros(2, 64, 64, dtype=torch.bool)
        for mask, (x0, y0, x1, y1) in zip(masks, boxes.int().tolist()):
            mask[y0:y1, x0:x1] = True
        labels = {s: masks.any(0).reshape(64 // s, s, 64 // s, s).amax((1, 3)).to(torch.uint8) for s in (8, 16, 32)}
        objects = Instances((64, 64), gt_boxes=Boxes(boxes), gt_classes=torch.tensor([0, 3]), gt_masks=BitMasks(masks))
        image = torch.randint(0, 256, (3, 64, 64), generator=generator, dtype=torch.uint8)
        batch.append({"image": image, "height": 64, "width": 64, "instances": objects, "selection_labels": labels})
    return batch


def test_twins_have_the_same_parameters(yaml_twin: CfgNode, lazy_twin: DictConfig) -> None:
    states = build_model(yaml_twin).state_dict(), instantiate(lazy_twin.model).state_dict()
    shapes = [{name: tuple(value.shape) for name, value in state.items()} for state in states]
    assert shapes[0] == shapes[1]


def test_twins_give_the_same_losses_and_gradients(models: tuple[nn.Module, nn.Module]) -> None:
    results = []
    for model in models:
        torch.manual_seed(0)
        model.train()
        with EventStorage():
            losses = model(inputs())
        sum(losses.values()).backward()
        results.append((losses, {name: parameter.grad for name, parameter in model.named_parameters()}))
    assert_same(*results)
    assert {"loss_mask", "loss_select_stage2", "loss_select_stage3", "loss_select_stage4"} <= results[0][0].keys()


def test_twins_give_the_same_detections_and_selections(models: tuple[nn.Module, nn.Module]) -> None:
    results = []
    for model in models:
        model.eval()
        # Of an untrained detector, too, something is to be compared.
        model.roi_heads.box_predictor.test_score_thresh = 0.0
        with torch.no_grad():
            outputs = model(inputs())
        fields = [{**output["instances"].get_fields()} for output in outputs]
        boxes = [found.pop("pred_boxes").tensor for found in fields]
        masks = [[block.keep_mask for block in output["selection"].blocks] for output in outputs]
        results.append((fields, boxes, masks))
    assert_same(*results)
    assert len(results[0][1][0]) > 0 and "pred_masks" in results[0][0][0]


def test_a_detector_differs_with_its_weights(lazy_twin: DictConfig) -> None:
    """Equality above is no accident of a model that gives the same whatever its weights."""
    losses = []
    for seed in range(2):
        torch.manual_seed(seed)
        model = instantiate(lazy_twin.model)
        with EventStorage():
            losses.append(sum(model(inputs()).values()).item())
    assert losses[0] != losses[1]


def test_twins_train_by_the_same_recipe(yaml_twin: CfgNode, lazy_twin: DictConfig) -> None:
    yaml_model, lazy_model = build_model(yaml_twin), instantiate(lazy_twin.model)
    node = lazy_twin.copy()
    node.optimizer.params.model = lazy_model
    optimizers = build_optimizer(yaml_twin, yaml_model), instantiate(node.optimizer)
    assert type(optimizers[0]) is type(optimizers[1])
    described = []
    for model, optimizer in zip((yaml_model, lazy_model), optimizers):
        names = {id(p): name for name, p in model.named_parameters()}
        rows = [{**group, "params": [names[id(p)] for p in group["params"]]} for group in optimizer.param_groups]
        described.append([{k: list(v) if isinstance(v, (tuple, list)) else v for k, v in row.items()} for row in rows])
    for row in described[1]:
        row["betas"] = list(row["betas"])
    assert described[0] == described[1]

    solver, train = yaml_twin.SOLVER, lazy_twin.train
    schedulers = (
        build_lr_scheduler(yaml_twin, optimizers[0]),
        LRMultiplier(optimizers[1], instantiate(lazy_twin.lr_multiplier), train.max_iter),
    )
    for _ in range(solver.MAX_ITER - 1):
        for optimizer, scheduler in zip(optimizers, schedulers):
            optimizer.step()
            scheduler.step()
        assert optimizers[0].param_groups[0]["lr"] == pytest.approx(optimizers[1].param_groups[0]["lr"], rel=1e-12)

    clip = solver.CLIP_GRADIENTS
    assert train.clip_gradients == {
        "enabled": clip.ENABLED, "kind": clip.CLIP_TYPE, "value": clip.CLIP_VALUE, "norm_type": clip.NORM_TYPE
    }  # fmt: skip
    assert (train.max_iter, train.seed, train.log_period) == (solver.MAX_ITER, yaml_twin.SEED, solver.METRIC_PERIOD)
    assert (train.checkpointer.period, train.eval_period) == (solver.CHECKPOINT_PERIOD, yaml_twin.TEST.EVAL_PERIOD)
    loader = lazy_twin.dataloader
    assert loader.train.total_batch_size == solver.IMS_PER_BATCH
    assert loader.train.dataset.filter_empty == yaml_twin.DATALOADER.FILTER_EMPTY_ANNOTATIONS
    assert tuple(loader.train.mapper.augmentations[0].short_edge_length) == tuple(yaml_twin.INPUT.MIN_SIZE_TRAIN)
    assert loader.test.mapper.augmentations[0].short_edge_length == yaml_twin.INPUT.MIN_SIZE_TEST
    assert (loader.train.dataset.names,) == tuple(yaml_twin.DATASETS.TRAIN)
    assert (loader.test.dataset.names,) == tuple(yaml_twin.DATASETS.TEST)


TINY = """
from detectron2.config import LazyConfig

_nano = LazyConfig.load({leaf!r})
model, dataloader, optimizer, lr_multiplier, train = (
    _nano[key] for key in ("model", "dataloader", "optimizer", "lr_multiplier", "train")
)
model.backbone.bottom_up.update(
    embed_dim=16, depths=[1, 1, 2, 1], num_heads=[1, 2, 4, 8], drop_path_rate=0.1, noise="logistic"
)
model.log_period = 2
model.backbone.out_channels = 16
model.proposal_generator.post_nms_topk = (40, 20)
model.roi_heads.num_classes = 80
model.roi_heads.box_head.fc_dims = [32, 32]
model.roi_heads.box_predictor.update(test_score_thresh=0.0, test_topk_per_image=10)
model.roi_heads.mask_head.conv_dims = [16, 16]
datasets = dict(custom={custom!r})
dataloader.train.dataset.names = "tiny_train"
dataloader.train.mapper.augmentations[0].short_edge_length = (64, 96)
dataloader.train.update(total_batch_size=4, num_workers=0)
dataloader.test.dataset.names = "tiny_val"
dataloader.test.mapper.augmentations[0].short_edge_length = 64
dataloader.test.num_workers = 0
lr_multiplier.warmup_length = 2 / 4
lr_multiplier.scheduler.update(milestones=[3], num_updates=4)
train.update(max_iter=4, seed=7, log_period=2, ema=dict(enabled=True, decay=0.5))
train.checkpointer.period = 2
"""


@pytest.fixture(scope="module")
def tiny_lazy_config(tiny_shapes: list[list[str]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The twin of the tiny yaml config."""
    path = tmp_path_factory.mktemp("lazy") / "tiny.py"
    path.write_text(TINY.format(leaf=str(LEAF), custom=tiny_shapes))
    return path


@pytest.fixture(scope="module")
def lazy_run(tiny_lazy_config: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict]:
    folder = tmp_path_factory.mktemp("lazy_run")
    return folder, run_here(LAZY_TRAIN_NET, "--config-file", tiny_lazy_config, f"train.output_dir={folder}")


def test_twins_end_bit_for_bit_alike(lazy_run: tuple[Path, dict], whole_run: tuple[Path, dict]) -> None:
    """The same seeds, images, augmentations, noise, learning rates, clipping, averages, and the same evaluation."""
    first, second = (torch.load(folder / "model_final.pth") for folder, _ in (lazy_run, whole_run))
    assert_same(dict(first["model"]), dict(second["model"]))
    assert_same(
        dict(first["trainer"]["hooks"]["EMAHook"]["trained"]), dict(second["trainer"]["hooks"]["EMAHook"]["trained"])
    )
    assert predictions(lazy_run[0]) == predictions(whole_run[0]) != []
    assert lazy_run[1]["selection"] == whole_run[1]["selection"]
    logged = [metrics(folder) for folder, _ in (lazy_run, whole_run)]
    for i in (1, 3):
        losses = [{name: value for name, value in log[i].items() if "loss" in name} for log in logged]
        assert losses[0] == losses[1] and "loss_select_stage3" in losses[0]


def test_a_resumed_run_ends_as_one_that_never_stopped(
    lazy_run: tuple[Path, dict], tiny_lazy_config: Path, tmp_path: Path
) -> None:
    shutil.copy(lazy_run[0] / "model_0000001.pth", tmp_path)
    (tmp_path / "last_checkpoint").write_text("model_0000001.pth")
    run_here(LAZY_TRAIN_NET, "--resume", "--config-file", tiny_lazy_config, f"train.output_dir={tmp_path}")
    assert {i for i in metrics(tmp_path) if "loss_cls" in metrics(tmp_path)[i]} == {3}
    assert_same(*(torch.load(folder / "model_final.pth") for folder in (tmp_path, lazy_run[0])))


def test_evaluation_alone_gives_the_results_of_the_run(
    lazy_run: tuple[Path, dict], tiny_lazy_config: Path, tmp_path: Path
) -> None:
    weights = f"train.init_checkpoint={lazy_run[0] / 'model_final.pth'}"
    results = run_here(
        LAZY_TRAIN_NET, "--eval-only", "--config-file", tiny_lazy_config, f"train.output_dir={tmp_path}", weights
    )
    assert predictions(tmp_path) == predictions(lazy_run[0])
    assert results["selection"] == lazy_run[1]["selection"]
    trained, evaluated = (json.loads((folder / EVALUATION_FILE).read_text()) for folder in (lazy_run[0], tmp_path))
    assert trained["test"] == evaluated["test"] and evaluated["test"][0]["name"] == "tiny_val"
    assert (trained["train"], trained["seed"], trained["eval_only"]) == (["tiny_train"], 7, False)
    assert evaluated["eval_only"] and evaluated["overrides"] == ["train.init_checkpoint=model_final.pth"]


@pytest.mark.parametrize("name", ["spt_fpn", "vit_nano_fpn", "spt_nano_fpn"])
def test_the_parts_build(name: str) -> None:
    with torch.device("meta"):
        model = instantiate(get_config(f"common/models/{name}.py").model)
    counts = {"spt_fpn": 80, "vit_nano_fpn": 4, "spt_nano_fpn": 4}
    assert model.roi_heads.box_predictor.cls_score.out_features == counts[name] + 1


def test_a_run_without_a_seed_and_without_an_evaluator_works(tiny_lazy_config: Path, tmp_path: Path) -> None:
    overrides = ("train.seed=-1", "train.max_iter=1", "train.clip_gradients.enabled=False", "train.ema.enabled=False")
    mixed = ("train.amp.enabled=True", "train.amp.precision=bfloat16", "dataloader.evaluator=null")
    results = run_here(
        LAZY_TRAIN_NET, "--config-file", tiny_lazy_config, f"train.output_dir={tmp_path}", *overrides, *mixed
    )
    assert results == {}
    assert (tmp_path / "model_final.pth").exists() and not (tmp_path / EVALUATION_FILE).exists()
