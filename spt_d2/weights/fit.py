"""
Fit a Swin checkpoint to a model that has gates, more blocks, other windows, or no position.

The model then computes at first what the checkpoint's model does, as far as its options allow:

* A stage with more blocks than the checkpoint's gets the pretrained ones first, in order, and the additional ones after
  them. At the end, because every block then keeps its number, and with it its shift: an additional block further up
  would turn shifted windows into plain ones in all blocks below, unless blocks came in pairs. An additional block is a
  copy of the last pretrained block of the same shift, but what it adds to the residual stream is multiplied by weights
  that start at zero: it is the identity for every token, and learns from tokens, queries and keys that already mean
  something (block expansion; Wu et al., "LLaMA Pro", 2024).
* Position bias tables of another window size are resized bicubically. Where a block has no table (``POSITION`` other
  than ``relative_bias``), they are dropped; where a checkpoint has none, they start at zero, and so do position
  convolutions.
* Gates keep their own start, at which every token is kept (see :func:`spt_d2.layers.gate.initial_gate_bias`).

Functions here work on state dicts alone. Only shapes and dtypes of the model's are read: it may lie on the meta device.
"""

import math
import re
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from spt_d2.weights.layouts import detect_layout, is_backbone_name, to_native
from spt_d2.weights.report import COMPUTED, WeightReport

_BLOCK = re.compile(r"layers\.(\d+)\.blocks\.(\d+)\.(.*)$")
_TABLE = "attn.relative_position_bias_table"
# What a block adds to the residual stream passes through one of these last.
_LAST_WEIGHTS = ("attn.proj.", "mlp.fc2.", "light.", "pos_conv.", "fastmlp.fc1.1.")
# Parts of a block that an option decides on.
_OPTIONAL = {_TABLE: "MODEL.SPT.POSITION", "pos_conv.": "MODEL.SPT.POSITION", "light.": "MODEL.SPT.FFN_TOKENS"}
_OUTPUT = re.compile(r"(norm\d+|output_gates|layers\.\d+\.score_predictor)\.")
# Parts of a block that dense Swin has not, and that learn from their own start.
_OWN = ("gate.", "light.", "fastmlp.", "attn.offset.")


def fit_to_model(
    weights: dict[str, Tensor], wanted: Mapping[str, Tensor]
) -> tuple[dict[str, Tensor], WeightReport | None]:
    """
    Bring a checkpoint with a Swin backbone into the form that a model can load.

    Args:
        weights: a state dict in one of the layouts of :data:`spt_d2.weights.layouts.LAYOUTS`.
        wanted: the model's state dict; it is not changed.

    Returns:
        what to load, and what became of every entry. Entries of the model that are to keep their initial values are
        not among what to load. Parts of a detector other than the backbone are handed on as they are where the
        checkpoint is in Detectron2's layout, and dropped otherwise. Without a report, the weights are the very object
        that was given: they fit already, or one of the two has no Swin backbone.

    Raises:
        ValueError: a backbone of another width, or one that :func:`detect_layout` refuses.
    """
    target = detect_layout(wanted)
    if target is None:
        return weights, None
    bare = weights
    if all(name.startswith("module.") for name in weights):
        # Saved from a model that was wrapped for several processes.
        bare = {name.removeprefix("module."): value for name, value in weights.items()}
    layout = detect_layout(bare)
    if layout is None:
        return weights, None
    native, others = to_native(bare, layout)
    own = {name.removeprefix(target.prefix): value for name, value in wanted.items() if name.startswith(target.prefix)}
    own = {name: value for name, value in own.items() if is_backbone_name(name)}
    _check_width(native, own)
    report = WeightReport(layout, target.prefix)
    fitted = _take(native, own, report)
    fitted.update(_complete(fitted, native, own, report))
    result = {target.prefix + name: value for name, value in fitted.items()}
    result.update(_take_others(others, wanted, target.prefix, report))
    unchanged = layout.name == "detectron2" and layout.prefix == target.prefix
    if unchanged and all(entry.action == "copied" for entry in report.entries):
        return weights, None
    return result, report


def resize_bias_table(table: Tensor, rows: int) -> Tensor:
    """
    Resize a position bias table to another window size, bicubically over the offsets, as Swin's own code does.

    Args:
        table: ((2M - 1)^2, h).
        rows: (2M' - 1)^2.

    Returns:
        (rows, h), of the table's dtype.
    """
    old, new = math.isqrt(table.shape[0]), math.isqrt(rows)
    grid = table.float().t().reshape(1, -1, old, old)
    grid = F.interpolate(grid, size=(new, new), mode="bicubic", align_corners=False)
    return grid.reshape(table.shape[1], rows).t().to(table.dtype).contiguous()


def _check_width(native: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> None:
    name = "patch_embed.proj.weight"
    if name in native and name in own and native[name].shape[0] != own[name].shape[0]:
        raise ValueError(
            "fit_to_model(weights=) expects a backbone as wide as the model's.\n"
            f"  weights: {native[name].shape[0]} channels, depths {_depths(native)}\n"
            f"  model  : {own[name].shape[0]} channels, depths {_depths(own)}\n"
            "HINT: Swin-T and Swin-S have 96 channels, Swin-B has 128 and Swin-L 192 (EMBED_DIM)."
        )


def _depths(names: Mapping[str, Tensor]) -> list[int]:
    """Blocks per stage."""
    blocks = [(int(match[1]), int(match[2])) for match in map(_BLOCK.match, names) if match]
    stages = max((stage for stage, _ in blocks), default=-1) + 1
    return [max((block for s, block in blocks if s == stage), default=-1) + 1 for stage in range(stages)]


def _take(native: Mapping[str, Tensor], own: Mapping[str, Tensor], report: WeightReport) -> dict[str, Tensor]:
    """Entries of the checkpoint that the model has a place for."""
    fitted = {}
    depths = _depths(own)
    for name, value in native.items():
        number = value.numel()
        if name not in own:
            if name.endswith(COMPUTED):
                report.add(name, "dropped", 0, "computed here")
            else:
                note, loud = _why_dropped(name, depths)
                report.add(name, "dropped", number, note, loud)
        elif value.shape == own[name].shape:
            fitted[name] = value
            report.add(name, "copied", number)
        elif name.endswith(_TABLE) and value.shape[1:] == own[name].shape[1:] and _are_tables(value, own[name]):
            fitted[name] = resize_bias_table(value, own[name].shape[0])
            old, new = (math.isqrt(table.shape[0]) for table in (value, own[name]))
            report.add(name, "resized", number, f"windows of {(old + 1) // 2} to {(new + 1) // 2} tokens, bicubic")
        else:
            note = f"shape {tuple(value.shape)}, {tuple(own[name].shape)} here"
            report.add(name, "dropped", number, note, loud=True)
    return fitted


def _are_tables(*tables: Tensor) -> bool:
    """Whether their rows are those of square windows."""
    return all(math.isqrt(t.shape[0]) ** 2 == t.shape[0] and t.shape[0] % 2 == 1 for t in tables)


def _why_dropped(name: str, depths: list[int]) -> tuple[str, bool]:
    """The reason, and whether the function does not survive it."""
    if _OUTPUT.match(name):
        return "not built here", False
    block = _BLOCK.match(name)
    if block is None:
        return "nothing of that name here", True
    stage, number, rest = int(block[1]), int(block[2]), block[3]
    if stage < len(depths) and number >= depths[stage]:
        return f"depth {depths[stage]} here", True
    if rest.startswith("gate."):
        return "not built here", False
    for part, key in _OPTIONAL.items():
        if rest.startswith(part):
            return f"not built here ({key})", True
    return "nothing of that name here", True


def _complete(
    fitted: Mapping[str, Tensor], native: Mapping[str, Tensor], own: Mapping[str, Tensor], report: WeightReport
) -> dict[str, Tensor]:
    """Values for entries of the model that the checkpoint has not; where there are none, the model keeps its own."""
    depths, wanted = _depths(native), _depths(own)
    known = dict(fitted)
    added = {}
    for name, place in own.items():
        if name in fitted:
            continue
        block = _BLOCK.match(name)
        stage, number, rest = (int(block[1]), int(block[2]), block[3]) if block else (-1, -1, name)
        value = None
        if block and stage < len(depths) and 0 < depths[stage] <= number:
            donor = _donor(number, depths[stage])
            value = _identity(rest, place, known.get(f"layers.{stage}.blocks.{donor}.{rest}"))
        if value is not None:
            # SPT adds four blocks to Swin's. Swin-S has twelve more than Swin-T, and is not to start from it unawares.
            suspicious = wanted[stage] > max(depths[stage] + 4, 2 * depths[stage])
            note = f"copies of block {donor}, the identity at first"
            note += (
                f"; of {wanted[stage]} blocks the file has {depths[stage]}: a smaller model's?" if suspicious else ""
            )
            report.add(name, "added", place.numel(), note, loud=suspicious)
        elif rest == _TABLE or rest.startswith("pos_conv."):
            value = _zeros(place)
            why = "the checkpoint's is of another shape" if name in native else "the checkpoint has no position there"
            report.add(name, "new", place.numel(), f"zero: {why}")
        else:
            # Of another shape, it was reported as dropped.
            expected = name in native or rest.startswith(_OWN) or _OUTPUT.match(name) is not None
            note = "initial values" if expected else "initial values: missing in the checkpoint"
            report.add(name, "new", place.numel(), note, loud=not expected)
        if value is not None:
            added[name] = known[name] = value
    return added


def _donor(block: int, depth: int) -> int:
    """The last of ``depth`` blocks whose windows are shifted as those of ``block`` are."""
    return depth - 1 if depth == 1 or (depth - 1 - block) % 2 == 0 else depth - 2


def _identity(rest: str, place: Tensor, donated: Tensor | None) -> Tensor | None:
    """An entry of a block that adds nothing to the residual stream; None where it may be anything."""
    if rest.startswith(_LAST_WEIGHTS):
        return _zeros(place)
    return None if donated is None or donated.shape != place.shape else donated.clone()


def _zeros(place: Tensor) -> Tensor:
    return torch.zeros(place.shape, dtype=place.dtype)


def _take_others(
    others: Mapping[str, Tensor], wanted: Mapping[str, Tensor], prefix: str, report: WeightReport
) -> dict[str, Tensor]:
    """Entries outside of the backbone. Those of a detector are not judged here: Detectron2 reports them one by one."""
    if report.layout.name != "detectron2":
        for name, value in others.items():
            report.add(name.removeprefix(report.layout.prefix), "dropped", value.numel(), "no part of the backbone")
        others = {}
    shared = [name for name in others if name in wanted and others[name].shape == wanted[name].shape]
    for name in shared:
        report.add(name, "copied", others[name].numel())
    if not shared:
        for name, value in wanted.items():
            if not (name.startswith(prefix) and is_backbone_name(name.removeprefix(prefix))):
                report.add(name, "new", value.numel(), "initial values")
    return dict(others)
