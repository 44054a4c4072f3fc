"""Weights for DAT: its authors' own, and Swin's as far as it is built alike."""

import logging
import re
from itertools import product
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests import reference
from tests.modeling.nano import SIZES, nano_dat, nano_swin

from spt_d2.checkpoint import SelectionCheckpointer  # isort: skip
from spt_d2.modeling import DAT  # isort: skip
from spt_d2.weights import detect_layout, fit_to_model  # isort: skip

GROUPS = {"groups": (1, 1, 2, 2)}
RENAMED = [
    (r"patch_embed\.proj\.", "patch_proj.0."),
    (r"patch_embed\.norm\.", "patch_proj.1.norm."),
    (r"layers\.(\d)\.downsample\.reduction\.", r"down_projs.\1.0."),
    (r"layers\.(\d)\.downsample\.norm\.", r"down_projs.\1.1.norm."),
    (r"layers\.(\d)\.blocks\.(\d)\.mlp\.fc(\d)\.", r"stages.\1.mlps.\2.chunk.linear\3."),
    (r"layers\.(\d)\.blocks\.(\d)\.attn\.offset\.depthwise\.", r"stages.\1.attns.\2.conv_offset.0."),
    (r"layers\.(\d)\.blocks\.(\d)\.attn\.offset\.norm\.", r"stages.\1.attns.\2.conv_offset.1.norm."),
    (r"layers\.(\d)\.blocks\.(\d)\.attn\.offset\.proj\.", r"stages.\1.attns.\2.conv_offset.3."),
    (r"layers\.(\d)\.blocks\.(\d)\.attn\.proj\.", r"stages.\1.attns.\2.proj_out."),
    (r"layers\.(\d)\.blocks\.(\d)\.attn\.", r"stages.\1.attns.\2."),
    (r"^norm(\d)\.", r"norms.\1.norm."),
]


def of_the_authors(model: DAT, detector: bool) -> dict[str, Tensor]:
    """The state dict as DAT's own code has it: convolutions, q, k and v apart, norms in one list."""
    deformable = {name.split(".attn.")[0] for name in model.state_dict() if ".attn.offset." in name}
    found = {}
    for name, value in model.state_dict().items():
        block = name.split(".attn.")[0]
        if match := re.match(r"layers\.(\d)\.blocks\.(\d)\.norm(\d)\.(.*)", name):
            stage, number, which, leaf = match.groups()
            found[f"stages.{stage}.layer_norms.{2 * int(number) + int(which) - 1}.norm.{leaf}"] = value
            continue
        theirs = name
        for pattern, replacement in RENAMED:
            theirs = re.sub(pattern, replacement, theirs)
        if ".attn.qkv." in name:
            if block in deformable:
                for part, piece in zip("qkv", value.chunk(3)):
                    found[theirs.replace("qkv", f"proj_{part}")] = (
                        piece[:, :, None, None] if piece.dim() == 2 else piece
                    )
            else:
                found[theirs.replace("qkv", "proj_qkv")] = value
        elif block in deformable and name.endswith("position_bias_table"):
            found[theirs.replace("relative_position_bias_table", "rpe_table")] = value
        elif name.endswith(("attn.offset.proj.weight", "attn.proj.weight")) and block in deformable:
            found[theirs] = value[:, :, None, None]
        elif name.endswith("reduction.weight"):
            width = value.shape[1] // 4
            kernel = value.new_zeros(value.shape[0], width, 2, 2)
            for channel, row, column in product(range(width), range(2), range(2)):
                kernel[:, channel, row, column] = value[:, (2 * column + row) * width + channel]
            found[theirs] = kernel
        elif detector or not theirs.startswith("norms."):
            found[theirs] = value
    found["stages.0.attns.0.relative_position_index"] = torch.zeros(16, 16, dtype=torch.long)
    if not detector:
        found["cls_norm.norm.weight"], found["cls_head.weight"] = torch.ones(64), torch.zeros(5, 64)
    return {f"backbone.{name}": value for name, value in found.items()} if detector else found


@pytest.mark.parametrize("detector", [True, False], ids=["detector", "classifier"])
def test_the_authors_checkpoints_give_the_maps_that_they_stand_for(detector, tmp_path: Path):
    source, model = nano_dat(depths=(2, 1, 4, 2)), nano_dat(depths=(2, 1, 4, 2))
    for i in range(4):
        # A classifier has no output norms.
        torch.nn.init.ones_(getattr(source, f"norm{i}").weight)
        torch.nn.init.zeros_(getattr(source, f"norm{i}").bias)
    weights = of_the_authors(source, detector)
    assert not set(weights) & set(source.state_dict())
    found = detect_layout(weights)
    assert (found.name, found.prefix) == ("dat", "backbone." if detector else "")
    reference.randomise_(model, seed=3)
    for i in range(4):
        model.get_submodule(f"norm{i}").load_state_dict(source.get_submodule(f"norm{i}").state_dict())
    torch.save({"model": weights}, tmp_path / "weights.pth")
    SelectionCheckpointer(model).load(str(tmp_path / "weights.pth"))
    image = torch.randn(1, 3, 60, 90, dtype=torch.float64)
    for mine, theirs in zip(model.eval()(image).values(), source.eval()(image).values()):
        assert torch.equal(mine, theirs)


def test_swins_weights_are_taken_where_it_is_built_alike():
    swin, model = nano_swin(depths=(2, 2, 2, 2)), DAT(**{**SIZES, "depths": (2, 2, 2, 2), **GROUPS})
    weights, report = fit_to_model(swin.state_dict(), model.state_dict())
    new = set(report.names("new"))
    assert all(re.search(r"attn\.offset\.|position_bias_table|downsample\.norm", name) for name in new)
    assert {name for name in new if "offset" in name} == {n for n in model.state_dict() if "offset" in n}
    copied = set(report.names("copied"))
    for name in ("layers.2.blocks.1.attn.qkv.weight", "layers.0.blocks.1.attn.relative_position_bias_table"):
        assert name in copied and torch.equal(weights[name], swin.state_dict()[name])
    # Loud is what does not survive: norms of mergings, tables of windows. What is new by design is not.
    assert all(line.startswith("dropped") for line in report.warnings())
    # Displacements have no bias at first.
    table = weights["layers.2.blocks.1.attn.relative_position_bias_table"]
    assert table.shape == (2, 27, 27) and not table.any()
    assert not model.load_state_dict(weights, strict=False).unexpected_keys


def test_a_checkpoint_of_its_own_loads_as_it_is_and_a_deeper_model_starts_as_it(caplog: pytest.LogCaptureFixture):
    first, deeper = nano_dat(depths=(2, 2, 2, 2)), nano_dat(depths=(2, 2, 6, 2)).eval()
    weights, report = fit_to_model(first.state_dict(), nano_dat(depths=(2, 2, 2, 2)).state_dict())
    assert report is None
    with caplog.at_level(logging.WARNING):
        weights, report = fit_to_model(first.state_dict(), deeper.state_dict())
    deeper.load_state_dict(weights, strict=True)
    assert not report.warnings() and not caplog.records
    image = torch.randn(1, 3, 50, 70, dtype=torch.float64)
    for mine, theirs in zip(deeper(image).values(), first.eval()(image).values()):
        reference.close(mine, theirs)
