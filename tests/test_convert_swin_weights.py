"""tools/convert_swin_weights.py: what it writes loads, what it prints is the table of docs/weights.md."""

import argparse
import re
from pathlib import Path

import pytest
import torch
import yaml
from torch import Tensor

from tests import reference
from tests.conftest import ROOT, load_program
from tests.modeling.nano import VIT_SIZES, nano_cfg
from tests.weights.sources import EMBED_DIM, MLP_RATIO, NUM_HEADS, source

from detectron2.checkpoint import DetectionCheckpointer  # isort: skip
from detectron2.modeling import build_model  # isort: skip

from spt_d2.checkpoint import SelectionCheckpointer  # isort: skip
from spt_d2.engine.setup import load_config  # isort: skip
from spt_d2.modeling import SPT, Swin, ViT  # isort: skip
from spt_d2.weights import fit_to_model, read_weights  # isort: skip

TOOL = ROOT / "tools" / "convert_swin_weights.py"
DENSE = {"SELECT": "all", "SEGMENT": "window", "POSITION": "relative_bias"}


@pytest.fixture(scope="module")
def tool():
    return load_program(TOOL)


@pytest.fixture
def source_file(tmp_path: Path) -> Path:
    path = tmp_path / "swin.pth"
    torch.save({"model": source("timm", 4, (256, 256))[0]}, path)
    return path


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """A detector with more blocks than the source."""
    sizes = {"EMBED_DIM": EMBED_DIM, "DEPTHS": [1, 2, 7, 2], "NUM_HEADS": list(NUM_HEADS), "MLP_RATIO": MLP_RATIO}
    values = {
        "_BASE_": str(ROOT / "configs" / "Base-nano-RCNN-FPN.yaml"),
        "MODEL": {"SPT": {**sizes, "WINDOW_SIZE": 4, **DENSE}, "FPN": {"OUT_CHANNELS": 8}},
        "DATASETS": {"TRAIN": [], "TEST": []},
    }
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


@pytest.mark.parametrize(
    "suffix, checkpointer",
    [(".pth", SelectionCheckpointer), (".pth", DetectionCheckpointer), (".safetensors", SelectionCheckpointer)],
)
def test_the_file_makes_the_configs_model_compute_what_the_source_does(
    tool, source_file: Path, config: Path, tmp_path: Path, suffix, checkpointer, capsys
):
    if suffix == ".safetensors":
        pytest.importorskip("safetensors", reason="safetensors is not installed")
    target = tmp_path / "new" / f"spt{suffix}"
    tool.main([str(source_file), str(target), "--config-file", str(config)])
    printed = capsys.readouterr().out
    assert printed.startswith("timm ('timm' layout) into backbone.bottom_up\n")
    assert "layers.2.blocks.3,5" in printed and "!" not in printed and str(target) in printed

    model = build_model(load_config(str(config), ["MODEL.DEVICE", "cpu"])).double().eval()
    checkpointer(model).load(str(target))
    _, maps = source("timm", 4, (256, 256))
    image = torch.randn(1, 3, 256, 256, dtype=torch.float64)
    with torch.no_grad():
        for mine, theirs in zip(model.backbone.bottom_up(image).values(), maps(image), strict=True):
            reference.close(mine, theirs, atol=1e-9, rtol=1e-8)


def test_overrides_of_the_config_count_and_what_changes_the_function_is_marked(
    tool, source_file: Path, config: Path, tmp_path: Path, capsys
):
    overrides = ["MODEL.SPT.POSITION", "none", "MODEL.SPT.SEGMENT", "container"]
    tool.main([str(source_file), str(tmp_path / "spt.pth"), "--config-file", str(config), *overrides])
    marked = [line for line in capsys.readouterr().out.splitlines() if line.startswith("!")]
    assert len(marked) == 2 and all("relative_position_bias_table" in line for line in marked)
    assert not any("layers.2" in name and "table" in name for name in read_weights(tmp_path / "spt.pth"))


def test_a_variant_is_a_backbone_alone_that_keeps_its_tables(tool, tmp_path: Path):
    with torch.device("meta"):
        names = Swin().state_dict()
    # One element of storage each: the file is small.
    weights = {name: torch.full((1,), 0.5).expand(value.shape) for name, value in names.items() if "norm" != name[:4]}
    torch.save({"model": {**weights, "head.weight": torch.zeros(2, 768)}}, tmp_path / "swin_tiny.pth")
    tool.main([str(tmp_path / "swin_tiny.pth"), str(tmp_path / "spt_t.pth"), "--variant", "spt_t"])
    found = read_weights(tmp_path / "spt_t.pth")
    with torch.device("meta"):
        model = SPT(position="relative_bias")
    kept = {n: tuple(v.shape) for n, v in model.state_dict().items() if "gate" not in n and "norm" != n[:4]}
    assert {name: tuple(value.shape) for name, value in found.items()} == kept
    zero = {name for name, value in found.items() if not value.any()}
    last = [f"{part}.{leaf}" for part in ("attn.proj", "mlp.fc2") for leaf in ("weight", "bias")]
    assert zero == {f"layers.2.blocks.{block}.{name}" for block in (6, 7, 8, 9) for name in last}


def test_variants_have_the_sizes_of_their_names(tool):
    """Parameters in millions of each backbone, gates aside: four more blocks of stage 3 add 7.1 or 12.6."""
    expected = {
        "swin_t": 27.5, "spt_t12": 27.5, "swin_s": 48.8, "swin_b": 86.7,
        "swin_t16": 34.6, "spt_t": 34.6, "swin_s28": 55.9, "spt_s": 55.9, "swin_b28": 99.4, "spt_b": 99.4,
    }  # fmt: skip
    assert tool.VARIANTS.keys() == expected.keys()
    for name, millions in expected.items():
        wanted = tool.wanted_weights(argparse.Namespace(variant=name))
        count = sum(value.numel() for entry, value in wanted.items() if "gate" not in entry)
        assert count / 1e6 == pytest.approx(millions, abs=0.06), name


def refused(tool, capsys, *arguments: object) -> str:
    with pytest.raises(SystemExit) as caught:
        tool.main([str(argument) for argument in arguments])
    assert caught.value.code not in (0, None)
    return capsys.readouterr().err + str(caught.value.code)


def test_nothing_is_overwritten_unless_asked_and_the_source_never(
    tool, source_file: Path, config: Path, tmp_path: Path, capsys
):
    target = tmp_path / "spt.pth"
    target.write_text("precious")
    arguments = ("--config-file", config)
    assert "--force overwrites it" in refused(tool, capsys, source_file, target, *arguments)
    assert target.read_text() == "precious"
    before = source_file.read_bytes()
    assert "unless it is SOURCE" in refused(tool, capsys, source_file, source_file, "--force", *arguments)
    assert source_file.read_bytes() == before
    tool.main([str(argument) for argument in (source_file, target, "--force", *arguments)])
    assert "backbone.bottom_up.patch_embed.proj.weight" in read_weights(target)


def test_what_cannot_be_converted_writes_nothing_and_says_why(
    tool, source_file: Path, config: Path, tmp_path: Path, capsys
):
    target, arguments = tmp_path / "spt.pth", ("--config-file", config)
    run, other = tmp_path / "run.pth", tmp_path / "other.pth"
    torch.save({"model": read_weights(source_file), "config": argparse.Namespace()}, run)
    torch.save({"model": {"stem.weight": torch.zeros(2)}}, other)
    assert "HINT: --trust" in refused(tool, capsys, run, target, *arguments)
    assert "holds nothing that fits" in refused(tool, capsys, other, target, *arguments)
    pytest.importorskip("safetensors", reason="safetensors is not installed")
    pointer = tmp_path / "pointer.safetensors"
    pointer.write_bytes(b"version https://git-lfs.github.com/spec/v1\nsize 113\n")
    assert "git lfs pull" in refused(tool, capsys, pointer, target, *arguments)
    assert "channels, depths" in refused(tool, capsys, source_file, target, "--variant", "spt_t")
    assert "SOURCE expects a file" in refused(tool, capsys, tmp_path / "none.pth", target, *arguments)
    assert "ending .pth or .safetensors" in refused(tool, capsys, source_file, tmp_path / "spt.bin", *arguments)
    assert "expect --config-file" in refused(tool, capsys, source_file, target, "--variant", "spt_t", "A", "1")
    assert not target.exists()
    tool.main([str(argument) for argument in (run, target, "--trust", *arguments)])
    assert target.exists()


# The page.


def swin_tiny() -> dict[str, Tensor]:
    """Names and shapes of Swin-T as its authors save it."""
    with torch.device("meta"):
        weights = {name: value for name, value in Swin().state_dict().items() if not re.match(r"norm\d", name)}
        for stage, block in ((stage, block) for stage, blocks in enumerate((2, 2, 6, 2)) for block in range(blocks)):
            name = f"layers.{stage}.blocks.{block}"
            weights[f"{name}.attn.relative_position_index"] = torch.empty(49, 49, dtype=torch.long)
            # The last stage's map is a single window, which is not shifted.
            if block % 2 and stage < 3:
                weights[f"{name}.attn_mask"] = torch.empty((8 // 2**stage) ** 2, 49, 49)
        weights["norm.weight"], weights["norm.bias"] = torch.empty(768), torch.empty(768)
        weights["head.weight"], weights["head.bias"] = torch.empty(1000, 768), torch.empty(1000)
    return weights


def test_the_table_in_the_docs_is_what_is_printed(tool):
    with torch.device("meta"):
        wanted = SPT().state_dict()
    _, report = fit_to_model(swin_tiny(), wanted)
    page = (ROOT / "docs" / "weights.md").read_text()
    assert f"```\n{report.table()}\n```" in page


def test_a_plain_vit_of_a_whole_training_run_is_converted_on_trust(tool, tmp_path: Path):
    """As the hint of a refused checkpoint says."""
    cfg = nano_cfg("build_vit_fpn_backbone")
    path, target = tmp_path / "run.pth", tmp_path / "vit.pth"
    config = tmp_path / "config.yaml"
    config.write_text(cfg.dump())
    theirs = ViT(**{**VIT_SIZES, "spa_blocks": ()}).state_dict()
    torch.save({"model": theirs, "args": argparse.Namespace(epochs=300)}, path)
    model = build_model(cfg)
    with pytest.raises(ValueError, match="HINT: tools/convert_swin_weights.py --trust"):
        SelectionCheckpointer(model).load(str(path))
    tool.main([str(path), str(target), "--config-file", str(config), "--trust"])
    SelectionCheckpointer(model).load(str(target))
    for name, value in theirs.items():
        assert torch.equal(model.state_dict()[f"backbone.net.{name}"], value)
