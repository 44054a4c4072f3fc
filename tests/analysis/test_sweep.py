"""A sweep of a tiny model: its points, its resumption, its picture, and the program."""

import json
import math

import numpy as np
import pytest

pytest.importorskip("detectron2")

from spt_d2.analysis import sweep as sweep_module
from spt_d2.analysis.operating_point import OperatingPoint
from spt_d2.analysis.sweep import operating_points, sweep
from spt_d2.analysis.sweep_figure import draw_sweep
from spt_d2.engine.model_config import open_config
from tests.conftest import ROOT, load_program

POINTS = operating_points([0.2, 0.01], [0.3, 1.0], [2])
SETTINGS = {"config_name": "tiny.yaml", "dataset": "tiny_val", "timing_images": 1, "rounds": 1, "warmup": 0}


@pytest.fixture(scope="module")
def whole(tiny, tiny_weights, tmp_path_factory):
    """Folder and record of a sweep that nothing interrupted."""
    folder = tmp_path_factory.mktemp("sweep")
    return folder, sweep(tiny, POINTS, str(folder), weights=tiny_weights, **SETTINGS)


def test_points_are_the_model_as_trained_and_each_value_once_in_order():
    assert operating_points([0.5, 0.1, 0.5], [], [7, 3]) == [
        OperatingPoint("configured"),
        OperatingPoint("threshold", 0.1),
        OperatingPoint("threshold", 0.5),
        OperatingPoint("token_budget", 3),
        OperatingPoint("token_budget", 7),
    ]


def test_every_point_keeps_what_it_says(whole):
    folder, record = whole
    found = {(point["kind"], point["value"]): point for point in record["points"]}
    assert list(found) == [(point.kind, point.value) for point in POINTS]
    # Images of 64 px: 16 tokens in stage 3, 4 in stage 4; two blocks and one.
    kept = 2 * math.ceil(0.3 * 16) + math.ceil(0.3 * 4)
    assert found["keep_ratio", 0.3]["keep_ratio"] == pytest.approx(kept / 36)
    assert found["keep_ratio", 1.0]["keep_ratio"] == 1.0
    assert found["keep_ratio", 1.0]["macs_g"]["executed"] > found["keep_ratio", 0.3]["macs_g"]["executed"]
    assert 0 < found["token_budget", 2]["keep_ratio"] <= 6 / 36
    assert found["threshold", 0.2]["keep_ratio"] < found["threshold", 0.01]["keep_ratio"] < 1
    for point in record["points"]:
        assert set(point["accuracy"]) == {"bbox", "segm"}
        assert point["accuracy"]["bbox"] == point["results"]["bbox"]["AP"]
        assert point["latency"]["passes"] == 1 and point["latency"]["median_ms"] > 0
    assert json.loads((folder / "sweep.json").read_text())["points"] == record["points"]
    assert record["timing"]["threads"] >= 1


def test_the_model_as_trained_gives_what_its_evaluation_gives(whole, tiny, tiny_weights, tmp_path):
    results = tiny.evaluate(tiny.load_model(tiny_weights), "tiny_val", str(tmp_path))
    point = whole[1]["points"][0]
    assert point["keep_ratio"] == results["selection"]["keep_ratio"]
    assert point["accuracy"] == {task: results[task]["AP"] for task in ("bbox", "segm")}


def test_an_interrupted_sweep_goes_on_where_it_was(whole, tiny, tiny_weights, tmp_path, monkeypatch):
    evaluate, evaluated = tiny.evaluate, []

    def stopped(*arguments):
        if len(evaluated) == 2:
            raise KeyboardInterrupt
        evaluated.append(arguments)
        return evaluate(*arguments)

    points = [POINTS[0], POINTS[2], POINTS[-1]]
    monkeypatch.setattr(tiny, "evaluate", stopped)
    with pytest.raises(KeyboardInterrupt):
        sweep(tiny, points, str(tmp_path), weights=tiny_weights, **SETTINGS)
    assert [p["latency"] for p in json.loads((tmp_path / "sweep.json").read_text())["points"]] == [None, None]

    def counted(*arguments):
        evaluated.append(arguments)
        return evaluate(*arguments)

    monkeypatch.setattr(tiny, "evaluate", counted)
    resumed = sweep(tiny, points, str(tmp_path), weights=tiny_weights, **SETTINGS)
    assert len(evaluated) == len(points)
    uninterrupted = [whole[1]["points"][POINTS.index(point)] for point in points]
    for first, second in zip(uninterrupted, resumed["points"], strict=True):
        assert {**first, "latency": None, "date": None} == {**second, "latency": None, "date": None}
        assert second["latency"] is not None

    # All there: nothing is evaluated or timed again.
    monkeypatch.setattr(sweep_module, "time_backbone", None)
    assert sweep(tiny, points, str(tmp_path), weights=tiny_weights, **SETTINGS) == resumed
    assert len(evaluated) == len(points)


def test_a_sweep_of_something_else_in_the_folder_is_an_error(whole, tiny, tiny_weights):
    with pytest.raises(ValueError, match="same model and data(.|\n)*dataset: tiny_val in the file, tiny_train asked"):
        sweep(tiny, POINTS, str(whole[0]), weights=tiny_weights, **{**SETTINGS, "dataset": "tiny_train"})


def test_a_file_that_cannot_be_read_is_an_error_and_stays(tiny, tiny_weights, tmp_path):
    broken = tmp_path / "sweep.json"
    broken.write_text('{"points": [')
    with pytest.raises(ValueError, match=r"expects a JSON file of a sweep, or none. Got .*sweep\.json"):
        sweep(tiny, POINTS, str(tmp_path), weights=tiny_weights, **SETTINGS)
    assert broken.read_text() == '{"points": ['


def test_the_same_config_with_another_override_is_something_else(whole, tiny_config, tiny_lazy_config, tiny_weights):
    shared = open_config(str(tiny_config), ["DATALOADER.NUM_WORKERS", "0", "MODEL.SPT.SEGMENT", "shared"])
    with pytest.raises(ValueError, match="same model and data(.|\n)*config_sha256: "):
        sweep(shared, POINTS, str(whole[0]), weights=tiny_weights, **SETTINGS)
    for path, changed, elsewhere in (
        (tiny_config, ["INPUT.MIN_SIZE_TEST", "96"], ["OUTPUT_DIR", "elsewhere"]),
        (tiny_lazy_config, ["model.backbone.bottom_up.segment=shared"], ["train.output_dir=elsewhere"]),
    ):
        text = open_config(str(path)).text()
        assert text != open_config(str(path), changed).text() and text == open_config(str(path), elsewhere).text()
        assert " at 0x" not in text


def test_an_oracle_fails_before_anything_is_evaluated(tiny_config, tiny_weights, tmp_path, monkeypatch):
    oracle = open_config(str(tiny_config), ["MODEL.SPT.SELECT", "oracle", "MODEL.SPT.SUPERVISE", "False"])
    monkeypatch.setattr(oracle, "evaluate", None)
    with pytest.raises(ValueError, match="selects without labels. Got SELECT oracle at configured"):
        sweep(oracle, POINTS, str(tmp_path), weights=tiny_weights, **SETTINGS)


def test_a_point_out_of_range_fails_before_anything_is_evaluated(tiny, tiny_weights, tmp_path, monkeypatch):
    monkeypatch.setattr(tiny, "evaluate", None)
    points = [*POINTS, OperatingPoint("threshold", 2.0)]
    with pytest.raises(ValueError, match="threshold expects a probability"):
        sweep(tiny, points, str(tmp_path), weights=tiny_weights, **SETTINGS)


def test_picture_has_a_panel_for_each_task_and_one_for_time(whole):
    record = whole[1]
    picture = draw_sweep(record, "tiny")
    assert picture.dtype == np.uint8 and picture.ndim == 3 and picture.std() > 10
    # A second row over the budgets, where there are any.
    shares = [point for point in record["points"] if point["kind"] != "token_budget"]
    assert 1.9 < picture.shape[0] / draw_sweep({**record, "points": shares}, "tiny").shape[0] < 2.1
    one_task = [{**point, "accuracy": {"bbox": point["accuracy"]["bbox"]}} for point in record["points"]]
    assert draw_sweep({**record, "points": one_task}).shape[1] < picture.shape[1]


def test_program_leaves_a_json_and_a_picture(tiny_lazy_config, tiny_weights, tmp_path, capsys):
    program = load_program(ROOT / "tools" / "sweep_keep_ratio.py")
    arguments = ["--thresholds", "0.1", "--keep-ratios", "--token-budgets", "3", "--output", str(tmp_path)]
    timing = ["--timing-images", "1", "--rounds", "1", "--warmup", "0"]
    record = program.main(
        ["--config-file", str(tiny_lazy_config), *arguments, *timing, f"train.init_checkpoint={tiny_weights}"]
    )
    assert [point["kind"] for point in record["points"]] == ["configured", "threshold", "token_budget"]
    assert (tmp_path / "sweep.json").exists() and (tmp_path / "sweep.png").stat().st_size > 1000
    assert "token_budget 3" in capsys.readouterr().out
