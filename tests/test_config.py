"""Every key of the project's config: explained where it is added, read by some code, checked before a run."""

import ast
import itertools
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import ROOT

pytest.importorskip("detectron2", reason="detectron2 is not installed")
from detectron2.config import CfgNode, get_cfg
from detectron2.modeling import BACKBONE_REGISTRY, META_ARCH_REGISTRY

import spt_d2.config
from spt_d2.config import add_spt_config, gate_strides, validate_spt_config
from spt_d2.engine.setup import read_config

SOURCE = Path(spt_d2.config.__file__)
# With its helpers, which check what keys ask of each other.
SOURCES = [*sorted(SOURCE.parent.glob("config*.py")), *sorted((SOURCE.parent / "peer_config").glob("*.py"))]


def make_cfg(backbone: str = "build_spt_fpn_backbone") -> CfgNode:
    cfg = get_cfg()
    add_spt_config(cfg)
    cfg.MODEL.BACKBONE.NAME, cfg.MODEL.META_ARCHITECTURE = backbone, "SelectionGeneralizedRCNN"
    return cfg


def flat(node: CfgNode, path: str = "") -> Iterator[tuple[str, Any]]:
    """Every key below a node, dotted, with its value."""
    for key, value in node.items():
        if isinstance(value, CfgNode):
            yield from flat(value, f"{path}{key}.")
        else:
            yield f"{path}{key}", value


def put(cfg: CfgNode, key: str, value: Any) -> None:
    *path, leaf = key.split(".")
    for part in path:
        cfg = cfg[part]
    cfg[leaf] = value


KEYS = sorted(set(dict(flat(make_cfg()))) - set(dict(flat(get_cfg()))))


# Explained


def comments_of_keys() -> dict[str, list[str]]:
    """For each key that is set, the comments right above the places where it is; "" where there is none."""
    found: dict[str, list[str]] = {}
    for source in SOURCES:
        comments_of_file(source.read_text(), found)
    return found


def comments_of_file(source: str, found: dict[str, list[str]]) -> None:
    lines = source.splitlines()
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Assign) or not isinstance(node.targets[0], ast.Attribute):
            continue
        names = [node.targets[0].attr]
        if isinstance(node.value, ast.Call) and ast.unparse(node.value.func) == "CfgNode":
            # A node; what is set is what it is made with.
            names = [ast.literal_eval(key) for value in node.value.args for key in value.keys]
        above, line = [], node.lineno - 2
        while lines[line].lstrip().startswith("#"):
            above.insert(0, lines[line].strip("# "))
            line -= 1
        for name in names:
            found.setdefault(name, []).append(" ".join(above))


def test_every_key_has_a_comment_above_it_that_says_something() -> None:
    comments = comments_of_keys()
    assert {key.rsplit(".", 1)[1] for key in KEYS} == comments.keys()
    for name, texts in comments.items():
        for text in texts:
            assert len(text.split()) >= 3 and text.endswith("."), f"{name}: {text!r}"


def test_choices_are_all_named_in_the_comment() -> None:
    comments = comments_of_keys()
    choices = {**spt_d2.config._CHOICES, "LABEL_SOURCE": spt_d2.config.LABEL_SOURCES}
    for name, allowed in choices.items():
        (text,) = comments[name]
        for value in allowed:
            assert re.search(rf"\b{value}\b", text), f"{name} does not say what {value!r} is"


# Read


def reads_of(source: str) -> set[tuple[str, str]]:
    """
    (node, key) for each upper-case attribute that is read, such as ("SPT", "TAU").

    A name is what was assigned to it in its function; that of an argument may be any node, "*".
    """
    found = set()
    tree = ast.parse(source)
    scopes = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)] or [tree]
    for scope in scopes:
        aliases: dict[str, str] = {}
        for node in ast.walk(scope):
            if not isinstance(node, ast.Assign):
                continue
            pairs = [(node.targets[0], node.value)]
            if isinstance(node.targets[0], ast.Tuple) and isinstance(node.value, ast.Tuple):
                pairs = list(zip(node.targets[0].elts, node.value.elts))
            for target, value in pairs:
                if isinstance(target, ast.Name) and isinstance(value, ast.Attribute):
                    aliases[target.id] = value.attr
        for node in ast.walk(scope):
            if isinstance(node, ast.Attribute) and node.attr.isupper() and isinstance(node.ctx, ast.Load):
                owner = node.value
                if isinstance(owner, ast.Attribute):
                    found.add((owner.attr, node.attr))
                elif isinstance(owner, ast.Name):
                    found.add((aliases.get(owner.id, "*"), node.attr))
    return found


@pytest.mark.parametrize(
    "line, expected",
    [
        ("cfg.MODEL.SPT.TAU", ("SPT", "TAU")),
        ("self.cfg.SOLVER.AMP.PRECISION", ("AMP", "PRECISION")),
        ("node = cfg.MODEL.SPT; node.TAU", ("SPT", "TAU")),
        ("node, other = cfg.MODEL.SPT, 1; node.TAU", ("SPT", "TAU")),
        ("node.TAU", ("*", "TAU")),
    ],
)
def test_reads_are_found(line: str, expected: tuple[str, str]) -> None:
    assert expected in reads_of(f"def some(node, cfg):\n    {line}")
    assert not any(name == "TAU" for _, name in reads_of("def some(cfg):\n    cfg.MODEL.SPT.TAU = 1"))


@pytest.fixture(scope="module")
def reads() -> set[tuple[str, str]]:
    """Everything that the code outside of SOURCES reads: there a key is set, and checked, which is no use of it."""
    folders = [ROOT / name for name in ("spt_d2", "projects", "tools")]
    files = [path for folder in folders for path in folder.rglob("*.py") if path not in SOURCES]
    return set().union(*(reads_of(path.read_text()) for path in files))


@pytest.mark.parametrize("key", KEYS)
def test_every_key_is_read(key: str, reads: set[tuple[str, str]]) -> None:
    node, leaf = key.split(".")[-2:]
    assert {(node, leaf), ("*", leaf)} & reads, f"no code reads {key}"


# Checked

SPT, SWIN = "MODEL.SPT.", "MODEL.SWIN."
# Values on the wrong side of each rule, and the last ones on the right side.
CASES: dict[str, tuple[list, list]] = {
    **{f"{SPT}{key}": (["nonsense", ""], list(allowed)) for key, allowed in spt_d2.config._CHOICES.items()},
    **{f"{node}NUM_HEADS": ([[1, 2, 4], [1] * 5], [[1, 2, 4, 8]]) for node in (SPT, SWIN)},
    **{f"{node}DROP_PATH_RATE": ([-0.1, 1.0], [0.0, 0.99]) for node in (SPT, SWIN)},
    **{f"{node}WINDOW_SIZE": ([0, -7], [1]) for node in (SPT, SWIN)},
    **{f"{node}MLP_RATIO": ([0.0, -1.0], [0.5]) for node in (SPT, SWIN)},
    **{f"{node}{key}": ([-0.1, 1.0], [0.0, 0.99]) for node in (SPT, SWIN) for key in ("DROP_RATE", "ATTN_DROP_RATE")},
    f"{SPT}CONTAINER_SIZE": ([-1], [0, 1]),
    f"{SPT}SPA_STAGES": ([[], [0, 3], [3, 5]], [[3], [4, 3], (3, 4)]),
    f"{SPT}THRESHOLD": ([-0.01, 1.0], [0.0, 0.99]),
    f"{SPT}KEEP_RATIO": ([0.0, 1.01], [0.01, 1.0]),
    f"{SPT}GATE_PRIOR": ([0.0, 1.0], [0.01, 0.99]),
    f"{SPT}TAU": ([0.0, -1.0], [0.01]),
    f"{SPT}LOSS_WEIGHT": ([-0.1], [0.0]),
    f"{SPT}POS_WEIGHT": ([0.0, -1.0], [0.01]),
    f"{SPT}LOG_PERIOD": ([0], [1]),
    "INPUT.SPT.LABEL_SOURCE": (["masks", ""], list(spt_d2.config.LABEL_SOURCES)),
    "INPUT.SPT.STRIDES": ([[], [16, 32], [4, 8, 16]], [[4, 8, 16, 32], (32, 16, 8)]),
    "INPUT.CROP.PROBABILITY": ([-0.1, 1.1], [0.0, 1.0]),
    "INPUT.CROP.MIN_SIZES": ([[0], [400, -1]], [[], [400]]),
    "MODEL.MULTI_LABEL.NUM_CLASSES": ([0], [1]),
    "SOLVER.BATCH_SCALE": ([0.0, -1.0], [0.25, 2.0]),
    "SOLVER.OPTIMIZER": (["adam"], ["sgd", "adamw"]),
    "SOLVER.AMP.PRECISION": (["float32"], ["float16", "bfloat16"]),
    "SOLVER.METRIC_PERIOD": ([0], [1]),
    "MODEL.EMA.DECAY": ([-0.1, 1.0], [0.0, 0.9999]),
}


def named(cfg: CfgNode) -> list[str]:
    """The keys that the check complains of."""
    try:
        validate_spt_config(cfg)
    except ValueError as error:
        heading, *lines = str(error).splitlines()
        assert heading == "The config is not valid:"
        return [line.split()[0] for line in lines]
    return []


@pytest.mark.parametrize("key, bad", [(key, value) for key, (values, _) in CASES.items() for value in values])
def test_a_value_that_cannot_be_is_named_and_no_other(key: str, bad: Any) -> None:
    cfg = make_cfg()
    put(cfg, key, bad)
    with pytest.raises(ValueError, match=rf"  {re.escape(key)} expects .*Got {re.escape(repr(bad))}\."):
        validate_spt_config(cfg)
    assert named(cfg) == [key]


@pytest.mark.parametrize("key, good", [(key, value) for key, (_, values) in CASES.items() for value in values])
def test_a_value_at_the_border_of_what_can_be_is_accepted(key: str, good: Any) -> None:
    cfg = make_cfg()
    put(cfg, key, good)
    assert named(cfg) == []


def test_one_message_names_everything_that_is_off() -> None:
    cfg = make_cfg()
    for key, (bad, _) in CASES.items():
        put(cfg, key, bad[0])
    # Which strides are asked for is not known where the stages are not.
    assert sorted(named(cfg)) == sorted(set(CASES) - {"INPUT.SPT.STRIDES"})
    put(cfg, f"{SPT}SPA_STAGES", [3, 4])
    assert sorted(named(cfg)) == sorted(set(CASES) - {f"{SPT}SPA_STAGES"})


def patterns_of_rules() -> list[str]:
    """For each call of ``expect`` in config.py and its helpers, a pattern of the keys it may name."""
    found = []
    for node in (node for path in SOURCES for node in ast.walk(ast.parse(path.read_text()))):
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "expect":
            key = node.args[1]
            parts = key.values if isinstance(key, ast.JoinedStr) else [key]
            found.append(
                "".join(re.escape(part.value) if isinstance(part, ast.Constant) else r"[\w.]+" for part in parts)
            )
    return found


def refuses_some_value(key: str) -> bool:
    """Whether a value of those that few keys may have is refused, under some model of the project's."""
    names = [
        [name for name, made in registry if made.__module__.startswith("spt_d2")]
        for registry in (BACKBONE_REGISTRY, META_ARCH_REGISTRY)
    ]
    cfg = make_cfg()
    for backbone, architecture, value in itertools.product(*names, (-1, "nonsense", [99], [-1], 2.0)):
        cfg.MODEL.BACKBONE.NAME, cfg.MODEL.META_ARCHITECTURE = backbone, architecture
        put(cfg, key, value)
        try:
            if key in named(cfg):
                return True
        except (AttributeError, TypeError):
            continue
    return False


@pytest.mark.parametrize("pattern", patterns_of_rules())
def test_every_rule_refuses_something(pattern: str) -> None:
    keys = [key for key in dict(flat(make_cfg())) if re.fullmatch(pattern, key)]
    assert keys, f"a rule names {pattern}, which is no key"
    assert any(key in CASES for key in keys) or any(map(refuses_some_value, keys))


def test_the_defaults_are_valid_and_so_are_detectron2s_own_models() -> None:
    assert named(make_cfg()) == []
    cfg = get_cfg()
    add_spt_config(cfg)
    assert named(cfg) == []


def test_keys_of_detectron2_keep_their_values() -> None:
    before, after = dict(flat(get_cfg())), dict(flat(make_cfg()))
    changed = {key for key, value in before.items() if after[key] != value}
    assert changed == {"MODEL.BACKBONE.NAME", "MODEL.META_ARCHITECTURE"}, "those that make_cfg sets"


# Strides of labels


@pytest.mark.parametrize(
    "stages, multi_scale, strides",
    [
        ([3, 4], True, [8, 16, 32]),
        ([3, 4], False, [16, 32]),
        ([1], True, [4]),
        ([2], True, [4, 8]),
        ([4, 2], True, [4, 8, 16, 32]),
        ([4, 2], False, [8, 32]),
    ],
)
def test_strides_are_those_of_the_stages_with_gates(stages: list[int], multi_scale: bool, strides: list[int]) -> None:
    assert gate_strides(stages, multi_scale) == strides
    cfg = make_cfg()
    cfg.MODEL.SPT.SPA_STAGES, cfg.MODEL.SPT.MULTI_SCALE, cfg.INPUT.SPT.STRIDES = stages, multi_scale, strides
    assert named(cfg) == []
    for stride in strides:
        cfg.INPUT.SPT.STRIDES = [other for other in strides if other != stride]
        assert named(cfg) == ["INPUT.SPT.STRIDES"]


@pytest.mark.parametrize(
    "key, value",
    [
        (f"{SPT}SUPERVISE", False),
        ("MODEL.BACKBONE.NAME", "build_swin_fpn_backbone"),
        ("MODEL.META_ARCHITECTURE", "GeneralizedRCNN"),
    ],
)
def test_strides_are_free_where_nobody_asks_for_labels(key: str, value: Any) -> None:
    cfg = make_cfg()
    cfg.INPUT.SPT.STRIDES = [16]
    assert named(cfg) == ["INPUT.SPT.STRIDES"]
    put(cfg, key, value)
    assert named(cfg) == []


@pytest.mark.parametrize(
    "name, text, message",
    [
        (
            "twin.py",
            "from detectron2.config import LazyCall\n",
            r"expects yaml here. Got the LazyConfig .*twin\.py.\nHINT",
        ),
        ("broken.yaml", "A: [1", r"expects yaml. Got .*broken\.yaml:\n(.|\n)*expected ',' or ']'"),
    ],
)
def test_a_config_that_is_no_yaml_is_an_error_that_says_so(tmp_path, name, text, message):
    path = tmp_path / name
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        read_config(str(path))
