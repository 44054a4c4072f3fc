"""Results of the evaluator, beside others and over processes, however images are dealt out."""

import json
import math

import numpy as np
import pytest
import torch

pytest.importorskip("detectron2")
from detectron2.data import MetadataCatalog
from detectron2.evaluation import DatasetEvaluators
from detectron2.utils import comm

from spt_d2.evaluation import MultiLabelEvaluator, SelectionEvaluator
from spt_d2.evaluation.average_precision import FLAVOURS, average_precision
from spt_d2.ops.selection import ImageBlockSelection, ImageSelection

CLASSES = ("cat", "dog", "never shown", "cow")
COUNT = 24


@pytest.fixture(scope="module")
def dataset():
    name = "test_multi_label_evaluator"
    MetadataCatalog.get(name).set(thing_classes=list(CLASSES))
    yield name
    MetadataCatalog.remove(name)


def pairs() -> list[tuple[dict, dict]]:
    """Logits with ties, every class but one shown by some images, some of them difficult only."""
    generator = torch.Generator().manual_seed(0)
    rows = []
    for index in range(COUNT):
        shown = torch.rand(len(CLASSES), generator=generator) < 0.4
        shown[2] = False
        ignored = shown & (torch.rand(len(CLASSES), generator=generator) < 0.4)
        logits = (torch.randn(len(CLASSES), generator=generator) * 2).round() / 2
        given = {"image_id": f"2012_{index:06d}", "labels": shown.float(), "labels_ignored": ignored}
        rows.append((given, {"logits": logits, "scores": logits.sigmoid()}))
    return rows


def evaluate(name, rows, *arguments, **options):
    evaluator = MultiLabelEvaluator(name, *arguments, **options)
    evaluator.reset()
    for given, output in rows:
        evaluator.process([given], [output])
    return evaluator.evaluate()


def expected_ap(k: int, flavour: str) -> float:
    rows = [(given, output) for given, output in pairs() if not given["labels_ignored"][k]]
    scores = np.array([float(output["logits"][k]) for _, output in rows])
    return 100 * average_precision(scores, np.array([bool(given["labels"][k]) for given, _ in rows]), flavour)


@pytest.mark.parametrize("flavour", FLAVOURS)
def test_results_are_the_mean_over_classes_in_percent(dataset, flavour):
    results = evaluate(dataset, pairs(), flavour)["multi_label"]
    by_class = {name: expected_ap(k, flavour) for k, name in enumerate(CLASSES) if k != 2}
    assert {key: value for key, value in results.items() if key.startswith("AP-")} == {
        f"AP-{name}": pytest.approx(ap, rel=1e-12) for name, ap in by_class.items()
    }
    assert results["mAP"] == pytest.approx(sum(by_class.values()) / 3, rel=1e-12)
    others = [other for other in FLAVOURS if other != flavour]
    assert list(results)[:3] == ["mAP", *(f"mAP_{other}" for other in others)]
    for other in others:
        assert results[f"mAP_{other}"] == evaluate(dataset, pairs(), other)["multi_label"]["mAP"]
    assert len({results["mAP"], *(results[f"mAP_{other}"] for other in others)}) == 3


def test_what_the_model_says_of_an_ignored_class_does_not_matter(dataset):
    rows = pairs()
    before = evaluate(dataset, rows)
    for given, output in rows:
        output["logits"] = output["logits"].masked_fill(given["labels_ignored"], 99.0)
    assert evaluate(dataset, rows) == before
    rows[0][1]["logits"][0] += 99
    assert evaluate(dataset, rows) != before


def test_results_and_a_row_per_image_are_written(dataset, tmp_path):
    results = evaluate(dataset, pairs(), "step", output_dir=str(tmp_path / "out"))
    written = json.loads((tmp_path / "out" / "multi_label_results.json").read_text())
    assert (written["multi_label"], written["flavour"]) == (results["multi_label"], "step")
    assert written["classes"] == list(CLASSES)
    for row, (given, output) in zip(written["images"], pairs(), strict=True):
        assert row["image_id"] == given["image_id"]
        assert row["logits"] == output["logits"].double().tolist()
        assert row["labels"] == torch.nonzero(given["labels"]).flatten().tolist()
        assert row["ignored"] == torch.nonzero(given["labels_ignored"]).flatten().tolist()


def test_classes_without_names_are_numbered():
    results = evaluate("test_multi_label_nameless", pairs())["multi_label"]
    assert "AP-0" in results and "AP-3" in results
    MetadataCatalog.remove("test_multi_label_nameless")


def test_no_image_and_no_class_give_no_result(dataset):
    assert MultiLabelEvaluator(dataset).evaluate() == {}
    given = {"labels": torch.zeros(4), "labels_ignored": torch.zeros(4, dtype=torch.bool)}
    assert evaluate(dataset, [(given, {"logits": torch.zeros(4)})]) == {"multi_label": {}}


def test_it_works_beside_the_selection_evaluator(dataset):
    keep = torch.ones(2, 2, dtype=torch.bool)
    selection = ImageSelection([ImageBlockSelection(3, 0, 16, torch.zeros(2, 2), keep, 4, 16.0, 16.0)], (32, 32))
    both = DatasetEvaluators([MultiLabelEvaluator(dataset), SelectionEvaluator()])
    both.reset()
    for given, output in pairs():
        both.process([given], [{**output, "selection": selection}])
    results = both.evaluate()
    assert set(results) == {"multi_label", "selection"}
    assert results["multi_label"] == evaluate(dataset, pairs())["multi_label"]


@pytest.mark.parametrize("first", [0, COUNT, 7])
def test_two_processes_equal_one_however_images_are_dealt_out(dataset, monkeypatch, first):
    """Runs of consecutive images, as Detectron2 deals them out; tests/engine has true processes."""
    shares = []
    for rows in (pairs()[:first], pairs()[first:]):
        evaluator = MultiLabelEvaluator(dataset)
        for given, output in rows:
            evaluator.process([given], [output])
        monkeypatch.setattr(comm, "gather", lambda records, dst: shares.append(records) or shares)
        monkeypatch.setattr(comm, "is_main_process", lambda: len(shares) == 2)
        results = evaluator.evaluate()
        assert results == ({} if len(shares) == 1 else evaluate(dataset, pairs(), distributed=False))


def test_errors_name_the_cure(dataset):
    given, output = pairs()[0]
    with pytest.raises(ValueError, match=r"flavour=\) expects one of .* Got 'coco'"):
        MultiLabelEvaluator(dataset, "coco")
    evaluator = MultiLabelEvaluator(dataset)
    with pytest.raises(ValueError, match=r"output: \['instances'\]\nHINT: use MultiLabelDatasetMapper"):
        evaluator.process([given], [{"instances": None}])
    with pytest.raises(ValueError, match=r"input : \['image_id'\]"):
        evaluator.process([{"image_id": 1}], [output])
    few = {"labels": given["labels"][:2], "labels_ignored": given["labels_ignored"][:2]}
    evaluator.process([few], [{"logits": output["logits"][:2]}])
    with pytest.raises(ValueError, match=r"4 classes\n  model: 2 classes\nHINT: MODEL.MULTI_LABEL.NUM_CLASSES"):
        evaluator.evaluate()
    with pytest.raises(ValueError, match="Got NaN"):
        evaluate(dataset, [(given, {"logits": torch.full((4,), math.nan)})])
