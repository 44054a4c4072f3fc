"""Which evaluators a data set and a model call for."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation import COCOEvaluator, COCOPanopticEvaluator, SemSegEvaluator

from spt_d2.engine.evaluators import build_evaluator, detection_tasks
from spt_d2.evaluation import SelectionEvaluator


@pytest.fixture
def register(tmp_path: Path) -> Iterator:
    """Register an empty data set with an ``evaluator_type``."""
    names = []

    def make(kind: str | None) -> str:
        name = f"evaluated_{len(names)}"
        names.append(name)
        path = tmp_path / f"{name}.json"
        path.write_text(json.dumps({"info": {}, "images": [], "annotations": [], "categories": []}))
        DatasetCatalog.register(name, list)
        metadata = MetadataCatalog.get(name)
        metadata.set(json_file=str(path), image_root="", stuff_classes=["a"], ignore_label=255)
        metadata.set(panoptic_json="", panoptic_root="", thing_dataset_id_to_contiguous_id={})
        metadata.set(stuff_dataset_id_to_contiguous_id={})
        if kind is not None:
            metadata.set(evaluator_type=kind)
        return name

    yield make
    for name in names:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        (None, [COCOEvaluator]),
        ("coco", [COCOEvaluator]),
        ("sem_seg", [SemSegEvaluator]),
        ("coco_panoptic_seg", [SemSegEvaluator, COCOEvaluator, COCOPanopticEvaluator]),
    ],
)
@pytest.mark.parametrize("selections", [False, True])
def test_the_type_of_a_data_set_chooses_its_evaluators(
    kind: str | None, expected: list[type], selections: bool, register, tmp_path: Path
) -> None:
    built = build_evaluator(register(kind), str(tmp_path / "out"), selections=selections)
    assert [type(e) for e in built._evaluators] == expected + [SelectionEvaluator] * selections


def test_an_unknown_type_is_refused_and_the_known_ones_are_named(register, tmp_path: Path) -> None:
    with pytest.raises(KeyError, match="coco_panoptic_seg.*'cityscapes'"):
        build_evaluator(register("cityscapes"), str(tmp_path))


def test_tasks_are_those_of_the_model_even_if_it_predicts_nothing() -> None:
    assert detection_tasks(False) == ("bbox",)
    assert detection_tasks(True) == ("bbox", "segm")
    assert detection_tasks(True, True) == ("bbox", "segm", "keypoints")
