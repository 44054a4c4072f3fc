"""Both mappers see the same images under the same augmentations, in COCO's format, and loaders give all of them."""

import numpy as np
import pytest
import torch

pytest.importorskip("detectron2", reason="detectron2 is not installed")

from pycocotools import mask as mask_util

from spt_d2.benchmark import data as data_module
from spt_d2.benchmark.cases import time_cases
from spt_d2.benchmark.data import loader_cases, mapper_cases, mappers, read_data
from spt_d2.benchmark.polygons import CORNERS, IMAGE_SIZE, OBJECTS, make_polygon_data
from tests.benchmark.nano import NANO
from tests.conftest import as_a_program

SMALL = {**NANO, "INPUT.MIN_SIZE_TRAIN": (96, 128), "INPUT.MIN_SIZE_TEST": 96}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    annotations, images = make_polygon_data(tmp_path_factory.mktemp("polygons"), images=9)
    return read_data(str(annotations), str(images))


def test_every_image_has_many_polygons_of_many_corners_inside_of_it(data):
    assert len(data) == 9 and {(d["height"], d["width"]) for d in data} == {IMAGE_SIZE}
    areas = []
    for given in data:
        assert len(given["annotations"]) == OBJECTS
        for annotation in given["annotations"]:
            (polygon,) = annotation["segmentation"]
            assert len(polygon) == 2 * CORNERS
            x, y = np.array(polygon).reshape(-1, 2).T
            assert min(x.min(), y.min()) >= 0 and x.max() <= IMAGE_SIZE[1] and y.max() <= IMAGE_SIZE[0]
            left, top, width, height = annotation["bbox"]
            np.testing.assert_allclose((x.min(), y.min(), np.ptp(x), np.ptp(y)), (left, top, width, height), atol=0.02)
            areas.append(mask_util.area(mask_util.frPyObjects([polygon], *IMAGE_SIZE)).item())
    assert max(areas) > 20 * min(areas) > 0


def test_the_same_data_comes_of_the_same_seed(tmp_path):
    first, second = (make_polygon_data(tmp_path / name, images=1)[0].read_text() for name in "ab")
    assert first == second


def test_both_map_the_same_image_in_the_same_way_in_every_round(data, monkeypatch):
    found = {"stock_mapper": [], "selection_mapper": []}
    real = mappers(SMALL)

    def spied(overrides):
        return {name: lambda given, name=name: found[name].append(real[name](given)) for name in real}

    monkeypatch.setattr(data_module, "mappers", spied)
    rows = time_cases(mapper_cases(data, SMALL), torch.device("cpu"), rounds=10, memory=False)
    assert [(row.name, row.mode) for row in rows] == [("stock_mapper", "map"), ("selection_mapper", "map")]
    assert rows[0].ratio_to_fastest_peer == 1.0
    assert len(found["stock_mapper"]) == len(found["selection_mapper"]) == 11
    for stock, ours in zip(found["stock_mapper"], found["selection_mapper"]):
        assert set(ours) - set(stock) == {"selection_labels"}
        assert stock["file_name"] == ours["file_name"] and torch.equal(stock["image"], ours["image"])
    assert len({given["file_name"] for given in found["stock_mapper"]}) == 9


def test_a_pass_of_a_loader_gives_every_image_and_counts_one(data):
    with as_a_program():
        cases = loader_cases(data, SMALL, workers=1)
        assert [case.repeats for case in cases] == [8, 8]
        for case in cases:
            passing = case.entry.run.__self__
            case.entry.prepare()
            left = [given[0]["file_name"] for given in passing.images]
            assert left == [given["file_name"] for given in data[1:]]
        rows = time_cases(cases[:1], torch.device("cpu"), rounds=1, warmup=0, memory=False)
    assert rows[0].mode == "load, 1 workers" and rows[0].peak_mb is None
