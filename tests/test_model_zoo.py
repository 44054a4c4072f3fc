"""MODEL_ZOO.md and the project's tables say what the code counts, what the paper says, and what results files hold."""

import json
import re
import shutil
from pathlib import Path

import pytest

pytest.importorskip("detectron2")

from spt_d2 import get_config
from spt_d2.analysis.model_report import parameter_counts
from spt_d2.model_zoo.page import insert_tables, paper_table, zoo_page
from spt_d2.model_zoo.paper import read_paper
from spt_d2.model_zoo.records import read_record, read_records
from spt_d2.model_zoo.variants import (
    VARIANTS,
    build_detector,
    config_costs,
    config_parameters,
    count,
    detector_parameters,
)
from tests.conftest import load_program

ROOT = Path(__file__).resolve().parents[1]
PAPER = ROOT / "projects" / "SPT" / "paper_results.json"
README = ROOT / "projects" / "SPT" / "README.md"
RECORD = {
    "config": "COCO-InstanceSegmentation/mask_rcnn_spt_t_fpn_3x.yaml",
    "overrides": [],
    "data": {"train": "coco_2017_train", "test": "coco_2017_val", "images": 5000},
    "hardware": "8 cards",
    "commit": "0123456789abcdef0123456789abcdef01234567-dirty",
    "date": "2026-02-01",
    "seeds": [0, 1, 2],
    "command": "python projects/SPT/train_net.py",
    "metrics": {
        "box_ap": [40.0, 42.0, 44.0],
        "box_aps": [21.0, 21.0, 21.0],
        "keep_ratio": [0.2, 0.2, 0.2],
        "density": [0.5, 0.5, 0.5],
    },
}


def rows_with(text: str, part: str) -> list[list[str]]:
    """Cells of the table rows that contain a text."""
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if part in line]


@pytest.mark.slow
def test_pages_in_the_repository_are_those_that_the_command_makes(capsys):
    program = load_program(ROOT / "tools" / "make_model_zoo.py")
    assert program.main(["--check"]) == 0, capsys.readouterr().out


def test_check_fails_where_a_results_file_is_new(tmp_path, capsys):
    """Beside those that are there, with which the pages are up to date: see the test above."""
    folder = shutil.copytree(ROOT / "results", tmp_path / "results")
    before = README.read_text()
    program = load_program(ROOT / "tools" / "make_model_zoo.py")
    (folder / "new.json").write_text(json.dumps(RECORD))
    assert program.main(["--check", "--results", str(folder)]) == 1
    assert "MODEL_ZOO.md is stale" in capsys.readouterr().out
    assert README.read_text() == before


def test_a_measurement_stands_in_its_row_with_its_provenance(tmp_path):
    (tmp_path / "spt.json").write_text(json.dumps(RECORD))
    other = {**RECORD, "config": "x/other.yaml", "overrides": ["SEED", "1"], "seeds": [1], "metrics": {"map": [50.126]}}
    (tmp_path / "other.json").write_text(json.dumps(other))
    paper, records = read_paper(PAPER), read_records(tmp_path)
    page = zoo_page(paper, records)
    results = page.split("## Results")[1]
    (row,) = rows_with(results, "mask_rcnn_spt_t_fpn_3x]")
    assert row[2] == "*AP 47.1 (Table 1); mask AP 39.3 (Table 4)*"
    # Mean and standard error, 2 / sqrt(3).
    assert row[3:10] == ["42.0 ± 1.2", "", "", "0.200 ± 0.000", "", "0.500 ± 0.000", ""]
    assert row[10] == "[8 cards; 3 seeds; 0123456789 (changed); 2026-02-01](results/spt.json)"
    (row,) = rows_with(results, "x/other]")
    assert row[4] == "50.13" and row[-1].endswith("(results/other.json); SEED 1")
    readme = insert_tables(README.read_text(), paper, records)
    # Of Table 1 and of Table 4, whose columns are of masks.
    selection = "keep ratio 0.200 ± 0.000; density 0.500 ± 0.000](../../results/spt.json)"
    assert [row[-1] for row in rows_with(readme, "mask_rcnn_spt_t_fpn_3x]")] == [
        f"**measured**: [box AP 42.0 ± 1.2; box APs 21.0 ± 0.0; {selection}",
        f"**measured**: [{selection}",
    ]
    assert {row[-1] for row in rows_with(readme, "mask_rcnn_spt_s_fpn_3x]")} == {"ready to run"}


@pytest.mark.parametrize(
    "suffix, overrides, expected",
    [
        ("yaml", ["SEED", "1", "MODEL.WEIGHTS", "swin.pth"], True),
        ("yaml", ["OUTPUT_DIR", "output/spt"], True),
        ("yaml", ["SOLVER.AMP.ENABLED", "True", "DATALOADER.NUM_WORKERS", "8", "SOLVER.BATCH_SCALE", "0.5"], True),
        ("yaml", ["SOLVER.BASE_LR", "0.001"], False),
        ("yaml", ["TEST.AUG.ENABLED", "True"], True),
        ("yaml", ["MODEL.SPT.THRESHOLD", "0.5"], False),
        ("yaml", ["SEED", "1", "SOLVER.MAX_ITER", "10"], False),
        ("py", ["train.seed=1", "train.init_checkpoint=w.pth"], True),
        ("py", ["train.output_dir=output/spt"], True),
        ("py", ["train.amp.enabled=True", "dataloader.train.num_workers=8"], True),
        ("py", ["train.seed=1", "train.max_iter=10"], False),
    ],
)
def test_a_seed_and_a_checkpoint_make_no_other_config(tmp_path, suffix, overrides, expected):
    config = RECORD["config"].replace("yaml", suffix)
    (tmp_path / "spt.json").write_text(json.dumps({**RECORD, "config": config, "overrides": overrides}))
    assert read_record(tmp_path / "spt.json").as_configured is expected


def test_a_lazy_config_measures_the_row_of_its_yaml_twin(tmp_path):
    """Tests of configs hold the twins equal."""
    config = RECORD["config"].replace("yaml", "py")
    (tmp_path / "lazy.json").write_text(json.dumps({**RECORD, "config": config, "overrides": ["train.seed=0"]}))
    paper, records = read_paper(PAPER), read_records(tmp_path)
    results, further = zoo_page(paper, records).split("## Results")[1].split("## Further results")
    (row,) = rows_with(results, "mask_rcnn_spt_t_fpn_3x]")
    assert row[3] == "42.0 ± 1.2" and not rows_with(further, "mask_rcnn_spt_t_fpn_3x")


def test_runs_without_a_seed_may_be_several(tmp_path):
    (tmp_path / "spt.json").write_text(json.dumps({**RECORD, "seeds": [-1, -1, 0]}))
    assert "; 3 runs; " in read_record(tmp_path / "spt.json").provenance


def test_a_checkpoint_that_was_only_evaluated_is_marked(tmp_path):
    command = (
        f"python projects/SPT/train_net.py --config-file configs/{RECORD['config']} --eval-only MODEL.WEIGHTS a.pth"
    )
    (tmp_path / "spt.json").write_text(json.dumps({**RECORD, "seeds": [-1, -1, -1], "command": command}))
    assert "; 3 runs, only evaluated; " in read_record(tmp_path / "spt.json").provenance


def test_a_run_with_other_keys_is_no_measurement_of_its_row_and_stands_under_further_results(tmp_path):
    changed = {**RECORD, "overrides": ["MODEL.SPT.THRESHOLD", "0.5"], "metrics": {"box_ap": [1.0, 2.0, 3.0]}}
    (tmp_path / "changed.json").write_text(json.dumps(changed))
    paper, records = read_paper(PAPER), read_records(tmp_path)
    results, further = zoo_page(paper, records).split("## Results")[1].split("## Further results")
    (row,) = rows_with(results, "mask_rcnn_spt_t_fpn_3x]")
    assert row[3:] == [""] * len(row[3:])
    (row,) = rows_with(further, "mask_rcnn_spt_t_fpn_3x]")
    assert row[2] == "2.0 ± 0.6" and row[-1].endswith("(results/changed.json); MODEL.SPT.THRESHOLD 0.5")
    readme = insert_tables(README.read_text(), paper, records)
    assert {row[-1] for row in rows_with(readme, "mask_rcnn_spt_t_fpn_3x]")} == {"ready to run"}


def test_detectors_counted_by_their_parts_have_the_parameters_of_the_whole():
    for name, detector in (("spt_s", "RetinaNet"), ("spt_b", "Cascade Mask R-CNN"), ("spt_t12", "Mask R-CNN")):
        whole = parameter_counts(build_detector(VARIANTS[name], detector))["model"]
        assert detector_parameters(VARIANTS[name], detector) == whole


def test_parameters_beside_a_row_are_those_of_its_own_config():
    """BDD100K's detectors have ten classes and no masks, where COCO's have 80; B of Table 1 is a Cascade Mask R-CNN."""
    tables = read_paper(PAPER)
    for table, model, millions in (("table1", "SPT-T", 54.9), ("table2", "SPT-T", 51.9), ("table1", "SPT-B", 151.3)):
        (row,) = (row for row in tables[table].rows if row.model == model)
        assert round(config_parameters(row.config) / 1e6, 1) == millions
        place = tables[table].columns.index("parameters, M")
        (cells,) = rows_with(paper_table(tables[table], []), f"| {model} |")
        assert cells[1 + place] == f"*{row.values[place]:g}*" and cells[-3] == f"{millions}"


def test_numbers_that_the_text_of_the_project_names_are_counted():
    """FLOPs that fit no reading: what SPT-T and SPT-B cost with nothing kept, above what the paper reports."""
    text = " ".join(README.read_text().split())
    for name, reported in (("spt_t", 90), ("spt_b", 256)):
        floor = count(VARIANTS[name]).none.executed / 1e9
        assert floor > reported and f"{floor:.1f} G" in text
    blocks = {size: count(VARIANTS[f"spt_{size}"]).backbone - count(VARIANTS[f"swin_{size}"]).backbone for size in "tb"}
    assert round(blocks["t"] / 1e6, 1) == 7.1 and round(blocks["b"] / 1e6, 1) == 12.6
    assert "12.6 M" in text and "7.1 M" in text


def test_rows_of_the_paper_have_a_value_for_each_column_and_dense_swin_agrees_with_the_count():
    tables = read_paper(PAPER)
    assert [tables[f"table{i}"].reference for i in range(1, 9)] == [f"Table {i}" for i in range(1, 9)]
    place = tables["table1"].columns.index("backbone FLOPs, G")
    for row in tables["table1"].rows:
        if row.model.startswith("Swin"):
            assert count(row.variant).full.executed / 1e9 == pytest.approx(row.values[place], rel=0.005)


def test_a_column_of_the_paper_that_a_results_file_has_too_knows_its_name_there():
    """Of stages too (Table 6); AP50 is of masks in Table 4, and of boxes elsewhere."""
    tables = read_paper(PAPER)
    sizes = ["", "50", "75", "s", "m", "l"]
    assert tables["table1"].metrics == (*(f"box_ap{kind}" for kind in sizes), "executed_macs_g")
    assert tables["table4"].metrics == tuple(f"mask_ap{kind}" for kind in sizes)
    assert tables["table6"].metrics[3:] == tuple(f"keep_ratio_stage{stage}" for stage in range(1, 5))
    assert tables["table7"].metrics == ("keep_ratio", "map")
    assert tables["appendix_b3"].metrics == ("retention", "density")


def test_every_config_of_a_row_exists_and_is_the_backbone_that_is_counted():
    for table in read_paper(PAPER).values():
        for row in table.rows:
            if row.config is None:
                continue
            assert (ROOT / "configs" / row.config).exists(), row.config
            if row.variant is not None:
                cfg = get_config(row.config)
                node = cfg.MODEL.SPT if row.variant.selects else cfg.MODEL.SWIN
                for key, value in row.variant.overrides().items():
                    assert (
                        list(node[key.split(".")[-1]]) == list(value)
                        if isinstance(value, (list, tuple))
                        else (node[key.split(".")[-1]] == value)
                    ), (row.config, key)


def test_peers_are_counted_at_their_own_ratios_and_dynamic_swin_in_training_too():
    """What the paper charges DynamicSwin-T with is its cost in training; S and B cost more than it says."""
    tables = read_paper(PAPER)
    for model, cost in (("DAT-T", "101.4"), ("DynamicSwin-T", "86.5 (training 101.4)"), ("SparseViT", "87.2")):
        (cells,) = rows_with(paper_table(tables["table1"], []), f"| {model} |")
        assert cells[-4] == cost
    place = tables["table1"].columns.index("backbone FLOPs, G")
    excess = {
        row.model[-1]: config_costs(row.config)[1] / 1e9 / row.values[place] - 1
        for row in tables["table1"].rows
        if row.model.startswith("DynamicSwin")
    }
    assert abs(excess["T"]) < 0.01 and all(0.03 < excess[size] < 0.045 for size in "SB")


def test_rows_whose_images_decide_have_no_count_unless_the_paper_says_what_they_kept():
    for name, kept in (
        ("multilabel_spt_t_oracle", False),
        ("multilabel_vit_b_oracle", False),
        ("multilabel_vit_b", True),
    ):
        assert (config_costs(f"VOC-Classification/{name}.yaml") is not None) is kept
    small, large = (
        config_costs("VOC-Classification/multilabel_vit_b.yaml", size)[0] for size in ((224, 224), (448, 448))
    )
    # Linear layers by four, pairs of the blocks of global attention by sixteen.
    assert 4 < large / small < 16


def test_every_row_of_a_backbone_that_has_configs_names_one():
    """As DAT's once did not: where a backbone is built, its rows of the paper have a config."""
    built = ("Swin-", "SPT-", "DAT-", "DynamicSwin-", "SparseViT")
    table = read_paper(PAPER)["table1"]
    assert {row.model for row in table.rows if row.config is None} == set()
    assert all(row.model.startswith(built) for row in table.rows)


def test_markers_that_are_missing_are_an_error():
    with pytest.raises(ValueError, match="one pair of markers <!-- table1 -->"):
        insert_tables("", read_paper(PAPER), [])


@pytest.mark.parametrize(
    "change, message",
    (
        ({"metrics": {"box_ap": [1.0]}}, "'box_ap' expects a number for each of 3 seeds"),
        ({"metrics": {"speed": [1.0, 1.0, 1.0]}}, "Got 'speed'"),
        ({"metrics": {}}, "at least one of"),
        ({"metrics": {"map": [1.0, float("nan"), 1.0]}}, "'map' expects a number"),
        ({"seeds": []}, "'seeds' expects at least one"),
        ({"seeds": [1, 1, 2]}, "'seeds' expects each once"),
        ({"commit": "main"}, "'commit' expects 40 hexadecimal digits"),
        ({"date": "yesterday"}, "'date' expects YYYY-MM-DD"),
        ({"data": "coco"}, "'data' expects train, test and images"),
        ({"hardware": ""}, "'hardware' expects a text"),
        ({"overrides": "SEED 1"}, "'overrides' expects a list of texts"),
        ({"extra": 1}, "'extra' is not known"),
    ),
    ids=str,
)
def test_a_results_file_without_provenance_is_refused(tmp_path, change, message):
    path = tmp_path / "record.json"
    path.write_text(json.dumps({**RECORD, **change}))
    with pytest.raises(ValueError, match=message) as caught:
        read_record(path)
    assert "record.json" in str(caught.value)


def test_every_key_of_a_results_file_is_needed(tmp_path):
    for key in RECORD:
        path = tmp_path / "record.json"
        path.write_text(json.dumps({name: value for name, value in RECORD.items() if name != key}))
        with pytest.raises(ValueError, match=f"'{key}' is missing"):
            read_record(path)


def test_the_example_of_the_format_is_a_results_file(tmp_path):
    (example,) = re.findall(r"```json\n(.*?)```", (ROOT / "results" / "README.md").read_text(), re.DOTALL)
    (tmp_path / "example.json").write_text(example)
    assert read_record(tmp_path / "example.json").seeds == (0, 1, 2)
