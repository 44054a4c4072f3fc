"""What is refused before hours are spent."""

from dataclasses import replace
from pathlib import Path

import pytest
from detectron2.data import MetadataCatalog

from spt_d2.compare.checks import check_results, check_runs
from spt_d2.compare.matrix import Matrix
from spt_d2.compare.plan import DataSet, Plan, Variant
from spt_d2.compare.plan_file import plan_of_configs

from .synthetic import result, write

SPT = "Shapes-InstanceSegmentation/mask_rcnn_spt_nano_fpn_demo.yaml"


@pytest.fixture
def data_set(tiny_shapes: list[list[str]]) -> DataSet:
    """One that is there, in ``DATASETS.CUSTOM``."""
    names = {"DATASETS.TRAIN": ["tiny_train"], "DATASETS.TEST": ["tiny_val"]}
    return DataSet("tiny", overrides={"DATASETS.CUSTOM": tiny_shapes, **names})


def plan_of(data_set: DataSet, config: str = SPT, **overrides: object) -> Plan:
    return Plan("made_up", (data_set,), (Variant("only", config, overrides),), (0,), "only")


def test_a_detector_on_data_that_is_there_passes(data_set: DataSet) -> None:
    plan = plan_of(data_set)
    check_runs(plan, plan.runs())


def test_a_classifier_whose_map_no_column_is_for_is_refused(data_set: DataSet) -> None:
    plan = plan_of(data_set, "VOC-Classification/multilabel_spt_nano_shapes.yaml")
    with pytest.raises(ValueError, match=r"tiny / only: .*expects a detector.*Got .*MultiLabelClassifier(.|\n)*HINT"):
        check_runs(plan, plan.runs())


def test_a_data_set_that_is_not_registered_is_refused_and_not_made_up(data_set: DataSet) -> None:
    overrides = {**data_set.overrides, "DATASETS.TRAIN": ["tiny_trian"]}
    plan = plan_of(replace(data_set, overrides=overrides))
    with pytest.raises(ValueError, match="tiny / only: .* registered data sets. Got 'tiny_trian'"):
        check_runs(plan, plan.runs())
    assert "tiny_trian" not in MetadataCatalog


def test_a_key_that_no_config_has_is_refused(data_set: DataSet) -> None:
    plan = plan_of(data_set, **{"SOLVER.BASE_LRR": 1.0})
    with pytest.raises(ValueError, match="tiny / only: .*SOLVER.BASE_LRR"):
        check_runs(plan, plan.runs())


# Results of another comparison in the folder


def comparison(*names: str) -> Plan:
    """As a command line without a plan names it: always ``comparison``."""
    return plan_of_configs([f"{name}.yaml" for name in names], ["shapes"])


@pytest.mark.parametrize(
    "plan, others",
    [
        (comparison("dat", "vit"), ["comparison / dense (dense.yaml; reference dense)", "comparison / spt (spt.yaml"]),
        (comparison("dense", "vit"), ["comparison / spt (spt.yaml; reference dense)"]),
        (replace(comparison("dense", "spt"), name="screen"), ["comparison / dense (", "comparison / spt ("]),
        (replace(comparison("dense", "spt"), reference="spt"), ["comparison / dense (", "comparison / spt ("]),
    ],
    ids=["other configs", "another config", "another plan", "another reference"],
)
def test_a_comparison_is_refused_where_results_of_another_lie(plan: Plan, others: list[str], tmp_path: Path) -> None:
    named = {"plan": "comparison"}
    folder = write(tmp_path / "results", [result(**named), result(variant="spt", **named)])
    said: list[str] = []
    with pytest.raises(ValueError, match="expects results of the plan") as caught:
        Matrix(plan, str(tmp_path / "runs"), str(folder), 1, 1, said.append).perform()
    assert [line.strip()[: len(other)] for line, other in zip(str(caught.value).splitlines()[1:], others)] == others
    assert len(str(caught.value).splitlines()) == 2 + len(others)
    assert "--name NAME" in str(caught.value)
    assert not said and not (tmp_path / "runs").exists()


def test_results_that_cannot_be_written_are_said_before_anything_is_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Of configs that are not there, which would be said first.
    monkeypatch.setattr("spt_d2.compare.matrix.check_runs", lambda plan, runs: None)
    (tmp_path / "file").write_text("")
    said: list[str] = []
    matrix = Matrix(
        comparison("dense", "spt"), str(tmp_path / "runs"), str(tmp_path / "file/results"), 1, 1, said.append
    )
    with pytest.raises(ValueError, match="--results expects a folder that can be written to. Got .*file/results"):
        matrix.perform()
    assert not said and not (tmp_path / "runs").exists()


def test_a_plan_with_more_variants_or_only_a_part_of_it_goes_on_among_its_results(tmp_path: Path) -> None:
    named = {"plan": "comparison"}
    folder = write(tmp_path, [result(**named), result(variant="spt", **named), result(variant="spt", seed=7, **named)])
    check_results(comparison("dense", "dat", "spt"), folder)
    check_results(comparison("dense", "spt").restricted(variants=["dense"], seeds=[1]), folder)
    check_results(comparison("dense", "spt"), tmp_path / "none")
