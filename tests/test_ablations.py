"""Every ablation of the paper builds and trains a step, is what its page says, and changes what it is about."""

import inspect
import re
from pathlib import Path

import pytest
import torch
from detectron2.config import CfgNode, LazyConfig, instantiate
from detectron2.modeling import build_backbone, build_model
from detectron2.utils.events import EventStorage

from spt_d2 import get_config
from spt_d2.config import validate_spt_config
from spt_d2.engine.optimizer import build_optimizer
from spt_d2.modeling.meta_arch.supervision import SelectionSupervision
from tests.modeling.nano import batch_of_inputs
from tests.shrunk import shrink

ROOT = Path(__file__).resolve().parents[1]
NAMES = sorted(path.stem for path in (ROOT / "configs" / "Ablations").glob("*.yaml"))
BASE = "BDD100K-Detection/faster_rcnn_spt_t_fpn_3x"
SHORT = {"S.": "MODEL.SPT.", "b.": "model.backbone.bottom_up."}


def page_rows() -> dict[str, tuple[list[str], list[str], str]]:
    """What docs/ablations.md says of each config: overrides in yaml, in LazyConfig, and of which base."""
    rows = {}
    for line in (ROOT / "docs" / "ablations.md").read_text().splitlines():
        cells = [cell.strip().strip("`") for cell in line.strip("|").split("|")]
        if len(cells) == 5 and cells[1] in NAMES:
            yaml, lazy = ([lengthen(word) for word in cell.split()] for cell in cells[2:4])
            rows[cells[1]] = (yaml, lazy, cells[4] or BASE)
    return rows


def lengthen(word: str) -> str:
    return SHORT.get(word[:2], word[:2]) + word[2:]


ROWS = page_rows()


def load(name: str) -> CfgNode:
    cfg = get_config(f"Ablations/{name}.yaml")
    assert isinstance(cfg, CfgNode)
    return cfg


def step(cfg: CfgNode) -> tuple[torch.nn.Module, dict[str, torch.Tensor]]:
    """A model that has taken one step of its optimizer on two images, and the losses before it."""
    model = build_model(shrink(cfg))
    optimizer = build_optimizer(cfg, model)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    with EventStorage():
        losses = model.train()(batch_of_inputs((96, 128), (64, 96)))
    sum(losses.values()).backward()
    missing = [name for name, parameter in model.named_parameters() if parameter.grad is None]
    assert not missing
    optimizer.step()
    assert any(not torch.equal(before[name], parameter) for name, parameter in model.named_parameters())
    return model, losses


def test_the_page_has_every_ablation_and_nothing_else() -> None:
    assert sorted(ROWS) == NAMES
    named = re.findall(r"`([\w/-]+_3x\w*)`", (ROOT / "docs" / "ablations.md").read_text())
    for name in named:
        folder = "" if "/" in name else "BDD100K-Detection/"
        assert (ROOT / "configs" / f"{folder}{name}.yaml").is_file(), name


@pytest.mark.parametrize("name", NAMES)
def test_an_ablation_is_its_base_with_the_overrides_that_the_page_says(name: str) -> None:
    overrides, lazy_overrides, base = ROWS[name]
    cfg = get_config(f"{base}.yaml")
    assert isinstance(cfg, CfgNode)
    plain = cfg.dump()
    cfg.merge_from_list(overrides)
    assert cfg == load(name) and cfg.dump() != plain
    # What a LazyConfig says of the backbone, the loss and the labels, as the config does.
    lazy = LazyConfig.load(str(ROOT / "projects" / "SPT" / "configs" / f"{base}.py"))
    lazy = LazyConfig.apply_overrides(lazy, lazy_overrides)
    lazy.model.backbone.bottom_up.update(embed_dim=8, depths=[1, 1, 2, 1], num_heads=[1, 2, 2, 4], window_size=4)
    backbones = instantiate(lazy.model.backbone.bottom_up), build_backbone(shrink(cfg)).bottom_up
    for key in ("spa_stages", "multi_scale", "options"):
        assert getattr(backbones[0], key) == getattr(backbones[1], key)
    defaults = inspect.signature(SelectionSupervision.__init__).parameters
    for key in ("supervise", "pos_weight", "loss_weight", "loss_reduction"):
        assert lazy.model.get(key, defaults[key].default) == cfg.MODEL.SPT[key.upper()]
    for split in ("train", "test"):
        mapper = instantiate(lazy.dataloader[split].mapper)
        assert mapper.strides == tuple(cfg.INPUT.SPT.STRIDES) and mapper.label_source == cfg.INPUT.SPT.LABEL_SOURCE


def test_padding_is_an_override_of_the_base_that_the_page_says() -> None:
    found = re.search(r"`S\.(PACKING) (\w+)`, `b\.(packing=\w+)`", (ROOT / "docs" / "ablations.md").read_text())
    assert found is not None
    key, value, lazy_override = found.groups()
    cfg = get_config(f"{BASE}.yaml")
    cfg.merge_from_list([f"MODEL.SPT.{key}", value])
    lazy = LazyConfig.load(str(ROOT / "projects" / "SPT" / "configs" / f"{BASE}.py"))
    lazy = LazyConfig.apply_overrides(lazy, [f"model.backbone.bottom_up.{lazy_override}"])
    assert lazy.model.backbone.bottom_up.packing == cfg.MODEL.SPT.PACKING == "padded"
    lazy.model.backbone.bottom_up.update(embed_dim=8, depths=[1, 1, 2, 1], num_heads=[1, 2, 2, 4], window_size=4)
    backbone = instantiate(lazy.model.backbone.bottom_up)
    assert backbone.options == build_backbone(shrink(cfg)).bottom_up.options
    assert backbone.options.packing == "padded"
    step(cfg)


@pytest.mark.parametrize("name", NAMES)
def test_an_ablation_is_short_and_names_its_place_in_the_paper(name: str) -> None:
    lines = (ROOT / "configs" / "Ablations" / f"{name}.yaml").read_text().splitlines()
    assert 3 <= len(lines) <= 9
    assert re.match(r"# (Table|Fig\.|App\.|Sec\.) \w", lines[0])


@pytest.mark.parametrize("name", NAMES)
def test_an_ablation_trains_a_step(name: str) -> None:
    cfg = load(name)
    validate_spt_config(cfg)
    model, losses = step(cfg)
    gated = {int(key[-1]) for key in losses if key.startswith("loss_select_stage")}
    node = cfg.MODEL.SPT
    stages = set(node.SPA_STAGES) | ({min(node.SPA_STAGES) - 1} - {0} if node.MULTI_SCALE else set())
    assert gated == (stages if node.SUPERVISE else set())
    assert model.backbone.bottom_up.spa_stages == tuple(node.SPA_STAGES)


@pytest.mark.parametrize("name", [name for name in NAMES if name.startswith(("fixed", "uniform"))])
def test_a_fixed_ratio_keeps_that_share_of_every_image_in_every_block(name: str) -> None:
    cfg = load(name)
    model = build_model(shrink(cfg)).eval()
    with torch.no_grad():
        outputs = model(batch_of_inputs((96, 128), (64, 96)))
    for output in outputs:
        blocks = [block for block in output["selection"].blocks if block.keep_mask is not None]
        assert len(blocks) == sum(cfg.MODEL.SPT.DEPTHS[2:])
        for block in blocks:
            percent = round(100 * cfg.MODEL.SPT.KEEP_RATIO)
            assert block.kept == int(block.keep_mask.sum()) == -(-block.keep_mask.numel() * percent // 100)


def test_a_positive_weight_of_5_raises_the_loss_of_object_tokens_alone() -> None:
    losses = []
    for weight in (1.0, 5.0):
        cfg = load("positive_weight_5")
        cfg.MODEL.SPT.POS_WEIGHT, cfg.MODEL.SPT.DROP_PATH_RATE = weight, 0.0
        torch.manual_seed(0)
        losses.append(step(cfg)[1]["loss_select_stage3"].item())
    assert losses[1] > 1.1 * losses[0]


def test_box_labels_are_drawn_from_boxes_where_the_default_is_masks() -> None:
    box, default = load("box_labels"), get_config("COCO-InstanceSegmentation/mask_rcnn_spt_t_fpn_3x.yaml")
    assert (box.INPUT.SPT.LABEL_SOURCE, default.INPUT.SPT.LABEL_SOURCE) == ("box", "auto")
    assert box.MODEL.MASK_ON and default.MODEL.MASK_ON


@pytest.mark.parametrize(
    "name",
    [
        "COCO-InstanceSegmentation/mask_rcnn_spt_t12_fpn_3x",
        "COCO-InstanceSegmentation/mask_rcnn_swin_t16_fpn_1x",
        "COCO-InstanceSegmentation/mask_rcnn_spt_t_fpn_3x_literal",
        "COCO-InstanceSegmentation/cascade_mask_rcnn_spt_b_fpn_3x",
        "COCO-InstanceSegmentation/cascade_mask_rcnn_swin_s_fpn_1x",
        "COCO-InstanceSegmentation/cascade_mask_rcnn_spt_t_fpn_3x_literal",
        "COCO-Detection/retinanet_spt_t_fpn_1x",
        "COCO-Detection/retinanet_swin_t_fpn_3x",
        # Table 8.
        "BDD100K-Detection/faster_rcnn_spt_t_fpn_3x",
        "BDD100K-Detection/faster_rcnn_spt_t12_fpn_3x",
        "BDD100K-Detection/faster_rcnn_spt_t_fpn_3x_sparse",
        "BDD100K-Detection/faster_rcnn_swin_t_fpn_3x",
    ],
)
def test_every_kind_of_detector_trains_a_step(name: str) -> None:
    cfg = get_config(f"{name}.yaml")
    validate_spt_config(cfg)
    _, losses = step(cfg)
    assert sum(key.startswith("loss_box_reg") for key in losses) == (3 if "cascade" in name else 1)
    assert ("loss_mask" in losses) == cfg.MODEL.MASK_ON
    assert ("loss_select_stage3" in losses) == ("spt" in name)
