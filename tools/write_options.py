#!/usr/bin/env python3
"""
Write docs/options.md: every key of the config, from their comments in spt_d2, and what those of MODEL.SPT cost.

    python tools/write_options.py            # after a change of a key, of its comment, or of Base-literal.yaml
    python tools/write_options.py --check    # writes nothing; exit status 1 if the page is out of date
"""

import argparse
import ast
import functools
import inspect
import sys
from pathlib import Path

import torch
from detectron2.config import CfgNode, get_cfg
from detectron2.layers import ShapeSpec

import spt_d2.config
import spt_d2.config_hierarchy
from spt_d2 import get_config_file
from spt_d2.analysis import BackboneMacs, nominal_macs
from spt_d2.config import add_spt_config
from spt_d2.modeling import build_spt_backbone
from spt_d2.peer_config import PEERS

PAGE = Path(__file__).resolve().parents[1] / "docs" / "options.md"
IMAGE_SIZE, KEEP_RATIO = (800, 1280), 0.23
# Of the image that another is padded to.
FULLEST = 0.9

# What to count beside the default: other values of the key, and of those that have to change with it.
ALTERNATIVES: dict[str, list[dict]] = {
    "EMBED_DIM": [{"EMBED_DIM": 128, "NUM_HEADS": [4, 8, 16, 32]}],
    "DEPTHS": [{"DEPTHS": [2, 2, 6, 2]}, {"DEPTHS": [2, 2, 22, 2]}],
    "NUM_HEADS": [{"NUM_HEADS": [2, 4, 8, 16]}],
    "WINDOW_SIZE": [{"WINDOW_SIZE": 14}],
    "MLP_RATIO": [{"MLP_RATIO": 2.0}],
    "QKV_BIAS": [{"QKV_BIAS": False}],
    "DROP_RATE": [{"DROP_RATE": 0.1}],
    "ATTN_DROP_RATE": [{"ATTN_DROP_RATE": 0.1}],
    "DROP_PATH_RATE": [{"DROP_PATH_RATE": 0.3}],
    "OUT_FEATURES": [{"OUT_FEATURES": ["res3", "res4", "res5"]}],
    "USE_CHECKPOINT": [{"USE_CHECKPOINT": True}],
    "SPA_STAGES": [{"SPA_STAGES": [4]}, {"SPA_STAGES": [2, 3, 4]}, {"SPA_STAGES": [1, 2, 3, 4]}],
    "MULTI_SCALE": [{"MULTI_SCALE": False}],
    "GATE": [{"GATE": "per_stage"}],
    "GATING": [{"GATING": "sigmoid"}, {"GATING": "centred"}],
    "SELECT": [{"SELECT": "topk"}, {"SELECT": "random"}, {"SELECT": "oracle"}, {"SELECT": "all"}],
    "KEEP_RATIO": [{"KEEP_RATIO": ratio, "SELECT": "topk"} for ratio in (0.1, 0.25, 0.5, 1.0)],
    "TOKEN_BUDGET": [{"TOKEN_BUDGET": 512}],
    "THRESHOLD": [{"THRESHOLD": 0.01}],
    "TAU": [{"TAU": 2.0}],
    "NOISE": [{"NOISE": "logistic"}, {"NOISE": "gumbel"}],
    "GATE_PRIOR": [{"GATE_PRIOR": 0.2}],
    "ORDER": [{"ORDER": "raster"}],
    "SEGMENT": [{"SEGMENT": "shared"}, {"SEGMENT": "window"}, {"SEGMENT": "image"}],
    "CONTAINER_SIZE": [{"CONTAINER_SIZE": 98}, {"CONTAINER_SIZE": 196}],
    "PACKING": [{"PACKING": "padded"}],
    "POSITION": [{"POSITION": "rope"}, {"POSITION": "conv"}, {"POSITION": "relative_bias"}],
    "PROJ_TOKENS": [{"PROJ_TOKENS": "all"}],
    "FFN_TOKENS": [{"FFN_TOKENS": "light"}, {"FFN_TOKENS": "selected"}],
    "ATTENTION_BACKEND": [{"ATTENTION_BACKEND": "xformers"}, {"ATTENTION_BACKEND": "sdpa"}],
    "LOSS_WEIGHT": [{"LOSS_WEIGHT": 0.01}],
    "LOSS_REDUCTION": [{"LOSS_REDUCTION": "sum"}],
    "POS_WEIGHT": [{"POS_WEIGHT": 5.0}],
    "SUPERVISE": [{"SUPERVISE": False}],
    "RETURN_SELECTIONS": [{"RETURN_SELECTIONS": True}],
    "LOG_PERIOD": [{"LOG_PERIOD": 1}],
}

# What the paper says, in place of the value of configs/Base-literal.yaml where that is not all, or our choice. A key
# that is in neither it does not mention.
PAPER = {
    "EMBED_DIM": "that of Swin: 96, 128 for B",
    "DEPTHS": "Swin's, four more in stage 3",
    "NUM_HEADS": "Swin's",
    "WINDOW_SIZE": "7",
    "SPA_STAGES": "[3, 4]",
    "MULTI_SCALE": "True",
    "GATE": "per_block",
    "SELECT": "gate; topk in Table 7",
    "KEEP_RATIO": "0.5 in Table 7",
    "TAU": "not given",
    "ORDER": "not given",
    "CONTAINER_SIZE": "49",
    "TOKEN_BUDGET": "",
    "PACKING": "containers",
    "POSITION": "none is named",
    "FFN_TOKENS": "all",
    "POS_WEIGHT": "1; 5 in App. B.1",
    "SUPERVISE": "True; False in Tables 6, 7",
}

INTRODUCTION = """# Options

Every key that this project adds to Detectron2's config. Written by `python tools/write_options.py` from the comments of
[spt_d2/config.py](../spt_d2/config.py) and of [spt_d2/peer_config](../spt_d2/peer_config); a test holds it up to date.
In a LazyConfig the keys of `MODEL.SPT` are arguments of `SPT` (`model.backbone.bottom_up`), those of the loss and the
log of the meta-architecture (`model`), in lower case.

## MODEL.SPT

*Paper* is its value where it gives one, else the literal reading of
[configs/Base-literal.yaml](../configs/Base-literal.yaml), which the configs named `_literal` set.

*MACs* are multiply-adds, each counted once, of the backbone SPT-T at {height}x{width} px, in G, where every Select and
Pack block keeps {keep} of the tokens, evenly spread; the default's are **{base}**, the dense twin's of equal depth
**{dense}**. What the block-diagonal kernel computes (`useful`), and in brackets what the rectangular form does
(`executed`), where that differs; [how they are counted](../spt_d2/analysis/macs.py). Many keys change how many tokens
are kept, and so what a trained model costs; at a given keep ratio, `=` says, they cost nothing. A figure beside a value
that reads as the default's differs by less than 0.1. Under `PACKING` padded an image executes what the fullest of its
batch does: counted is one beside an image that keeps {fullest}.

| keep ratio | {ratios} |
|---|{rule}
| MACs, G | {counts} |

| key | meaning | default | paper | MACs, G |
|---|---|---|---|---|
"""


def default_config() -> CfgNode:
    cfg = get_cfg()
    add_spt_config(cfg)
    return cfg


def key_comments() -> dict[str, str]:
    """The comment above every key, by the key's full name, in the order of the files."""
    found: dict[str, str] = {}
    for module in (spt_d2.config_hierarchy, spt_d2.config, *PEERS):
        found.update(module_comments(Path(inspect.getfile(module))))
    return found


def module_comments(path: Path) -> dict[str, str]:
    """Of the functions of a file that add keys."""
    source = path.read_text()
    lines, found = source.splitlines(), {}
    for function in ast.parse(source).body:
        if not isinstance(function, ast.FunctionDef) or not function.name.lstrip("_").startswith("add_"):
            continue
        nodes = ["MODEL.SPT", "MODEL.SWIN"] if function.name == "add_hierarchy" else []
        for statement in function.body:
            if not isinstance(statement, ast.Assign):
                continue
            target, value = ast.unparse(statement.targets[0]), ast.unparse(statement.value)
            if target == "node":
                nodes = [value.removeprefix("cfg.")]
                continue
            first = statement.lineno - 1
            while lines[first - 1].lstrip().startswith("#"):
                first -= 1
            comment = " ".join(line.strip().lstrip("# ") for line in lines[first : statement.lineno - 1])
            suffix = ".ENABLED" if "ENABLED" in value else ""
            if value != "CfgNode()":
                names = [f"{node}.{target[5:]}" for node in nodes] if target.startswith("node.") else [target[4:]]
                found.update({f"{name}{suffix}": comment for name in names})
    return found


def count(overrides: dict, keep_ratio: float | dict[int, float]) -> BackboneMacs:
    """Multiply-adds of SPT-T with other values of ``MODEL.SPT``; what is padded, is so to ``FULLEST``."""
    cfg = default_config()
    for key, value in overrides.items():
        cfg.MODEL.SPT[key] = value
    with torch.device("meta"):
        backbone = build_spt_backbone(cfg, ShapeSpec(channels=3))
    return nominal_macs(backbone, IMAGE_SIZE, keep_ratio, fullest=FULLEST)


@functools.lru_cache(maxsize=1)
def base() -> BackboneMacs:
    return count({}, KEEP_RATIO)


def giga(macs: BackboneMacs) -> str:
    """``useful (executed)``, the second where it differs."""
    useful, executed = f"{macs.useful / 1e9:.1f}", f"{macs.executed / 1e9:.1f}"
    return useful if useful == executed else f"{useful} ({executed})"


def keep_ratios(overrides: dict) -> dict[int, float]:
    """By stage: all under "all", the ratio that is set, or what a budget leaves of ``KEEP_RATIO``."""
    ratio = 1.0 if overrides.get("SELECT") == "all" else overrides.get("KEEP_RATIO", KEEP_RATIO)
    tokens = {stage: IMAGE_SIZE[0] * IMAGE_SIZE[1] / 4 ** (stage + 1) for stage in (1, 2, 3, 4)}
    return {stage: min(ratio, overrides.get("TOKEN_BUDGET", total) / total) for stage, total in tokens.items()}


def cost(key: str) -> str:
    """What the other values of a key cost; ``=`` where that is what the default costs."""
    cells = []
    for overrides in ALTERNATIVES[key]:
        macs = count(overrides, keep_ratios(overrides))
        if (macs.useful, macs.executed) != (base().useful, base().executed):
            cells.append(f"{shown(overrides[key])}: {giga(macs)}")
    return "; ".join(cells) or "="


def shown(value: object) -> str:
    return f"`{value}`"


def literal_values() -> dict[str, object]:
    return CfgNode.load_yaml_with_base(get_config_file("Base-literal.yaml"))["MODEL"]["SPT"]


def hierarchies(cfg: CfgNode) -> str:
    """The section on the keys that backbones beside SPT share with it: their defaults, by backbone."""
    nodes = ["SWIN", *(peer.NODE for peer in PEERS)]
    section = "\n## MODEL.SWIN and those of the peers\n\n"
    section += "Dense Swin and the peers have these keys in common with SPT, with defaults of their own.\n"
    section += "What only a peer has is named below.\n\n"
    section += f"| key | {' | '.join(shown(f'MODEL.{node}') for node in nodes)} |\n|---|{'---|' * len(nodes)}\n"
    for key in cfg.MODEL.SWIN:
        values = [shown(cfg.MODEL[node][key]) if key in cfg.MODEL[node] else "" for node in nodes]
        section += f"| {shown(key)} | {' | '.join(values)} |\n"
    return section


def render() -> str:
    """The page."""
    cfg, comments, literal = default_config(), key_comments(), literal_values()
    ratios = (0.0, 0.1, KEEP_RATIO, 0.5, 1.0)
    page = INTRODUCTION.format(
        height=IMAGE_SIZE[0],
        width=IMAGE_SIZE[1],
        keep=KEEP_RATIO,
        fullest=FULLEST,
        base=giga(base()),
        dense=f"{base().dense / 1e9:.1f}",
        ratios=" | ".join(str(ratio) for ratio in ratios),
        rule="---|" * len(ratios),
        counts=" | ".join(giga(count({}, ratio)) for ratio in ratios),
    )
    for key, value in cfg.MODEL.SPT.items():
        paper = PAPER.get(key, shown(literal[key]) if key in literal else "")
        row = (shown(key), comments[f"MODEL.SPT.{key}"], shown(value), paper, cost(key))
        page += f"| {' | '.join(row)} |\n"
    page += hierarchies(cfg)
    page += "\n## Other keys\n\n| key | meaning | default |\n|---|---|---|\n"
    for name, comment in comments.items():
        if not name.startswith(("MODEL.SPT.", "MODEL.SWIN.")):
            value = functools.reduce(lambda node, key: node[key], name.split("."), cfg)
            page += f"| {shown(name)} | {comment} | {shown(value)} |\n"
    return page


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; exit status 1 if the page is out of date")
    args = parser.parse_args()
    page = render()
    if not args.check:
        PAGE.write_text(page, encoding="utf-8")
        print(f"Written: {PAGE}")
        return 0
    if PAGE.is_file() and PAGE.read_text(encoding="utf-8") == page:
        return 0
    print(f"{PAGE} is out of date.\nHINT: python tools/write_options.py", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
