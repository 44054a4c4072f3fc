"""A search on a tiny model: what it measures, its resumption, its front, its yaml, and the program."""

import json
import math

import pytest

pytest.importorskip("detectron2")
from detectron2.config import LazyConfig
from detectron2.data import DatasetCatalog, MetadataCatalog

from spt_d2 import get_config_file
from spt_d2.engine.model_config import open_config
from spt_d2.engine.setup import load_config
from spt_d2.sparsity_search import SearchOptions, search_sparsity
from spt_d2.sparsity_search import trials as trials_module
from spt_d2.sparsity_search.capped import register_capped
from spt_d2.sparsity_search.search import best_overrides, best_yaml, pareto_front
from spt_d2.sparsity_search.trials import Trials
from tests.conftest import ROOT, load_program

OPTIONS = SearchOptions(population=3, parents=2, generations=2)
DATA = {"config_name": "sparse.yaml", "dataset": "tiny_val", "images": 3}
TIMING = {"timing_images": 1, "rounds": 1, "warmup": 0}


def without_times(found: dict) -> dict:
    return {key: value for key, value in found.items() if key not in ("latency_ms", "of_dense", "date")}


@pytest.fixture(scope="module")
def whole(sparse, sparse_weights, tmp_path_factory):
    """Folder and outcome of a search that nothing interrupted and nothing bounds."""
    folder = tmp_path_factory.mktemp("search")
    return folder, search_sparsity(sparse, str(folder), OPTIONS, weights=sparse_weights, **DATA, **TIMING)


def test_a_search_leaves_what_it_measured(whole, sparse, sparse_weights, tmp_path):
    folder, found = whole
    record = json.loads((folder / "search.json").read_text())
    assert record["dataset"] == "tiny_val" and record["images"] == 3 and record["timing"]["threads"] >= 1
    candidates = record["candidates"]
    assert len(candidates) == found["measured"] and found["evaluated"] >= 4
    dense = candidates[0]
    assert dense == found["dense"] and dense["ratios"] == [[0.0], [0.0], [0.0, 0.0], [0.0]]
    assert dense["of_dense"] == 1.0 and dense["latency_ms"] == record["dense_ms"] and dense["by_stage"] == {}
    for candidate in candidates:
        assert candidate["latency_ms"] == pytest.approx(candidate["of_dense"] * record["dense_ms"]) and (
            candidate["latency_ms"] > 0
        )
        if candidate["accuracy"] is not None:
            assert candidate["accuracy"] == candidate["accuracies"]["bbox"] and "segm" in candidate["accuracies"]
            skipping = {f"stage{i}" for i, stage in enumerate(candidate["ratios"], start=1) if max(stage) > 0}
            assert set(candidate["by_stage"]) == skipping
            assert (candidate["macs_g"] < dense["macs_g"]) == any(
                max(stage) > 0 for stage in candidate["ratios"][:3]
            ), "stage 4 has one window at 64 px, which always runs"
    evaluated = [candidate for candidate in candidates if candidate["accuracy"] is not None]
    assert found["best"] in evaluated and found["front"] == pareto_front(evaluated)
    # At the ratios found, the model gives what was measured.
    model = sparse.load_model(sparse_weights)
    model.backbone.bottom_up.set_pruning_ratios(found["best"]["ratios"])
    part = register_capped("tiny_val", 3, str(tmp_path))
    assert sparse.evaluate(model, part, str(tmp_path))["bbox"]["AP"] == found["best"]["accuracy"]


def test_an_interrupted_search_goes_on_where_it_was(whole, sparse, sparse_weights, tmp_path, monkeypatch):
    evaluate, evaluated = sparse.evaluate, []

    def stopped(*arguments):
        if len(evaluated) == 2:
            raise KeyboardInterrupt
        return counted(*arguments)

    def counted(*arguments):
        evaluated.append(arguments)
        return evaluate(*arguments)

    def search():
        return search_sparsity(sparse, str(tmp_path), OPTIONS, weights=sparse_weights, **DATA, **TIMING)

    monkeypatch.setattr(sparse, "evaluate", stopped)
    with pytest.raises(KeyboardInterrupt):
        search()
    monkeypatch.setattr(sparse, "evaluate", counted)
    resumed = search()
    assert len(evaluated) == resumed["evaluated"] == whole[1]["evaluated"]
    records = [json.loads((folder / "search.json").read_text()) for folder in (whole[0], tmp_path)]
    first, second = ([without_times(found) for found in record["candidates"]] for record in records)
    assert first == second
    # All there: nothing is evaluated or timed again.
    monkeypatch.setattr(trials_module, "time_settings", None)
    assert search() == resumed and len(evaluated) == resumed["evaluated"]


def trials(config, weights, folder, **changed) -> Trials:
    arguments = {**DATA, **TIMING, "task": "bbox", "path": str(folder / "search.json"), "weights": weights}
    return Trials(config, **{**arguments, **changed})


def test_bounds_hold_and_milliseconds_are_shares_of_the_first_dense_time(sparse, sparse_weights, tmp_path, monkeypatch):
    """A machine of which every run is slower by half than the one before, and whose time is the work done."""
    paces = []

    def clock(model, settings, inputs, *, rounds, warmup):
        paces.append(10.0 * 1.5 ** len(paces))
        times = []
        for setting in settings:
            with setting():
                ratios = model.backbone.bottom_up.pruning_ratios
            work = 1 - sum(sum(stage) / len(stage) for stage in ratios) / 4
            times.append(type("Latency", (), {"median_ms": work * paces[-1]}))
        return times

    monkeypatch.setattr(trials_module, "time_settings", clock)
    options = SearchOptions(max_ms=7.0, min_ms=5.0, population=4, parents=2, generations=2)
    found = search_sparsity(sparse, str(tmp_path), options, weights=sparse_weights, **DATA, **TIMING)
    assert len(paces) > 2
    for candidate in json.loads((tmp_path / "search.json").read_text())["candidates"]:
        skipped = sum(sum(stage) / len(stage) for stage in candidate["ratios"]) / 4
        assert candidate["latency_ms"] == pytest.approx(10.0 * (1 - skipped))
        is_dense = skipped == 0
        assert (candidate["accuracy"] is not None) == (is_dense or 5.0 <= candidate["latency_ms"] <= 7.0)
    assert 5.0 <= found["best"]["latency_ms"] <= 7.0 and found["dense"]["latency_ms"] == 10.0
    with pytest.raises(ValueError, match=r"candidates of 20 to 30 ms. Got \d+ of .* dense: 10.00 ms(.|\n)*HINT"):
        bounds = SearchOptions(max_ms=30.0, min_ms=20.0, population=2, parents=1)
        search_sparsity(sparse, str(tmp_path), bounds, weights=sparse_weights, **DATA, **TIMING)


def test_a_trial_leaves_the_model_as_it_was(sparse, sparse_weights, tmp_path):
    own = trials(sparse, sparse_weights, tmp_path)
    before = own.network.pruning_ratios
    own.milliseconds([own.space.dense])
    assert own.network.pruning_ratios == before != own.space.dense


def test_a_search_on_something_else_in_the_folder_is_an_error(whole, sparse, sparse_config, sparse_weights):
    folder = whole[0]
    for changed in ({"dataset": "tiny_train"}, {"images": 2}, {"task": "segm"}, {"rounds": 2}):
        key = "timing" if "rounds" in changed else next(iter(changed))
        with pytest.raises(ValueError, match=rf"same model, data and machine(.|\n)*{key}: "):
            trials(sparse, sparse_weights, folder, **changed)
    other = open_config(str(sparse_config), ["INPUT.MIN_SIZE_TEST", "96"])
    with pytest.raises(ValueError, match=r"same model, data and machine(.|\n)*config_sha256: "):
        trials(other, sparse_weights, folder)
    (folder / "broken.json").write_text("{")
    with pytest.raises(ValueError, match="expects a JSON file of a search, or none"):
        trials(sparse, sparse_weights, folder, path=str(folder / "broken.json"))


def test_what_cannot_be_searched_is_told_before_anything_is_measured(
    sparse, sparse_config, tiny_config, sparse_weights, tmp_path
):
    dense = open_config(str(tiny_config), ["MODEL.BACKBONE.NAME", "build_swin_fpn_backbone"])
    with pytest.raises(TypeError, match="expects a model over SparseViT. Got Swin"):
        trials(dense, sparse_weights, tmp_path)
    unlabelled = open_config(str(sparse_config), ["INPUT.SPT.STRIDES", "[4, 16]"])
    with pytest.raises(ValueError, match=r"labels at strides \[4, 8, 16, 32\](.|\n)*Got \[4, 16\](.|\n)*INPUT.SPT"):
        trials(unlabelled, sparse_weights, tmp_path)
    with pytest.raises(ValueError, match="a task with a finite AP on tiny_val_3_.*Got 'keypoints'"):
        own = trials(sparse, sparse_weights, tmp_path, task="keypoints")
        own.accuracy(own.space.dense)


def test_a_capped_data_set_has_images_spread_over_the_whole(sparse, tmp_path):
    part = register_capped("tiny_val", 2, str(tmp_path))
    every, some = DatasetCatalog.get("tiny_val"), DatasetCatalog.get(part)
    assert [image["file_name"] for image in some] == [every[i]["file_name"] for i in (0, 3)]
    assert [len(image["annotations"]) for image in some] == [len(every[i]["annotations"]) for i in (0, 3)]
    assert MetadataCatalog.get(part).thing_classes == MetadataCatalog.get("tiny_val").thing_classes
    assert register_capped("tiny_val", 2, str(tmp_path)) == part != register_capped("tiny_val", 2, str(tmp_path / "b"))
    assert register_capped("tiny_val", 6, str(tmp_path)) == "tiny_val"
    with pytest.raises(KeyError, match="expects a registered data set. Got 'nowhere'"):
        register_capped("nowhere", 2, str(tmp_path))
    with pytest.raises(ValueError, match="from a COCO json. Got 'voc_2007_val', of type 'pascal_voc'"):
        register_capped("voc_2007_val", 2, str(tmp_path))


def test_the_front_has_what_nothing_beats_in_both():
    def found(ms, accuracy):
        return {"latency_ms": ms, "accuracy": accuracy}

    front = [found(1, 10.0), found(2, 20.0), found(4, 30.0)]
    others = [found(1, 9.0), found(2.5, 20.0), found(3, 19.0), found(5, 30.0)]
    assert pareto_front([*others, *front[::-1]]) == front and pareto_front([]) == []


@pytest.mark.parametrize(
    "values, message",
    [
        ({"min_ms": 3.0, "max_ms": 3.0}, "0 <= min_ms < max_ms"),
        ({"min_ms": -1.0}, "0 <= min_ms < max_ms"),
        ({"parents": 101}, "1 <= parents <= population"),
        ({"generations": 0}, "at least 1 generation"),
        ({"mutation": 1.5}, r"mutation=\) expects a probability"),
        ({"max_ms": math.nan}, "0 <= min_ms < max_ms"),
    ],
)
def test_options_out_of_range_are_errors(values, message):
    with pytest.raises(ValueError, match=message):
        SearchOptions(**values)


def test_program_leaves_a_json_and_a_config_that_trains_at_what_was_found(
    sparse_config, sparse_weights, tmp_path, capsys
):
    program = load_program(ROOT / "tools" / "search_sparsity.py")
    sizes = ["--population", "2", "--parents", "1", "--generations", "1", "--images", "2"]
    timing = ["--timing-images", "1", "--rounds", "1", "--warmup", "0", "--output", str(tmp_path)]
    model = ["--config-file", str(sparse_config), "--weights", sparse_weights]
    found = program.main([*model, *sizes, *timing, "DATALOADER.NUM_WORKERS", "0"])
    printed = capsys.readouterr().out
    assert str(found["best"]["ratios"]) in printed and "Pareto front" in printed and " dense" in printed
    cfg = load_config(str(tmp_path / "best.yaml"))
    assert cfg.MODEL.SPARSE_VIT.PRUNING_RATIOS == found["best"]["ratios"] and not cfg.MODEL.SPARSE_VIT.SAMPLE_RATIOS
    assert cfg.MODEL.SPARSE_VIT.EMBED_DIM == 16 and cfg.DATALOADER.NUM_WORKERS == 0


def test_the_config_of_what_was_found_has_the_overrides_that_it_was_found_with(tmp_path):
    """A dense config is searched over by overriding its backbone: without them it would train what it names itself."""
    base = get_config_file("Shapes-InstanceSegmentation/mask_rcnn_swin_nano_fpn_demo.yaml")
    overrides = ["MODEL.BACKBONE.NAME", "build_sparse_vit_fpn_backbone", "INPUT.SPT.STRIDES", "[4, 8, 16, 32]"]
    overrides += [
        "DATASETS.TEST",
        "('mine_val',)",
        "OUTPUT_DIR",
        "of/the/search",
        "MODEL.SPARSE_VIT.SAMPLE_RATIOS",
        "True",
    ]
    ratios = [[0.1], [0.2], [0.3, 0.4], [0.5]]
    (tmp_path / "best.yaml").write_text(best_yaml(base, overrides, ratios, "Found\nhere"))
    cfg = load_config(str(tmp_path / "best.yaml"))
    assert cfg.MODEL.BACKBONE.NAME == "build_sparse_vit_fpn_backbone" and cfg.INPUT.SPT.STRIDES == [4, 8, 16, 32]
    assert cfg.DATASETS.TEST == ("mine_val",) and cfg.OUTPUT_DIR != "of/the/search"
    assert cfg.MODEL.SPARSE_VIT.PRUNING_RATIOS == ratios and not cfg.MODEL.SPARSE_VIT.SAMPLE_RATIOS


def test_overrides_of_a_lazy_config_train_at_what_was_found():
    leaf = "projects/SPT/configs/Shapes-InstanceSegmentation/mask_rcnn_sparse_vit_nano_fpn.py"
    cfg = LazyConfig.load(str(ROOT / leaf))
    ratios = [[0.1], [0.2], [0.3, 0.4], [0.5]]
    given = ["train.output_dir=of/the/search", "train.max_iter=7", "model.backbone.bottom_up.sample_ratios=True"]
    found = LazyConfig.apply_overrides(cfg, best_overrides(given, ratios))
    node = found.model.backbone.bottom_up
    assert node.pruning_ratios == ratios and node.sample_ratios is False
    assert found.train.max_iter == 7 and found.train.output_dir != "of/the/search"


def test_the_best_is_the_best_of_all_that_is_known_within_the_bounds(sparse, sparse_weights, tmp_path, monkeypatch):
    """Of an earlier search with wider bounds too, though the evolution of this one proposes others."""

    def clock(model, settings, inputs, *, rounds, warmup):
        times = []
        for setting in settings:
            with setting():
                ratios = model.backbone.bottom_up.pruning_ratios
            work = 1 - sum(sum(stage) / len(stage) for stage in ratios) / 4
            times.append(type("Latency", (), {"median_ms": 10.0 * work}))
        return times

    # Accuracy by time, best at six milliseconds.
    def evaluate(model, *arguments):
        ratios = model.backbone.bottom_up.pruning_ratios
        work = 10.0 * (1 - sum(sum(stage) / len(stage) for stage in ratios) / 4)
        return {"bbox": {"AP": -abs(work - 6.0)}}

    monkeypatch.setattr(trials_module, "time_settings", clock)
    monkeypatch.setattr(sparse, "evaluate", evaluate)

    def search(seed, **bounds):
        options = SearchOptions(population=6, parents=2, generations=3, seed=seed, **bounds)
        return search_sparsity(sparse, str(tmp_path), options, weights=sparse_weights, **DATA, **TIMING)

    wide = search(0)
    slowest = wide["best"]["latency_ms"] + 0.01
    narrow = search(1, min_ms=slowest - 3.0, max_ms=slowest)
    assert narrow["best"]["accuracy"] >= wide["best"]["accuracy"]
    within = [found for found in narrow["front"] if slowest - 3.0 <= found["latency_ms"] <= slowest]
    assert narrow["best"] in within and narrow["best"]["accuracy"] == max(found["accuracy"] for found in within)
    # Dense too, where the bounds let it in and it is the most accurate.
    monkeypatch.setattr(
        sparse, "evaluate", lambda model, *_: {"bbox": {"AP": -sum(map(sum, model.backbone.bottom_up.pruning_ratios))}}
    )
    options = SearchOptions(population=2, parents=1, generations=1)
    found = search_sparsity(sparse, str(tmp_path / "dense"), options, weights=sparse_weights, **DATA, **TIMING)
    assert found["best"] is found["dense"]


def test_weights_at_an_address_are_digested_where_they_were_downloaded_to(
    sparse, sparse_weights, tmp_path, monkeypatch
):
    asked = []
    monkeypatch.setattr(trials_module, "checkpoint_digest", lambda place: asked.append(place) or "ab" * 32)
    assert trials(sparse, sparse_weights, tmp_path).record["weights_sha256"] == "ab" * 32
    assert asked == [sparse_weights]
