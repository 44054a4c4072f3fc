"""Multi-label classification from configs: every leaf trains, twins are equal, programs run from end to end."""

import json
from pathlib import Path

import pytest
import torch
import yaml
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog
from detectron2.modeling import build_model
from detectron2.utils.events import EventStorage

from spt_d2 import get_config
from spt_d2.config import validate_spt_config
from spt_d2.engine.evaluators import build_evaluator
from spt_d2.engine.setup import load_config
from spt_d2.engine.trainer import Trainer
from spt_d2.evaluation import MultiLabelEvaluator, SelectionEvaluator
from spt_d2.predictor import build_predictor
from tests.data.devkit import make_devkit, registered

from .conftest import LAZY_TRAIN_NET, ROOT, TRAIN_NET, assert_same, metrics, run_apart, run_here

FOLDER = ROOT / "configs" / "VOC-Classification"
LEAVES = sorted(path.name for path in FOLDER.glob("multilabel_*.yaml"))
SMALL = {"EMBED_DIM": 16, "DEPTHS": [1, 1, 2, 1], "NUM_HEADS": [1, 2, 4, 8], "DROP_PATH_RATE": 0.1}


def leaf_config(name: str) -> CfgNode:
    cfg = get_config(f"VOC-Classification/{name}")
    cfg.MODEL.DEVICE = "cpu"
    return cfg


def inputs(num_classes: int) -> list[dict]:
    """Two images of different sizes with random labels."""
    generator = torch.Generator().manual_seed(0)
    batch = []
    for height, width in ((64, 96), (50, 64)):
        labels = {}
        for stride in (8, 16, 32):
            grid = -(-height // stride), -(-width // stride)
            labels[stride] = torch.randint(0, 2, grid, generator=generator).to(torch.uint8)
        batch.append(
            {
                "image": torch.randint(0, 256, (3, height, width), generator=generator, dtype=torch.uint8),
                "labels": torch.randint(0, 2, (num_classes,), generator=generator).float(),
                "labels_ignored": torch.zeros(num_classes, dtype=torch.bool),
                "selection_labels": labels,
            }
        )
    return batch


@pytest.mark.parametrize("name", LEAVES)
def test_every_leaf_is_short_valid_and_trains_a_step(name: str) -> None:
    lines = (FOLDER / name).read_text().splitlines()
    assert len(lines) <= 12 and lines[-1].strip()
    cfg = leaf_config(name)
    validate_spt_config(cfg)
    for node in (cfg.MODEL.SPT, cfg.MODEL.SWIN, cfg.MODEL.DYNAMIC_SWIN):
        node.EMBED_DIM, node.DEPTHS, node.NUM_HEADS = SMALL["EMBED_DIM"], SMALL["DEPTHS"], SMALL["NUM_HEADS"]
    cfg.MODEL.DYNAMIC_SWIN.PREDICTOR_BLOCKS = [1]
    cfg.MODEL.VIT.EMBED_DIM, cfg.MODEL.VIT.NUM_HEADS = 24, 2
    model = build_model(cfg)
    with EventStorage():
        losses = model(inputs(cfg.MODEL.MULTI_LABEL.NUM_CLASSES))
    sum(losses.values()).backward()
    assert all(torch.isfinite(loss) for loss in losses.values())
    assert all(parameter.grad is not None for parameter in model.parameters())
    supervised = "spt" in name and cfg.MODEL.SPT.SUPERVISE
    assert any(key.startswith("loss_select") for key in losses) == supervised


def test_the_ablations_are_what_their_tables_say() -> None:
    spt = {name: leaf_config(f"multilabel_{name}.yaml").MODEL.SPT for name in (
        "spt_t", "spt_t_topk50", "spt_t_no_select_loss", "spt_t_oracle", "spt_t_literal"
    )}  # fmt: skip
    full = spt["spt_t"]
    assert (full.SELECT, full.SUPERVISE, full.DEPTHS) == ("gate", True, [2, 2, 10, 2])
    assert {name for name, node in spt.items() if node.DEPTHS != full.DEPTHS} == set()
    rows = {"spt_t_topk50": ("topk", 0.5, False), "spt_t_oracle": ("oracle", full.KEEP_RATIO, False)}
    for name, row in rows.items():
        assert (spt[name].SELECT, spt[name].KEEP_RATIO, spt[name].SUPERVISE) == row
    differing = {key for key in full if spt["spt_t_no_select_loss"][key] != full[key]}
    assert differing == {"SUPERVISE"}
    literal = get_config("Shapes-InstanceSegmentation/mask_rcnn_spt_nano_fpn_literal.yaml").MODEL.SPT
    sizes = {"EMBED_DIM", "DEPTHS", "NUM_HEADS", "DROP_PATH_RATE", "OUT_FEATURES"}
    assert {key for key in literal if spt["spt_t_literal"][key] != literal[key]} <= sizes
    assert leaf_config("multilabel_swin_t16.yaml").MODEL.SWIN.DEPTHS == full.DEPTHS
    for name in ("spt_t", "swin_t16"):
        sparse, all_images = leaf_config(f"multilabel_{name}_sparse.yaml"), leaf_config(f"multilabel_{name}.yaml")
        assert (sparse.DATASETS.TRAIN, sparse.DATASETS.TEST) == (
            ("voc_2012_multilabel_sparse_train",),
            ("voc_2012_multilabel_sparse_val",),
        )
        assert sparse.MODEL == all_images.MODEL and sparse.SOLVER == all_images.SOLVER


@pytest.fixture(scope="module")
def tiny_yaml(tiny_shapes: list[list[str]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The nano leaf on a data set of one's own, tiny, for four iterations."""
    config = {
        "_BASE_": str(FOLDER / "multilabel_spt_nano_shapes.yaml"),
        "MODEL": {
            "SPT": {**SMALL, "NOISE": "logistic", "LOG_PERIOD": 2},
            "SWIN": SMALL,
            # Wrong; the json knows.
            "MULTI_LABEL": {"NUM_CLASSES": 20},
        },
        "DATASETS": {"CUSTOM": tiny_shapes, "TRAIN": ["tiny_train"], "TEST": ["tiny_val"]},
        "INPUT": {"MIN_SIZE_TRAIN": [64, 96], "MIN_SIZE_TEST": 64},
        "DATALOADER": {"NUM_WORKERS": 0},
        "SOLVER": {"IMS_PER_BATCH": 4, "MAX_ITER": 4, "STEPS": [3], "WARMUP_ITERS": 2, "METRIC_PERIOD": 2},
        "SEED": 7,
    }
    path = tmp_path_factory.mktemp("multi_label") / "tiny.yaml"
    path.write_text(yaml.safe_dump(config))
    return path


LAZY = """
from detectron2.config import LazyConfig

_nano = LazyConfig.load({leaf!r})
model, dataloader, optimizer, lr_multiplier, train = (
    _nano[key] for key in ("model", "dataloader", "optimizer", "lr_multiplier", "train")
)
model.backbone.update(embed_dim=16, depths=[1, 1, 2, 1], num_heads=[1, 2, 4, 8], drop_path_rate=0.1, noise="logistic")
model.log_period = 2
model.num_classes = 20
datasets = dict(custom={custom!r})
dataloader.train.dataset.names = "tiny_train"
dataloader.train.mapper.augmentations[0].short_edge_length = (64, 96)
dataloader.train.update(total_batch_size=4, num_workers=0)
dataloader.test.dataset.names = "tiny_val"
dataloader.test.mapper.augmentations[0].short_edge_length = 64
dataloader.test.num_workers = 0
lr_multiplier.warmup_length = 2 / 4
lr_multiplier.scheduler.update(milestones=[3], num_updates=4)
train.update(max_iter=4, seed=7, log_period=2)
"""


@pytest.fixture(scope="module")
def tiny_lazy(tiny_shapes: list[list[str]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("multi_label_lazy") / "tiny.py"
    leaf = ROOT / "projects" / "SPT" / "configs" / "VOC-Classification" / "multilabel_spt_nano_shapes.py"
    path.write_text(LAZY.format(leaf=str(leaf), custom=tiny_shapes))
    return path


@pytest.fixture(scope="module")
def yaml_run(tiny_yaml: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict]:
    folder = tmp_path_factory.mktemp("multi_label_run")
    return folder, run_here(TRAIN_NET, "--config-file", tiny_yaml, "OUTPUT_DIR", folder)


def written(folder: Path) -> dict:
    return json.loads((folder / "inference" / "multi_label_results.json").read_text())


def test_a_run_trains_and_evaluates_classes_and_selections(yaml_run: tuple[Path, dict]) -> None:
    folder, results = yaml_run
    assert set(results) == {"multi_label", "selection"}
    assert {"mAP", "mAP_voc07", "mAP_step", "AP-disc"} <= results["multi_label"].keys()
    assert {"keep_ratio", "retention", "executed_macs_g"} <= results["selection"].keys()
    logged = metrics(folder)
    recorded = {name for record in logged.values() for name in record}
    assert {"loss_multi_label", "loss_select_stage3", "selection/stage3/keep_ratio", "multi_label/mAP"} <= recorded
    found = written(folder)
    assert found["multi_label"] == results["multi_label"] and found["flavour"] == "voc10"


def test_labels_and_number_of_classes_are_those_of_the_json(
    yaml_run: tuple[Path, dict], tiny_shapes: list[list[str]]
) -> None:
    folder, _ = yaml_run
    content = json.loads(Path(tiny_shapes[1][1]).read_text())
    order = {number: index for index, number in enumerate(sorted(c["id"] for c in content["categories"]))}
    shown: dict[int, set] = {image["id"]: set() for image in content["images"]}
    for found in content["annotations"]:
        shown[found["image_id"]].add(order[found["category_id"]])
    result = written(folder)
    assert {row["image_id"]: set(row["labels"]) for row in result["images"]} == shown
    assert len(result["classes"]) == len(order) == 4
    assert torch.load(folder / "model_final.pth")["model"]["label_predictor.weight"].shape == (4, 128)


def test_a_number_of_classes_on_the_command_line_must_be_that_of_the_json(tiny_yaml: Path) -> None:
    with pytest.raises(ValueError, match=r"MODEL.MULTI_LABEL.NUM_CLASSES is 5 on the command line, but .* 4 classes"):
        load_config(str(tiny_yaml), ["MODEL.MULTI_LABEL.NUM_CLASSES", "5"])


def test_the_lazy_twin_ends_bit_for_bit_alike(yaml_run: tuple[Path, dict], tiny_lazy: Path, tmp_path: Path) -> None:
    results = run_here(LAZY_TRAIN_NET, "--config-file", tiny_lazy, f"train.output_dir={tmp_path}")
    first, second = (torch.load(folder / "model_final.pth") for folder in (tmp_path, yaml_run[0]))
    assert_same(dict(first["model"]), dict(second["model"]))
    assert results["multi_label"] == yaml_run[1]["multi_label"]
    assert results["selection"] == yaml_run[1]["selection"]
    assert written(tmp_path) == written(yaml_run[0])


def test_evaluation_alone_gives_the_results_of_the_run(
    yaml_run: tuple[Path, dict], tiny_yaml: Path, tmp_path: Path
) -> None:
    weights = ("MODEL.WEIGHTS", yaml_run[0] / "model_final.pth")
    step = ("MODEL.MULTI_LABEL.AVERAGE_PRECISION", "step")
    arguments = ("--eval-only", "--config-file", tiny_yaml, "OUTPUT_DIR", tmp_path, *weights, *step)
    results = run_here(TRAIN_NET, *arguments)["multi_label"]
    assert results["mAP"] == yaml_run[1]["multi_label"]["mAP_step"]
    assert results["mAP_voc10"] == yaml_run[1]["multi_label"]["mAP"]
    assert written(tmp_path)["images"] == written(yaml_run[0])["images"]


@pytest.mark.slow
def test_two_processes_train_and_evaluate(yaml_run: tuple[Path, dict], tiny_yaml: Path, tmp_path: Path) -> None:
    """Every parameter has a gradient, or the second iteration would fail; images keep their order."""
    torchrun = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
    short = ("SOLVER.MAX_ITER", "2", "SOLVER.STEPS", "()")
    run_apart(*torchrun, TRAIN_NET, "--config-file", tiny_yaml, "OUTPUT_DIR", tmp_path / "two", *short)
    weights = ("MODEL.WEIGHTS", tmp_path / "two" / "model_final.pth")
    alone = run_here(TRAIN_NET, "--eval-only", "--config-file", tiny_yaml, "OUTPUT_DIR", tmp_path / "one", *weights)
    together, single = written(tmp_path / "two"), written(tmp_path / "one")
    assert [row["image_id"] for row in together["images"]] == [row["image_id"] for row in single["images"]]
    assert together["multi_label"] == pytest.approx(alone["multi_label"], rel=1e-6)


def test_the_predictor_gives_scores(yaml_run: tuple[Path, dict], tiny_yaml: Path, tiny_shapes: list[list[str]]) -> None:
    cv2 = pytest.importorskip("cv2", reason="OpenCV is not installed")
    folder, _ = yaml_run
    predictor = build_predictor(load_config(str(tiny_yaml)), str(folder / "model_final.pth"))
    row = written(folder)["images"][0]
    content = json.loads(Path(tiny_shapes[1][1]).read_text())
    name = next(image["file_name"] for image in content["images"] if image["id"] == row["image_id"])
    output = predictor(cv2.imread(str(Path(tiny_shapes[1][2]) / name)))
    assert output["logits"].tolist() == pytest.approx(row["logits"], abs=1e-4)
    assert torch.equal(output["scores"], output["logits"].sigmoid())
    assert len(output["selection"].blocks) > 0


def small(*more: str) -> list[str]:
    options = [f"MODEL.{node}.{key}={value}" for node in ("SPT", "SWIN") for key, value in SMALL.items()]
    pairs = [part for option in options for part in option.split("=")]
    return [*pairs, "INPUT.MIN_SIZE_TRAIN", "(64,)", "INPUT.MIN_SIZE_TEST", "64", "DATALOADER.NUM_WORKERS", "0", *more]


@pytest.mark.parametrize("kind", ["swin", "spt", "dynamic_swin", "sparse_vit", "dat", "svit_gated_swin"])
def test_every_parameter_of_a_classifier_over_any_backbone_gets_a_gradient(kind: str) -> None:
    """Norms of stages that no one reads would get none, which several processes wait for in vain."""
    cfg = leaf_config("multilabel_spt_nano_shapes.yaml")
    cfg.MODEL.BACKBONE.NAME = f"build_{kind}_backbone"
    if kind == "dat":
        nano = get_config("Backbones/Base-DAT-nano.yaml").MODEL.DAT
        cfg.MODEL.DAT.update({**nano, "OUT_FEATURES": cfg.MODEL.DAT.OUT_FEATURES})
    torch.manual_seed(0)
    model = build_model(cfg).train()
    with EventStorage():
        sum(model(inputs(cfg.MODEL.MULTI_LABEL.NUM_CLASSES)).values()).backward()
    assert [name for name, parameter in model.named_parameters() if parameter.grad is None] == []


@pytest.mark.parametrize("leaf", ["spt_t", "spt_t_oracle"])
def test_voc_trains_and_is_evaluated(leaf: str, tmp_path: Path) -> None:
    short = small("SOLVER.MAX_ITER", "1", "SOLVER.STEPS", "()", "SOLVER.IMS_PER_BATCH", "2", "SEED", "0")
    with registered(make_devkit(tmp_path)):
        results = run_here(
            TRAIN_NET, "--config-file", FOLDER / f"multilabel_{leaf}.yaml", "OUTPUT_DIR", tmp_path / "out", *short
        )
    # 2008_000002 shows a cat that is difficult; 2009_000004 cars alone.
    assert set(results["multi_label"]) == {"mAP", "mAP_voc07", "mAP_step", "AP-dog", "AP-car"}
    if leaf == "spt_t_oracle":
        assert results["selection"]["retention"] == results["selection"]["density"] == 1
    rows = {row["image_id"]: row for row in written(tmp_path / "out")["images"]}
    classes = written(tmp_path / "out")["classes"]
    assert [classes[k] for k in rows["2008_000002"]["ignored"]] == ["cat"]


def test_the_data_set_or_the_task_chooses_the_evaluator(tiny_yaml: Path, tmp_path: Path) -> None:
    built = build_evaluator("voc_2012_multilabel_val", str(tmp_path))._evaluators
    assert [type(evaluator) for evaluator in built] == [MultiLabelEvaluator]
    cfg = load_config(str(tiny_yaml), ["MODEL.MULTI_LABEL.AVERAGE_PRECISION", "voc07"])
    built = Trainer.build_evaluator(cfg, "tiny_val", str(tmp_path))._evaluators
    assert [type(evaluator) for evaluator in built] == [MultiLabelEvaluator, SelectionEvaluator]
    assert built[0].flavour == "voc07"
    assert DatasetCatalog.get("tiny_val")


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("MODEL.MULTI_LABEL.AVERAGE_PRECISION", "coco", r"expects one of \('voc10', 'voc07', 'step'\). Got 'coco'"),
        ("MODEL.MULTI_LABEL.NUM_CLASSES", "0", "expects at least 1 class. Got 0"),
        ("TEST.AUG.ENABLED", "True", "expects False with a classifier. Got True"),
    ],
)
def test_values_that_cannot_be_are_named(key: str, value: str, message: str) -> None:
    with pytest.raises(ValueError, match=f"{key} {message}"):
        load_config(str(FOLDER / "multilabel_spt_t.yaml"), [key, value])


def test_every_key_is_read(tmp_path: Path) -> None:
    cfg = leaf_config("multilabel_spt_nano_shapes.yaml")
    assert set(cfg.MODEL.MULTI_LABEL) == {"NUM_CLASSES", "FEATURE", "AVERAGE_PRECISION"}
    cfg.MODEL.MULTI_LABEL.NUM_CLASSES, cfg.MODEL.MULTI_LABEL.FEATURE = 7, "res4"
    cfg.MODEL.SPT.OUT_FEATURES = ["res4"]
    model = build_model(cfg)
    assert (model.label_predictor.out_features, model.stride) == (7, 16)
