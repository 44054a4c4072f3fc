"""tools/analyze_model.py: parameters, multiply-adds and structure, of configs of both kinds, assumed and measured."""

import json

import numpy as np
import pytest
import torch

pytest.importorskip("detectron2")

from spt_d2.analysis import image_macs, nominal_macs
from spt_d2.analysis.model_report import image_costs, parse_keep_ratio, summarize_costs
from spt_d2.engine.model_config import open_config
from spt_d2.ops.selection import split_selections
from tests.conftest import ROOT, load_program

NANO = ROOT / "configs" / "Shapes-InstanceSegmentation"
LEAF = ROOT / "projects" / "SPT" / "configs" / "Shapes-InstanceSegmentation" / "mask_rcnn_spt_nano_fpn_demo.py"


@pytest.fixture(scope="module")
def program():
    return load_program(ROOT / "tools" / "analyze_model.py")


def test_record_of_both_kinds_of_config_is_that_of_the_model(program, tmp_path, capsys):
    records = []
    for file in (NANO / "mask_rcnn_spt_nano_fpn_demo.yaml", LEAF):
        path = tmp_path / f"{file.stem}.json"
        arguments = ["--config-file", str(file), "--keep-ratio", "0.3", "--image-size", "100", "150"]
        program.main([*arguments, "--json", str(path), "--tasks", "parameter", "macs", "structure"])
        records.append(json.loads(path.read_text()))
    config = open_config(str(NANO / "mask_rcnn_spt_nano_fpn_demo.yaml"))
    model = config.build_model()
    backbone = model.backbone.bottom_up
    assert {key: records[0][key] for key in records[0] if key != "config"} == {
        "image_size": [100, 150],
        "keep_ratio": 0.3,
        "parameters": {
            "backbone": sum(p.numel() for p in backbone.parameters()),
            "model": sum(p.numel() for p in model.parameters()),
        },
        "macs": nominal_macs(backbone, (100, 150), 0.3).as_dict(),
    }
    assert {**records[0], "config": None} == {**records[1], "config": None}
    printed = capsys.readouterr().out
    assert "select and pack     3 C^2 T" in printed and "(layers): ModuleList" in printed
    assert f"{records[0]['parameters']['model']:,}" in printed
    assert f"{records[0]['macs']['executed'] / 1e9:.3f}" in printed


def test_a_dense_backbone_keeps_everything_and_stages_have_ratios_of_their_own(program, capsys):
    dense = NANO / "mask_rcnn_swin_nano_fpn_demo.yaml"
    record = program.main(["--config-file", str(dense), "--keep-ratio", "0.2", "--tasks", "macs"])
    assert record["keep_ratio"] == 1.0 and record["image_size"] == [800, 1280]
    assert record["macs"]["dense"] == record["macs"]["executed"] == record["macs"]["useful"]
    record = program.main(["--config-file", str(LEAF), "--keep-ratio", "3=0.2,4=0.5", "--tasks", "macs"])
    model = open_config(str(LEAF)).build_model("meta")
    assert record["macs"] == nominal_macs(model.backbone, (800, 1280), {3: 0.2, 4: 0.5}).as_dict()
    assert record["keep_ratio"] == {"stage3": 0.2, "stage4": 0.5}
    assert "keep ratio 0.2 in stage3, 0.5 in stage4, 10^9" in capsys.readouterr().out
    capsys.readouterr()
    program.main(["--config-file", str(LEAF), "--tasks", "macs"])
    assert "No keep ratio was given" in capsys.readouterr().out


@torch.no_grad()
def test_on_images_counts_are_those_of_the_tokens_really_kept(program, tiny_config, tiny_weights, tmp_path):
    opts = ["MODEL.WEIGHTS", tiny_weights, "DATALOADER.NUM_WORKERS", "0"]
    arguments = ["--config-file", str(tiny_config), "--tasks", "macs", "--dataset", "tiny_val", "--num-images", "4"]
    record = program.main([*arguments, "--json", str(tmp_path / "record.json"), *opts])
    assert json.loads((tmp_path / "record.json").read_text()) == record
    config = open_config(str(tiny_config), opts)
    model = config.load_model()
    backbone, executed, kept, tokens = model.backbone.bottom_up, [], 0, 0
    for given in config.inputs("tiny_val", 4):
        images = model.preprocess_image([given])
        _, selections = backbone.forward_with_selections(images.tensor, images.image_sizes)
        size = tuple(images.tensor.shape[-2:])
        (selection,) = split_selections(selections, images.image_sizes, size)
        executed.append(image_macs(backbone, selection).executed)
        for block in selections:
            if block.keep_mask is not None:
                kept, tokens = kept + int(block.keep_mask.sum()), tokens + int(block.valid.sum())
    assert record["macs"]["executed"] == pytest.approx(sum(executed) / 4, rel=1e-12)
    by_stage = record["macs"]["by_stage"].values()
    assert sum(stage["executed"] for stage in by_stage) == pytest.approx(record["macs"]["executed"])
    percentiles = record["dataset"]["macs_percentiles"]
    assert [percentiles[f"p{p}"]["executed"] for p in (5, 50, 95)] == pytest.approx(
        np.percentile(executed, (5, 50, 95)).tolist()
    )
    assert record["keep_ratio"] == pytest.approx(kept / tokens) and 0 < record["keep_ratio"] < 1
    assert record["dataset"]["num_images"] == 4 and record["image_size"] == [64, 64]

    forced = program.main([*arguments, "--keep-ratio", "1.0", *opts])
    assert forced["keep_ratio"] == 1.0
    assert forced["macs"] == nominal_macs(backbone, (64, 64), 1.0).as_dict()


def test_command_lines_that_cannot_be_are_refused(program, capsys):
    for arguments, message in (
        (["--keep-ratio", "much"], "A keep ratio expects one number"),
        (["--image-size", "0", "5"], "expect numbers above 0"),
        (["--dataset", "x", "--keep-ratio", "3=0.1"], "one --keep-ratio for all stages"),
    ):
        with pytest.raises(SystemExit):
            program.parse_arguments(["--config-file", "x.yaml", *arguments])
        assert message in capsys.readouterr().err
    assert parse_keep_ratio("0.25") == 0.25 and parse_keep_ratio("3=0.2,4=1") == {3: 0.2, 4: 1.0}


CONFIGS = ROOT / "configs"


@pytest.mark.parametrize("kind", ("dynamic_swin", "sparse_vit", "svit_gated_swin"))
def test_one_ratio_for_the_images_of_a_data_set_is_refused_for_rules_that_have_their_own(program, kind, capsys):
    file = CONFIGS / "Shapes-InstanceSegmentation" / f"mask_rcnn_{kind}_nano_fpn.yaml"
    with pytest.raises(SystemExit):
        program.main(["--config-file", str(file), "--keep-ratio", "0.3", "--dataset", "shapes_val"])
    assert "This backbone selects by a rule of its own" in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize(
    "config, ratio, message",
    [
        (
            "Ablations/stages_1234.yaml",
            "3=0.23,4=0.25",
            "or 1=R,2=R,3=R,4=R: these stages select. Got ratios for 3, 4.",
        ),
        ("Ablations/stages_234.yaml", "3=0.23,4=0.25", "or 2=R,3=R,4=R: these stages select. Got ratios for 3, 4."),
        ("Ablations/stages_4.yaml", "3=0.23,4=0.25", "or 4=R: these stages select. Got ratios for 3, 4."),
        ("VOC-Classification/multilabel_vit_b_oracle.yaml", "3=0.23,4=0.25", "or 1=R: these stages select."),
        ("COCO-InstanceSegmentation/mask_rcnn_swin_t_fpn_3x.yaml", "3=0.23", "one number: no stage selects."),
        ("COCO-InstanceSegmentation/mask_rcnn_dynamic_swin_t_fpn_3x.yaml", "4=0.2", "or 3=R: these stages select."),
        ("Ablations/stages_4.yaml", "1.5", "fractions from 0 to 1. Got 1.5."),
        ("Ablations/stages_4.yaml", "4=nan", "fractions from 0 to 1. Got nan."),
    ],
)
def test_ratios_that_do_not_fit_the_model_are_told_without_a_traceback(program, capsys, config, ratio, message):
    with pytest.raises(SystemExit) as caught:
        program.main(["--config-file", str(CONFIGS / config), "--tasks", "macs", "--keep-ratio", ratio])
    assert caught.value.code == 2 and message in capsys.readouterr().err


@pytest.mark.parametrize(
    "config, stages",
    [
        ("Ablations/stages_1234.yaml", "1=0.1342,2=0.2078,3=0.2236,4=0.25"),
        ("COCO-InstanceSegmentation/mask_rcnn_spa_vit_b_fpn_3x.yaml", "1=0.3"),
        ("COCO-InstanceSegmentation/mask_rcnn_sparse_vit_t_fpn_3x.yaml", "1=0.3,2=0.3,3=0.3,4=0.3"),
    ],
)
def test_one_ratio_fits_every_model_and_ratios_by_stage_those_that_select(program, config, stages):
    for ratio in ("0.23", stages):
        record = program.main(["--config-file", str(CONFIGS / config), "--tasks", "macs", "--keep-ratio", ratio])
        assert record["macs"]["executed"] < record["macs"]["dense"]


def test_no_image_is_an_error():
    with pytest.raises(ValueError, match="at least one image"):
        summarize_costs([])


@torch.no_grad()
def test_a_stock_meta_architecture_is_counted_as_it_runs_without_sizes(tiny_config, tiny_weights):
    opts = ["MODEL.META_ARCHITECTURE", "GeneralizedRCNN", "DATALOADER.NUM_WORKERS", "0"]
    config = open_config(str(tiny_config), opts)
    model = config.load_model(tiny_weights)
    (cost,) = image_costs(model, config.inputs("tiny_val", 1))
    assert cost.tokens[3][1] == 2 * 16 and cost.tokens[4][1] == 4
