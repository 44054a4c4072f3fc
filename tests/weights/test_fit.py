"""A converted checkpoint computes what the model it came from computes; where it cannot, that is said."""

import logging
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests import reference
from tests.weights.sources import DEPTHS, EMBED_DIM, LAYOUTS, SIZES, source

from spt_d2.checkpoint import SelectionCheckpointer  # isort: skip
from spt_d2.layers.gate import SelectionGate  # isort: skip
from spt_d2.modeling import SPT, DynamicSwin, Swin  # isort: skip
from spt_d2.weights import fit_to_model  # isort: skip
from spt_d2.weights.fit import resize_bias_table  # isort: skip

CLASSIFIERS = ("swin", "timm", "torchvision")
DEEPER = (2, 2, 7, 2)
# As Swin's windowed attention: everything kept, in windows, with their bias.
DENSE = {"select": "all", "gating": "none", "segment": "window", "position": "relative_bias"}
TABLE = "attn.relative_position_bias_table"


def swin(window_size: int = 4, **values) -> Swin:
    return Swin(**{**SIZES, "drop_path_rate": 0.0, "window_size": window_size, **values}).double().eval()


def spt(window_size: int = 4, **values) -> SPT:
    return SPT(**{**SIZES, "drop_path_rate": 0.0, "window_size": window_size, **values}).double().eval()


def same_maps(model: Swin, expected: list[Tensor], image: Tensor) -> None:
    with torch.no_grad():
        actual = list(model(image).values())
    assert len(actual) == len(expected) == 4
    for mine, theirs in zip(actual, expected):
        reference.close(mine, theirs, atol=1e-9, rtol=1e-8)


def images(height: int, width: int) -> Tensor:
    return torch.randn(1, 3, height, width, dtype=torch.float64)


# The anchor.


# Windows of 7 with images of a multiple of 224 pixels, as published, and of 4 with a multiple of 128. Twice that at
# least, for classifiers do not shift the windows of a map that is a single window.
@pytest.mark.parametrize("window_size, height, width", [(7, 448, 448), (4, 256, 384)])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_feature_maps_are_those_of_the_model_the_file_came_from(layout, window_size, height, width, tmp_path: Path):
    weights, maps = source(layout, window_size, (height, width))
    path = tmp_path / "weights.pth"
    torch.save({"state_dict" if layout == "mmdetection" else "model": weights}, path)
    image = images(height, width)
    with torch.no_grad():
        expected = maps(image)
    models = [
        swin(window_size),
        swin(window_size, depths=DEEPER),
        spt(window_size, **DENSE),
        spt(window_size, depths=DEEPER, **DENSE),
        spt(window_size, depths=DEEPER, spa_stages=(1, 2, 3, 4), multi_scale=False, gate="per_stage", **DENSE),
    ]
    for model in models:
        SelectionCheckpointer(model).load(str(path))
        same_maps(model, expected, image)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_on_maps_of_one_window_only_classifiers_differ_and_only_in_their_last_stage(layout):
    weights, maps = source(layout, 4, (128, 128))
    model, image = swin(), images(128, 128)
    model.load_state_dict(fit_to_model(weights, model.state_dict())[0], strict=False)
    with torch.no_grad():
        expected, actual = maps(image), list(model(image).values())
    for mine, theirs in zip(actual[:3], expected[:3]):
        reference.close(mine, theirs, atol=1e-9, rtol=1e-8)
    assert torch.allclose(actual[3], expected[3], atol=1e-9) == (layout not in ("timm", "torchvision"))


@pytest.mark.parametrize("ffn_tokens", ["all", "light", "selected"])
@pytest.mark.parametrize("proj_tokens", ["selected", "all"])
def test_added_blocks_are_the_identity_whatever_is_selected(ffn_tokens, proj_tokens):
    weights, _ = source("swin", 4, (64, 64))
    model = spt(depths=DEEPER, position="conv", ffn_tokens=ffn_tokens, proj_tokens=proj_tokens, threshold=0.5)
    model.load_state_dict(fit_to_model(weights, model.state_dict())[0], strict=False)
    for number in (1, 0):
        valid, x = torch.ones(1, 8, 8, dtype=torch.bool), torch.randn(1, 8, 8, 4 * EMBED_DIM, dtype=torch.float64)
        block = model.layers[2].blocks[3 + number]
        torch.nn.init.normal_(block.gate.proj.weight)
        out, decision, _ = block(x, valid)
        assert 0 < decision.keep_mask.sum() < 64
        assert torch.equal(out, x)


def test_added_blocks_are_copies_of_the_last_block_of_the_same_shift_and_learn():
    weights, _ = source("swin", 4, (64, 64))
    model = spt(depths=DEEPER, **DENSE)
    fitted, report = fit_to_model(weights, model.state_dict())
    model.load_state_dict(fitted, strict=False)
    shifts = [block.shift_size for block in model.layers[2].blocks]
    for stage, number, donor in ((2, 3, 1), (2, 4, 2), (2, 5, 1), (2, 6, 2), (0, 1, 0)):
        block, original = model.layers[stage].blocks[number], model.layers[stage].blocks[donor]
        assert stage == 0 or shifts[number] == shifts[donor]
        for name, value in block.named_parameters():
            if name.startswith(("attn.proj", "mlp.fc2")):
                assert not value.any()
            elif not name.startswith("gate."):
                assert torch.equal(value, original.get_parameter(name)) and value.any()
    assert {name.split(".")[1] for name in report.names("added")} == {"0", "2"}
    model.train()
    sum((f * torch.randn_like(f)).sum() for f in model(images(64, 64)).values()).backward()
    for number in (3, 4, 5, 6):
        block = model.layers[2].blocks[number]
        assert block.attn.proj.weight.grad.any() and block.mlp.fc2.weight.grad.any()


# Gates.


@pytest.mark.parametrize(
    "gating, threshold, start",
    [("sigmoid", 0.01, 5.0), ("none", 0.05, -2.1972246), ("centred", 0.05, -2.1972246), ("none", 0.5, 0.1)],
)
def test_gates_start_with_everything_kept(gating, threshold, start):
    weights, _ = source("timm", 4, (256, 256))
    model = spt(depths=DEEPER, gating=gating, threshold=threshold)
    model.load_state_dict(fit_to_model(weights, model.state_dict())[0], strict=False)
    gates = [module for module in model.modules() if isinstance(module, SelectionGate)]
    assert len(gates) == 7 + 2 + 1
    for training in (True, False):
        _, selections = model.train(training).forward_with_selections(images(256, 256))
        for selection in selections:
            assert torch.allclose(selection.score, torch.full_like(selection.score, start))
            assert selection.keep_mask is None or selection.keep_mask.all()


def test_under_the_papers_gating_the_pretrained_function_nearly_survives():
    weights, maps = source("swin", 4, (256, 256))
    image = images(256, 256)
    with torch.no_grad():
        expected = maps(image)
    distances = {}
    for gating in ("sigmoid", "none"):
        model = spt(depths=DEEPER, **{**DENSE, "select": "gate", "threshold": 0.01, "gating": gating})
        model.load_state_dict(fit_to_model(weights, model.state_dict())[0], strict=False)
        with torch.no_grad():
            actual = list(model(image).values())
        distances[gating] = max((a - e).abs().max().item() / e.std().item() for a, e in zip(actual, expected))
    assert distances["none"] < 1e-9 and 1e-6 < distances["sigmoid"] < 0.2


# Position.


def test_tables_of_another_window_size_are_resized_as_timm_does():
    layers = pytest.importorskip("timm.layers", reason="timm is not installed")
    weights, _ = source("swin", 7, (64, 64))
    for model in (swin(), spt(**DENSE)):
        fitted, report = fit_to_model(weights, model.state_dict())
        names = report.names("resized")
        assert len(names) == sum(DEPTHS) and all(name.endswith(TABLE) for name in names)
        for name in names:
            heads = weights[name].shape[1]
            expected = layers.resize_rel_pos_bias_table_simple(weights[name], (4, 4), (49, heads))
            reference.close(fitted[name].float(), expected.float())
        assert report.warnings() == [] and "windows of 7 to 4 tokens, bicubic" in report.table()


def test_resized_tables_keep_their_middle_and_their_symmetry():
    axis = torch.arange(-6, 7.0)
    distance = (axis[:, None] ** 2 + axis[None, :] ** 2).sqrt().reshape(-1, 1)
    table = torch.cat([torch.exp(-distance), torch.ones_like(distance)], dim=1)
    for window in (2, 4, 7, 12):
        side = 2 * window - 1
        resized = resize_bias_table(table, side * side)
        grid = resized[:, 0].view(side, side)
        reference.close(grid, grid.flip(0, 1))
        reference.close(grid, grid.t())
        assert grid.argmax() == side * side // 2
        reference.close(resized[:, 1], torch.ones(side * side))
    reference.close(resize_bias_table(table, 169), table)


@pytest.mark.parametrize("position", ["none", "rope", "conv"])
def test_tables_are_dropped_loudly_where_blocks_have_none_and_position_convolutions_add_nothing(position):
    weights, _ = source("swin", 4, (64, 64))
    model = spt(**{"embed_dim": 16, "position": position} if position == "rope" else {"position": position})
    if position == "rope":
        weights = dict(swin(embed_dim=16).state_dict())
        weights["head.weight"] = torch.zeros(5, 128)
    fitted, report = fit_to_model(weights, model.state_dict())
    dropped = [name for name in report.names("dropped") if name.endswith(TABLE)]
    assert {name.split(".")[1] for name in dropped} == {"2", "3"} and len(dropped) == DEPTHS[2] + DEPTHS[3]
    assert len(report.warnings()) == 2
    for line in report.warnings():
        assert "relative_position_bias_table" in line and "MODEL.SPT.POSITION" in line
    added = {name for name in fitted if "pos_conv" in name}
    assert len(added) == (2 * (DEPTHS[2] + DEPTHS[3]) if position == "conv" else 0)
    assert not any(fitted[name].any() for name in added)


def test_where_a_checkpoint_has_no_tables_they_start_at_zero():
    without, dense = spt(**{**DENSE, "position": "none"}), swin()
    reference.randomise_(without)
    fitted, report = fit_to_model(without.state_dict(), dense.state_dict())
    dense.load_state_dict(fitted)
    image = images(128, 128)
    with torch.no_grad():
        same_maps(dense, list(without(image).values()), image)
    assert all(not fitted[name].any() for name in report.names("new")) and report.warnings() == []


# What else a checkpoint may lack or have too much of.


def dynamic_swin(**values) -> DynamicSwin:
    return DynamicSwin(**{**SIZES, "drop_path_rate": 0.0, "window_size": 4, **values}).double().eval()


@pytest.mark.parametrize("layout", LAYOUTS)
def test_dense_weights_start_dynamic_swin_and_only_its_own_parts_are_new(layout):
    weights, maps = source(layout, 4, (256, 256))
    model = dynamic_swin(predictor_blocks=(1,), keep_ratio=1.0)
    fitted, report = fit_to_model(weights, model.state_dict())
    missing, unexpected = model.load_state_dict(fitted, strict=False)
    new = [name for name in report.names("new") if not name.startswith(("norm", "head"))]
    assert not unexpected and set(missing) == set(report.names("new"))
    assert new and all(".score_predictor." in name or ".fastmlp." in name for name in new)
    assert not report.warnings()
    image = images(256, 256)
    with torch.no_grad():
        same_maps(model, maps(image), image)


def test_checkpoints_of_the_authors_of_dynamic_swin_load_whole():
    """Their names are ours, with a classifier's norm and head, and with tables that are computed here."""
    other = dynamic_swin(predictor_blocks=(0, 2))
    theirs = {k: v for k, v in other.state_dict().items() if not k.startswith("norm")}
    theirs |= {"norm.weight": torch.ones(8 * EMBED_DIM), "head.bias": torch.zeros(7)}
    theirs |= {"layers.2.blocks.1.attn_mask": torch.zeros(4, 16, 16)}
    model = dynamic_swin(predictor_blocks=(0, 2))
    for parameter in model.parameters():
        torch.nn.init.zeros_(parameter)
    fitted, report = fit_to_model(theirs, model.state_dict())
    model.load_state_dict(fitted, strict=False)
    assert report.layout.name == "swin" and not report.warnings()
    assert all(name.startswith("norm") for name in report.names("new"))
    expected = {name: value for name, value in other.state_dict().items() if not name.startswith("norm")}
    assert all(torch.equal(model.state_dict()[name], value) for name, value in expected.items())


def test_blocks_added_to_dynamic_swin_are_the_identity_by_either_ffn():
    weights, _ = source("swin", 4, (64, 64))
    model = dynamic_swin(depths=DEEPER, predictor_blocks=(1, 2))
    model.load_state_dict(fit_to_model(weights, model.state_dict())[0], strict=False)
    x = torch.randn(1, 8, 8, 4 * EMBED_DIM, dtype=torch.float64)
    for block in model.layers[2].blocks[DEPTHS[2] :]:
        assert torch.equal(block.sparse(x, torch.arange(20), torch.arange(20, 64)), x)


def test_a_file_of_a_much_shallower_model_is_loud():
    """Swin-T's into a model of Swin-S is the likeliest mistake of who follows a command for another row."""
    weights, _ = source("swin", 4, (64, 64))
    assert fit_to_model(weights, swin(depths=(1, 2, 7, 2)).state_dict())[1].warnings() == []
    fitted, report = fit_to_model(weights, swin(depths=(1, 2, 9, 2)).state_dict())
    assert report.warnings() and all(
        line.startswith("added layers.2.blocks.") and "of 9 blocks the file has 3: a smaller model's?" in line
        for line in report.warnings()
    )
    # It is used all the same.
    assert "layers.2.blocks.8.norm1.weight" in fitted


def test_from_spt_to_swin_gates_are_dropped_quietly_and_blocks_too_many_loudly():
    deep, shallow = spt(depths=DEEPER, **DENSE), swin()
    weights = reference.randomise_(deep).state_dict()
    fitted, report = fit_to_model(weights, shallow.state_dict())
    assert fitted.keys() == shallow.state_dict().keys()
    assert all(torch.equal(value, weights[name]) for name, value in fitted.items())
    (first, second) = report.warnings()
    assert first.startswith("dropped layers.0.blocks.1 ") and "depth 1 here" in first
    assert second.startswith("dropped layers.2.blocks.3-6 ") and "depth 3 here" in second
    gates = [name for name in report.names("dropped") if "gate" in name]
    assert sum(name.startswith("output_gates.") for name in gates) == 4


def test_entries_of_another_shape_and_entries_that_are_missing_or_unknown_are_loud():
    weights, _ = source("swin", 4, (64, 64))
    weights["patch_embed.proj.weight"] = torch.zeros(EMBED_DIM, 4, 4, 4)
    del weights["layers.1.blocks.0.norm1.weight"]
    weights["layers.1.blocks.0.adapter.weight"] = torch.zeros(3)
    weights["absolute_pos_embed"] = torch.zeros(1, 16, EMBED_DIM)
    fitted, report = fit_to_model(weights, swin().state_dict())
    warnings = "\n".join(report.warnings())
    assert len(report.warnings()) == 4
    assert "shape (8, 4, 4, 4), (8, 3, 4, 4) here" in warnings and "patch_embed.proj.weight" not in fitted
    assert "layers.1.blocks.0 norm1 (1 entry, 16 parameters): initial values: missing in the checkpoint" in warnings
    assert "layers.1.blocks.0 adapter (1 entry, 3 parameters): nothing of that name here" in warnings
    assert "absolute_pos_embed (1 entry, 128 parameters)" in warnings


def test_a_backbone_of_another_width_is_an_error_that_names_the_sizes():
    weights, _ = source("swin", 4, (64, 64))
    with pytest.raises(ValueError, match=r"8 channels, depths \[1, 2, 3, 2\]\n.*16 channels(.|\n)*HINT: Swin-T"):
        fit_to_model(weights, swin(embed_dim=16).state_dict())


@pytest.mark.parametrize("build", [swin, spt], ids=["swin", "spt"])
@pytest.mark.parametrize("prefix", ["", "module."])
def test_a_checkpoint_of_the_same_model_is_handed_on_untouched(build: Callable[..., Swin], prefix):
    weights = {prefix + name: value for name, value in build().state_dict().items()}
    before = dict(weights)
    fitted, report = fit_to_model(weights, build().state_dict())
    assert report is None and fitted is weights and fitted == before


def test_models_without_a_swin_backbone_get_what_the_file_holds():
    weights, _ = source("swin", 4, (64, 64))
    other = torch.nn.Linear(2, 2).state_dict()
    assert fit_to_model(weights, other) == (weights, None)
    assert fit_to_model(other, swin().state_dict()) == (other, None)


def test_neither_the_weights_nor_the_model_are_changed_and_the_model_may_lie_on_the_meta_device():
    weights, _ = source("timm", 4, (64, 64))
    before = {name: value.clone() for name, value in weights.items()}
    with torch.device("meta"):
        model = SPT(**{**SIZES, "depths": DEEPER, "position": "conv"})
    fitted, _ = fit_to_model(weights, model.state_dict())
    assert weights.keys() == before.keys() and all(torch.equal(weights[name], v) for name, v in before.items())
    assert not any(value.is_meta for value in fitted.values())


# The table.


def test_the_table_accounts_for_every_entry_of_the_file_and_of_the_model():
    weights, _ = source("swin", 4, (64, 64))
    model = spt(depths=DEEPER)
    fitted, report = fit_to_model(weights, model.state_dict())
    taken = report.names("copied", "resized")
    assert sorted([*taken, *report.names("dropped")]) == sorted(weights)
    assert sorted([*taken, *report.names("added", "new")]) == sorted(model.state_dict())
    assert set(fitted) == {*taken, *report.names("added")} and not set(fitted) & set(report.names("new", "dropped"))
    lines = report.table().splitlines()
    assert lines[0] == "Swin's classifiers ('swin' layout) into the backbone"
    rows = [line.split() for line in lines[3:]]
    counts = [int(next(word for word in row if word.isdigit())) for row in rows]
    assert sum(counts) == len(report.entries)
    assert len(lines) < 40


def test_the_log_shows_the_table_and_warns_of_what_changes_the_function(tmp_path: Path, caplog):
    weights, _ = source("timm", 4, (64, 64))
    torch.save(weights, tmp_path / "weights.pth")
    logger = logging.getLogger("spt_d2")
    before, logger.propagate = logger.propagate, True
    try:
        with caplog.at_level(logging.INFO, logger="spt_d2.checkpoint"):
            SelectionCheckpointer(spt(depths=DEEPER)).load(str(tmp_path / "weights.pth"))
    finally:
        logger.propagate = before
    records = [record for record in caplog.records if record.name == "spt_d2.checkpoint"]
    table = next(record.getMessage() for record in records if record.levelno == logging.INFO)
    assert table.startswith("Weights of timm ('timm' layout) into the backbone\n")
    assert "layers.2.blocks.3,5" in table and "copies of block 1" in table
    warnings = [record.getMessage() for record in records if record.levelno == logging.WARNING]
    assert len(warnings) == 2 and all("relative_position_bias_table" in message for message in warnings)
