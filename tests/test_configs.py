"""
Every config there is, found by place: it loads, it builds, it says what differs from its base and nothing else.

A file in ``configs`` whose name begins with ``Base`` is there for others to stand on; any other yaml is a leaf, a run
somebody may start. Leaves of LazyConfig are in ``projects``, their parts in ``configs/common``; tests/test_twins.py
holds each of them equal to its yaml.
"""

import ast
import functools
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import nn

from tests.conftest import ROOT

pytest.importorskip("detectron2", reason="detectron2 is not installed")
from detectron2.config import CfgNode, LazyConfig, get_cfg, instantiate
from detectron2.config.lazy import _patch_import
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.modeling import build_model
from detectron2.solver.build import build_lr_scheduler
from omegaconf import DictConfig, ListConfig, OmegaConf

from spt_d2 import get_config
from spt_d2.config import add_spt_config, validate_spt_config
from spt_d2.engine.optimizer import build_optimizer
from spt_d2.peer_config import PEERS

CONFIGS = ROOT / "configs"
YAMLS = sorted(CONFIGS.rglob("*.yaml"))
LEAVES = [path for path in YAMLS if not path.name.startswith("Base")]
LAZY_LEAVES = sorted((ROOT / "projects").glob("*/configs/**/*.py"))
LAZY_PARTS = sorted(CONFIGS.rglob("*.py"))


def each(paths: list[Path]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("path", paths, ids=[path.relative_to(ROOT).as_posix() for path in paths])


def load(*paths: Path) -> CfgNode:
    """The defaults with files over them, to be changed at will."""
    cfg = get_cfg()
    add_spt_config(cfg)
    for path in paths:
        cfg.merge_from_file(str(path))
    return cfg


@functools.cache
def loaded(path: Path) -> CfgNode:
    """A config that is only read, for the many tests that read it."""
    cfg = load(path)
    cfg.freeze()
    return cfg


def bases(path: Path) -> list[Path]:
    """The files that a yaml stands on, the last of them on top."""
    named = yaml.safe_load(path.read_text()).get("_BASE_", [])
    return [path.parent / name for name in ([named] if isinstance(named, str) else named)]


def flat(node: dict, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Every value below a node, with the keys that lead to it."""
    for key, value in node.items():
        if isinstance(value, dict):
            yield from flat(value, (*path, key))
        else:
            yield (*path, key), value


def test_there_are_configs_of_every_kind() -> None:
    assert len(LEAVES) >= 10 and len(YAMLS) > len(LEAVES) and LAZY_LEAVES and LAZY_PARTS


# Building them costs little


@contextmanager
def uninitialised() -> Iterator[None]:
    """Parameters keep what their memory held, which the system does not even hand out before it is written."""
    with pytest.MonkeyPatch.context() as patch:
        for name in dir(nn.init):
            if name.endswith("_") and not name.startswith("_"):
                patch.setattr(nn.init, name, lambda tensor, *args, **kwargs: tensor)
        yield


def build_cheaply(build: Callable[[str], nn.Module]) -> nn.Module:
    """On the meta device, as shapes alone; a model whose constructor reads values, on the CPU, but uninitialised."""
    with uninitialised():
        try:
            with torch.device("meta"):
                return build("meta")
        except (NotImplementedError, RuntimeError) as error:
            if "meta" not in str(error):
                raise
        return build("cpu")


class ReadsValues(nn.Module):
    """What the meta device cannot build."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, int(torch.ones(4).sum()))


def test_a_model_whose_constructor_reads_values_is_built_elsewhere() -> None:
    assert build_cheaply(lambda device: nn.Linear(3, 4)).weight.is_meta
    model = build_cheaply(lambda device: ReadsValues())
    assert model.linear.weight.shape == (4, 3) and model.linear.weight.device.type == "cpu"
    with pytest.raises(RuntimeError, match="mine"):
        build_cheaply(lambda device: exec("raise RuntimeError('mine')"))


def build_yaml(path: Path) -> nn.Module:
    def build(device: str) -> nn.Module:
        cfg.MODEL.DEVICE = device
        return build_model(cfg)

    cfg = loaded(path).clone()
    cfg.defrost()
    return build_cheaply(build)


def shapes_of(model: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(value.shape) for name, value in model.state_dict().items()}


# yaml


@each(YAMLS)
def test_a_yaml_loads_and_is_valid(path: Path) -> None:
    validate_spt_config(loaded(path))


@each(LEAVES)
def test_a_leaf_builds_its_model_and_what_trains_it(path: Path) -> None:
    cfg, model = loaded(path), build_yaml(path)
    assert sum(parameter.numel() for parameter in model.parameters()) > 100_000
    optimizer = build_optimizer(cfg, model)
    trained = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    assert trained == {id(parameter) for parameter in model.parameters() if parameter.requires_grad}
    build_lr_scheduler(cfg, optimizer)


@each(LEAVES)
def test_the_schedule_of_a_leaf_fits_its_length(path: Path) -> None:
    solver = loaded(path).SOLVER
    milestones = [solver.WARMUP_ITERS, *solver.STEPS, solver.MAX_ITER]
    assert milestones == sorted(set(milestones))


@each(LEAVES)
def test_data_sets_of_a_leaf_are_registered_and_have_its_classes(path: Path) -> None:
    cfg = loaded(path)
    for name in (*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST):
        assert name in DatasetCatalog, name
        classes = MetadataCatalog.get(name).get("thing_classes")
        architecture = cfg.MODEL.META_ARCHITECTURE
        nodes = {"RCNN": cfg.MODEL.ROI_HEADS, "PanopticFPN": cfg.MODEL.ROI_HEADS, "RetinaNet": cfg.MODEL.RETINANET}
        for kind, node in nodes.items():
            if architecture.endswith(kind) and classes is not None:
                assert node.NUM_CLASSES == len(classes), name


def repeated(path: Path) -> set[str]:
    """
    Keys to which a file gives the values they have without it.

    What an alias repeats is written once for several nodes, and repeated only if all of them have it already.
    """
    content = yaml.safe_load(path.read_text())
    del content["_BASE_"]
    own, before = dict(flat(load(path))), dict(flat(load(*bases(path))))
    places: dict[tuple[int, str], list[tuple[str, ...]]] = {}

    def walk(node: dict, keys: tuple[str, ...]) -> None:
        for key, value in node.items():
            if isinstance(value, dict):
                walk(value, (*keys, key))
            else:
                places.setdefault((id(node), key), []).append((*keys, key))

    walk(content, ())
    return {".".join(paths[0]) for paths in places.values() if all(own[keys] == before[keys] for keys in paths)}


def set_by_bases(path: Path) -> set[str]:
    """Keys that the files below a file set."""
    found = set()
    for base in bases(path):
        found |= {".".join(keys) for keys, _ in flat(yaml.safe_load(base.read_text()))} | set_by_bases(base)
    return found - {"_BASE_"}


@each([path for path in YAMLS if bases(path)])
def test_a_yaml_does_not_repeat_its_base(path: Path) -> None:
    """A base may say which of Detectron2's defaults belong to its recipe; a leaf says what is its own."""
    found = repeated(path)
    assert not (found if path in LEAVES else found & set_by_bases(path))


def test_repetitions_are_found(tmp_path: Path) -> None:
    (tmp_path / "Base.yaml").write_text("VERSION: 2\nMODEL: {SPT: {TAU: 2.0}}\n")
    middle, leaf = tmp_path / "Base-middle.yaml", tmp_path / "leaf.yaml"
    middle.write_text("_BASE_: Base.yaml\nSOLVER:\n  STEPS: (3, 4)\n")
    leaf.write_text("_BASE_: Base-middle.yaml\nMODEL: {SPT: {TAU: 2.0, GATE: per_stage}}\nSOLVER: {STEPS: [3, 4]}\n")
    assert repeated(leaf) == {"MODEL.SPT.TAU", "SOLVER.STEPS"}
    assert set_by_bases(leaf) == {"VERSION", "MODEL.SPT.TAU", "SOLVER.STEPS"}
    other = tmp_path / "Base-other.yaml"
    other.write_text("MODEL: {SPT: {GATE: per_stage}}\n")
    leaf.write_text("_BASE_: [Base-middle.yaml, Base-other.yaml]\nMODEL: {SPT: {TAU: 3.0, GATE: per_stage}}\n")
    assert repeated(leaf) == {"MODEL.SPT.GATE"} and "MODEL.SPT.GATE" in set_by_bases(leaf)
    leaf.write_text("_BASE_: Base-middle.yaml\nMODEL:\n  SWIN: &a {DEPTHS: [2, 2, 6, 2]}\n  SPT: *a\n")
    assert repeated(leaf) == set()
    leaf.write_text("_BASE_: Base-middle.yaml\nMODEL:\n  SWIN: &a {EMBED_DIM: 96}\n  SPT: *a\n")
    assert repeated(leaf) == {"MODEL.SWIN.EMBED_DIM"}


@each(LEAVES)
def test_a_leaf_is_short_and_stands_on_a_base(path: Path) -> None:
    assert bases(path)
    assert len(path.read_text().splitlines()) <= 12


def is_absolute(value: Any) -> bool:
    if isinstance(value, (list, tuple)):
        return any(map(is_absolute, value))
    return isinstance(value, str) and bool(re.match(r"/|~|\w:\\|file:", value))


@each(YAMLS)
def test_a_yaml_names_no_absolute_path_and_no_device(path: Path) -> None:
    for keys, value in flat(yaml.safe_load(path.read_text())):
        assert not is_absolute(value), keys
        assert keys[-1] != "DEVICE" and value != "cuda", keys


# Twins


def dense_relatives(path: Path) -> list[Path]:
    """Leaves beside it of the same name but for the backbone: Swin of that size at any depth, or the dense ViT."""
    match = re.search(r"(?<![a-z])(spt|spa_vit)_([a-z]+)\d*(?=_|$)", path.stem)
    if match is None:
        return []
    kind = "swin" if match[1] == "spt" else "vit"
    pattern = f"{re.escape(path.stem[: match.start()])}{kind}_{match[2]}\\d*{re.escape(path.stem[match.end() :])}"
    return [other for other in path.parent.glob("*.yaml") if re.fullmatch(pattern, other.stem)]


TWINS = [(path, other) for path in LEAVES for other in dense_relatives(path)]


def backbone_node(cfg: CfgNode) -> CfgNode:
    return next(cfg.MODEL[kind.upper()] for kind in ("spt", "swin", "vit") if kind in cfg.MODEL.BACKBONE.NAME)


@pytest.mark.parametrize("selecting, dense", TWINS, ids=[f"{a.stem}-{b.stem}" for a, b in TWINS])
def test_twins_differ_in_nothing_but_the_backbone(selecting: Path, dense: Path) -> None:
    first, second = loaded(selecting), loaded(dense)
    backbones = {name for name, node in first.MODEL.items() if isinstance(node, CfgNode) and "EMBED_DIM" in node}
    own, other = dict(flat(first)), dict(flat(second))
    for keys, value in own.items():
        # Labels at the strides of the gates are for them alone.
        free = keys[:2] == ("INPUT", "SPT") or keys in (("OUTPUT_DIR",), ("MODEL", "BACKBONE", "NAME"))
        if not free and not (keys[0] == "MODEL" and keys[1] in backbones):
            assert other[keys] == value, keys
    ours, theirs = backbone_node(first), backbone_node(second)
    for key in (ours.keys() & theirs.keys()) - {"DEPTHS", "SPA_BLOCKS"}:
        assert ours[key] == theirs[key], key


@each([path for path in LEAVES if dense_relatives(path) and "spt" in path.stem])
def test_one_of_the_twins_has_equal_depth(path: Path) -> None:
    depths = [backbone_node(loaded(other)).DEPTHS for other in dense_relatives(path)]
    assert backbone_node(loaded(path)).DEPTHS in depths


def test_twins_are_found_by_name() -> None:
    names = {(a.stem, b.stem) for a, b in TWINS}
    assert ("mask_rcnn_spt_t_fpn_1x", "mask_rcnn_swin_t16_fpn_1x") in names
    assert ("mask_rcnn_spt_t_fpn_1x", "mask_rcnn_swin_t_fpn_1x") in names
    assert ("mask_rcnn_spt_nano_fpn_demo", "mask_rcnn_swin_nano_fpn_demo") in names
    assert ("faster_rcnn_spt_nano_fpn", "faster_rcnn_swin_nano_fpn") in names


# LazyConfig


@each(LAZY_PARTS)
def test_a_part_loads_and_a_model_in_it_builds(path: Path) -> None:
    part = LazyConfig.load(str(path))
    assert part, "it defines nothing"
    if "model" in part:
        model = build_cheaply(lambda device: instantiate(part.model))
        assert sum(parameter.numel() for parameter in model.parameters()) > 100_000


def settings_of(statement: ast.stmt) -> list[tuple[str, str]]:
    """(container, key) of what a statement sets, as expressions: by assignment to a part, or by ``update``."""
    found = []
    if isinstance(statement, ast.Assign):
        for target in statement.targets:
            for one in target.elts if isinstance(target, ast.Tuple) else [target]:
                if isinstance(one, ast.Attribute):
                    found.append((ast.unparse(one.value), repr(one.attr)))
                elif isinstance(one, ast.Subscript):
                    found.append((ast.unparse(one.value), ast.unparse(one.slice)))
    call = statement.value if isinstance(statement, ast.Expr) else None
    if isinstance(call, ast.Call) and isinstance(call.func, ast.Attribute) and call.func.attr == "update":
        found += [(ast.unparse(call.func.value), repr(keyword.arg)) for keyword in call.keywords]
    return found


def lazily_repeated(path: Path) -> list[str]:
    """Settings of a LazyConfig file that change nothing, found by running it line by line."""
    names: dict[str, Any] = {"__file__": str(path), "__package__": "detectron2._cfg_loader.test"}

    def value(setting: tuple[str, str]) -> Any:
        container, key = eval(setting[0], names), eval(setting[1], names)
        if not isinstance(container, (DictConfig, ListConfig)):
            container = OmegaConf.create(container, flags={"allow_objects": True})
        plain = OmegaConf.to_container(container, resolve=False)
        return plain.get(key, NotImplemented) if isinstance(plain, dict) else plain[key]

    found = []
    with _patch_import():
        for statement in ast.parse(path.read_text()).body:
            before = [value(setting) for setting in settings_of(statement)]
            exec(compile(ast.Module([statement], []), str(path), "exec"), names)
            for setting, old in zip(settings_of(statement), before):
                if value(setting) == old:
                    found.append(f"{setting[0]}[{setting[1]}]")
    return found


@each([*LAZY_PARTS, *LAZY_LEAVES])
def test_a_lazy_config_does_not_repeat_what_it_builds_on(path: Path) -> None:
    assert not lazily_repeated(path)


def test_lazy_repetitions_are_found(tmp_path: Path) -> None:
    (tmp_path / "base.py").write_text("train = {'a': 1, 'b': [1, 2], 'c': {'d': 3, 'e': '${..a}'}}\n")
    leaf = tmp_path / "leaf.py"
    leaf.write_text(
        "from .base import train\ntrain.a = 1\ntrain.b = [1, 3]\ntrain.update(a=1, f=2)\ntrain['c'].d = 3\n"
        "train.c.e = 1\ntrain.b[0], train.a = 1, 2\n"
    )
    assert lazily_repeated(leaf) == ["train['a']", "train['a']", "train['c']['d']", "train.b[0]"]


@each([*LAZY_PARTS, *LAZY_LEAVES])
def test_a_lazy_config_names_no_absolute_path(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text())):
        assert not (isinstance(node, ast.Constant) and is_absolute(node.value)), node.value


@pytest.mark.parametrize(
    "config",
    ["Recipes/Base-COCO-1x.yaml", "Recipes/Base-COCO-3x.yaml", "Recipes/Base-BDD100K-1x.yaml",
     "Recipes/Base-BDD100K-3x.yaml", "COCO-InstanceSegmentation/Base-Cascade-1x.yaml"],
)  # fmt: skip
def test_a_recipe_has_one_rate_of_stochastic_depth_for_all_backbones(config):
    """As DAT's once was forgotten: a comparison would compare recipes."""
    model = get_config(config).MODEL
    nodes = [model.SWIN, model.SPT, *(model[peer.NODE] for peer in PEERS)]
    assert len(nodes) == 6 and len({node.DROP_PATH_RATE for node in nodes}) == 1
