"""Figures of data sets and their sparse parts, against loops; the programs that print them."""

import copy
import json
from itertools import pairwise
from pathlib import Path

import cv2
import numpy as np
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog

from spt_d2.data.coco_json import annotations_by_image, read_coco, write_json
from spt_d2.data.coco_stats import RATIO_EDGES, STRIDES, measure_dataset, stats_table
from spt_d2.data.sparse_subset import sparse_subset
from spt_d2.data.stats_plot import draw_stats
from tests.conftest import load_program
from tests.data.devkit import IMAGES, SPLITS, H, W, make_devkit, registered
from tests.data.scenes import draw_box

ROOT = Path(__file__).resolve().parents[2]


def make_content(rng, count=24):
    """Images of many sizes, from empty to full; the last object of each is a crowd."""
    images, annotations = [], []
    for number in range(count):
        h, w = (int(v) for v in rng.integers(20, 90, 2))
        images.append({"id": 100 - number, "file_name": f"{number}.jpg", "height": h, "width": w})
        for place in range(number % 6):
            x, y = rng.uniform(0, w - 4), rng.uniform(0, h - 4)
            box = [float(v) for v in (x, y, rng.uniform(2, w - x), rng.uniform(2, h - y))]
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": 100 - number,
                    "category_id": int(rng.choice([3, 7])),
                    "bbox": box,
                    "area": box[2] * box[3],
                    "iscrowd": int(place == 4),
                }
            )
    categories = [{"id": i, "name": f"class {i}"} for i in (3, 5, 7)]
    return {"info": {"version": "1"}, "images": images, "annotations": annotations, "categories": categories}


def slow_cover(content, image):
    """(k, h, w) bool, each object of an image drawn alone."""
    size = (image["height"], image["width"])
    boxes = [a["bbox"] for a in content["annotations"] if a["image_id"] == image["id"] and not a["iscrowd"]]
    boxes = [np.float32([x, y, np.float32(x) + np.float32(w), np.float32(y) + np.float32(h)]) for x, y, w, h in boxes]
    boxes = [np.clip(box, 0, [size[1], size[0]] * 2).tolist() for box in boxes]
    return np.array([draw_box(box, size) for box in boxes], dtype=bool).reshape(len(boxes), *size)


@pytest.fixture
def content():
    return make_content(np.random.default_rng(0))


def test_figures_are_those_of_slow_loops(content):
    stats = measure_dataset(content, "box")
    covers = [slow_cover(content, image) for image in content["images"]]
    np.testing.assert_allclose(stats.unions, [cover.any(axis=0).mean() for cover in covers])
    np.testing.assert_allclose(stats.sums, [cover.sum() / cover[0].size if len(cover) else 0 for cover in covers])
    np.testing.assert_array_equal(stats.per_image, [len(cover) for cover in covers])
    summary = stats.summary()
    for stride in STRIDES:
        hits, cells = 0, 0
        for cover in covers:
            union = cover.any(axis=0)
            for i in range(0, union.shape[0], stride):
                for j in range(0, union.shape[1], stride):
                    hits, cells = hits + bool(union[i : i + stride, j : j + stride].any()), cells + 1
        assert summary["token_density"][str(stride)] == hits / cells
    objects = [a for a in content["annotations"] if not a["iscrowd"]]
    assert summary["images"] == 24 and summary["objects"] == len(objects) and summary["empty_share"] == 4 / 24
    assert summary["crowds"] == len(content["annotations"]) - len(objects) > 0
    assert summary["objects_per_image"] == len(objects) / 24
    assert summary["classes"] == {f"class {i}": sum(a["category_id"] == i for a in objects) for i in (3, 5, 7)}
    assert summary["buckets"] == {
        "small": sum(a["area"] < 1024 for a in objects),
        "medium": sum(1024 <= a["area"] < 9216 for a in objects),
        "large": 0,
    }
    assert summary["box_side"]["max"] == max(max(a["bbox"][2:]) for a in objects)
    assert summary["area"]["p50"] == pytest.approx(np.median([a["area"] for a in objects]))
    assert summary["ratio_union"]["mean"] == pytest.approx(stats.unions.mean())
    assert summary["below_25"] == {
        "union": np.mean([u < 0.25 for u in stats.unions]),
        "sum": np.mean([s < 0.25 for s in stats.sums]),
    }
    json.dumps(summary, allow_nan=False)


def test_histogram_counts_every_image_once(content):
    stats = measure_dataset(content, "box")
    share = stats.histogram()
    assert share.sum() == pytest.approx(1) and len(share) == len(RATIO_EDGES)
    assert share[0] == (stats.unions == 0).mean() == 4 / 24
    for index, (low, high) in enumerate(pairwise(RATIO_EDGES)):
        last = high == 1
        inside = (stats.unions > 0) & (stats.unions >= low) & ((stats.unions < high) | last)
        assert share[index + 1] == pytest.approx(inside.mean())


def test_a_full_image_is_counted_in_the_last_bin():
    content = make_content(np.random.default_rng(1), 2)
    content["annotations"] = [{**content["annotations"][0], "bbox": [0.0, 0.0, 100.0, 100.0], "image_id": 100}]
    stats = measure_dataset(content, "box")
    assert stats.unions.tolist() == [1, 0] and stats.histogram()[-1] == 0.5


def test_objects_without_an_area_take_that_of_their_mask():
    content = make_content(np.random.default_rng(2), 2)
    (anno,) = content["annotations"]
    del anno["area"]
    anno.update(bbox=[2.0, 2.0, 10.0, 10.0], segmentation=[[2, 2, 12, 2, 2, 12]])
    (area,) = measure_dataset(content, "mask").areas
    assert 40 < area < 60


def test_an_empty_set_has_no_figures_but_no_error():
    summary = measure_dataset({"images": [], "annotations": [], "categories": []}, "auto").summary()
    assert summary["images"] == 0 and summary["empty_share"] is None and summary["ratio_union"]["mean"] is None
    assert "| -" in stats_table({"nothing": summary})


def test_an_unusable_box_names_its_image_and_the_cure(content):
    content["annotations"][0]["bbox"][0] = float("nan")
    number = content["annotations"][0]["image_id"]
    with pytest.raises(ValueError, match=f"(?s)^Image {number}: .*finite numbers.*HINT: tools/check_dataset.py"):
        measure_dataset(content, "box")


def test_table_has_a_row_for_every_stride_and_a_column_for_every_set(content):
    summary = measure_dataset(content, "box").summary()
    lines = stats_table({"one": summary, "two": summary}).splitlines()
    assert lines[0].split() == ["|", "|", "one", "|", "two", "|"]
    assert len({len(line) for line in lines}) == 1
    for stride in STRIDES:
        (row,) = [line for line in lines if f"at stride {stride} " in line]
        assert row.count(f"{100 * summary['token_density'][str(stride)]:.2f} %") == 2


def test_plot_draws_every_set(content):
    stats = measure_dataset(content, "box")
    one, two = draw_stats({"one": stats}), draw_stats({"one": stats, "two": stats})
    assert one.shape == two.shape and one.dtype == np.uint8 and (one != two).any()


@pytest.mark.parametrize("ratio", ["union", "sum"])
def test_subset_holds_exactly_the_images_below_the_bound(content, ratio):
    before = copy.deepcopy(content)
    subset, report = sparse_subset(content, 0.25, ratio, "box")
    assert content == before
    expected, shares = [], []
    for image in content["images"]:
        cover = slow_cover(content, image)
        share = cover.any(axis=0).mean() if ratio == "union" else cover.sum() / (image["height"] * image["width"])
        expected += [image] if share < 0.25 else []
        shares.append(share)
    assert subset["images"] == expected and 4 < len(expected) < 24
    ids = {image["id"] for image in expected}
    assert subset["annotations"] == [a for a in content["annotations"] if a["image_id"] in ids]
    assert subset["categories"] == content["categories"]
    assert subset["info"] == {"version": "1", "sparse_subset": {"max_ratio": 0.25, "ratio": ratio, "source": "box"}}
    objects = [a for a in content["annotations"] if not a["iscrowd"]]
    kept = [a for a in objects if a["image_id"] in ids]
    assert report.images == (len(expected), 24) and report.empty_images == (4, 4)
    assert report.objects == (len(kept), len(objects))
    assert report.annotations == (len(subset["annotations"]), len(content["annotations"]))
    for number in (3, 5, 7):
        counts = tuple(sum(a["category_id"] == number for a in some) for some in (kept, objects))
        assert report.classes[f"class {number}"] == counts
    assert report.mean_ratio == pytest.approx((np.mean([s for s in shares if s < 0.25]), np.mean(shares)))


def test_the_bound_itself_is_left_out():
    image = {"id": 1, "file_name": "a.jpg", "height": 40, "width": 40}
    anno = {"id": 1, "image_id": 1, "category_id": 1, "bbox": [0, 0, 20, 20], "iscrowd": 0, "area": 400}
    content = {"images": [image], "annotations": [anno], "categories": [{"id": 1, "name": "a"}]}
    assert sparse_subset(content, 0.25, "union", "box")[0]["images"] == []
    assert sparse_subset(content, 0.2501, "union", "box")[0]["images"] == [image]
    anno["segmentation"] = [[0, 0, 20, 0, 0, 20]]
    assert sparse_subset(content, 0.25, "union", "mask")[0]["images"] == [image]


@pytest.mark.parametrize("changed", [{"max_ratio": 0}, {"max_ratio": 1.5}, {"ratio": "mean"}])
def test_arguments_out_of_range_are_named(content, changed):
    name, value = next(iter(changed.items()))
    arguments = {"max_ratio": 0.25, "ratio": "union", "source": "box", **changed}
    with pytest.raises(ValueError, match=rf"sparse_subset\({name}=\) expects .*Got '?{value}'?\."):
        sparse_subset(content, **arguments)


def test_annotations_are_found_by_image(content):
    for image, found in zip(content["images"], annotations_by_image(content), strict=True):
        assert found == [a for a in content["annotations"] if a["image_id"] == image["id"]]


def test_a_source_is_never_overwritten_and_nothing_half_written(tmp_path):
    source = tmp_path / "a.json"
    source.write_text("{}")
    (tmp_path / "link.json").symlink_to(source)
    for target in (source, tmp_path / "link.json"):
        with pytest.raises(ValueError, match="HINT: choose another name"):
            write_json(target, {"new": 1}, sources=(source,))
    with pytest.raises(ValueError, match="Out of range"):
        write_json(tmp_path / "b.json", {"x": float("nan")})
    assert source.read_text() == "{}" and not (tmp_path / "b.json").exists()
    write_json(tmp_path / "new" / "b.json", {"x": 1}, sources=(source,))
    assert json.loads((tmp_path / "new" / "b.json").read_text()) == {"x": 1}


@pytest.mark.parametrize("text", ["", "[1]", '{"images": [], "annotations": []}', '{"images": {}}'])
def test_what_is_no_coco_json_is_named(tmp_path, text):
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(ValueError, match="a.json is not in COCO format: "):
        read_coco(tmp_path / "a.json")


# --- the programs


def test_stats_program_sets_side_by_side_writes_json_and_plots(content, tmp_path, capsys):
    (tmp_path / "mine").mkdir()
    path = tmp_path / "mine" / "train.json"
    path.write_text(json.dumps(content))
    program = load_program(ROOT / "tools" / "dataset_stats.py")
    out, plot = tmp_path / "out.json", tmp_path / "out.png"
    arguments = [str(path), f"again={path}", "--source", "box", "auto", "--json", str(out), "--plot", str(plot)]
    assert program.main(arguments) == 0
    printed = capsys.readouterr().out
    figures = json.loads(out.read_text())
    assert list(figures) == ["mine/train (box)", "mine/train (auto)", "again (box)", "again (auto)"]
    assert printed.strip() == stats_table(figures)
    assert figures["again (box)"] == json.loads(json.dumps(measure_dataset(content, "box").summary()))
    assert cv2.imread(str(plot)).size > 0


@pytest.fixture
def registered_json(tmp_path):
    file = tmp_path / "instances.json"
    DatasetCatalog.register("stats_val", list)
    MetadataCatalog.get("stats_val").set(json_file=str(file))
    yield file
    DatasetCatalog.remove("stats_val")
    MetadataCatalog.remove("stats_val")


def test_stats_program_finds_registered_sets_and_says_what_is_missing(registered_json, capsys):
    program, file = load_program(ROOT / "tools" / "dataset_stats.py"), registered_json
    for arguments in (["stats_val"], ["val=stats_val"]):
        with pytest.raises(SystemExit) as left:
            program.main(arguments)
        assert left.value.code == 1 and f"its json is not there: {file}" in capsys.readouterr().err
    file.write_text("{}")
    assert program.find_dataset("stats_val") == ("stats_val", str(file))
    assert program.find_dataset("val=stats_val") == ("val", str(file))
    with pytest.raises(SystemExit):
        program.main(["no_such_set"])
    assert "no_such_set" in capsys.readouterr().err


def test_stats_program_measures_voc_which_has_no_json(tmp_path, capsys):
    program, out = load_program(ROOT / "tools" / "dataset_stats.py"), tmp_path / "out.json"
    with registered(make_devkit(tmp_path)):
        assert program.main(["voc_2012_multilabel_train", "val=voc_2012_multilabel_val", "--json", str(out)]) == 0
    capsys.readouterr()
    figures = json.loads(out.read_text())
    assert list(figures) == ["voc_2012_multilabel_train", "val"]
    for title, split in zip(figures, ("train", "val")):
        objects = [IMAGES[name] for name in SPLITS[split]]
        assert figures[title]["images"] == len(objects) and figures[title]["objects"] == sum(map(len, objects))
    # Objects overlap: their boxes are drawn here, from the devkit's own numbers.
    ratios = []
    for objects in (IMAGES[name] for name in SPLITS["val"]):
        covered = np.zeros((H, W), dtype=bool)
        for _, _, x1, y1, x2, y2 in objects:
            covered[y1 - 1 : y2, x1 - 1 : x2] = True
        ratios.append(covered.mean())
    assert figures["val"]["ratio_union"]["mean"] == pytest.approx(np.mean(ratios))


def test_stats_program_refuses_a_registered_set_without_json_and_objects(capsys):
    DatasetCatalog.register("stats_stuff", list)
    try:
        with pytest.raises(SystemExit) as left:
            load_program(ROOT / "tools" / "dataset_stats.py").main(["stats_stuff"])
    finally:
        DatasetCatalog.remove("stats_stuff")
    assert left.value.code == 1 and "It is registered without one" in capsys.readouterr().err


def test_stats_program_refuses_two_sets_of_one_title(content, tmp_path, capsys):
    paths = [tmp_path / name / "train" / "a.json" for name in "XY"]
    for path in paths:
        path.parent.mkdir(parents=True)
        path.write_text(json.dumps(content))
    program = load_program(ROOT / "tools" / "dataset_stats.py")
    with pytest.raises(SystemExit):
        program.main([str(path) for path in paths])
    assert "Got train/a more than once; write NAME=FILE.json" in capsys.readouterr().err
    assert program.main([str(paths[0]), "--json", str(paths[0])]) == 1
    assert "HINT" in capsys.readouterr().err


def a_category_that_is_not_there(content):
    content["annotations"][0]["category_id"] = 77


def an_image_without_its_size(content):
    del content["images"][0]["height"]


def a_box_that_is_not_finite(content):
    content["annotations"][0]["bbox"] = [1, float("nan"), 3, 3]


def an_image_of_no_size(content):
    content["images"][0]["height"] = None


@pytest.mark.parametrize(
    "spoil",
    [a_category_that_is_not_there, an_image_without_its_size, an_image_of_no_size, a_box_that_is_not_finite],
)
def test_what_is_not_sound_is_told_with_its_image_and_the_cure(content, spoil):
    spoil(content)
    for measure in (lambda: measure_dataset(content, "box"), lambda: sparse_subset(content, 0.3, "union", "box")):
        with pytest.raises(ValueError, match=r"Image \d+: (.|\n)*HINT: tools/check_dataset.py"):
            measure()


def test_subset_program_prints_what_it_kept_and_refuses_to_overwrite(content, tmp_path, capsys):
    path = tmp_path / "a.json"
    path.write_text(json.dumps(content))
    program = load_program(ROOT / "datasets" / "make_sparse_subset.py")
    assert program.main([str(path), str(tmp_path / "b.json"), "--max-ratio", "0.3", "--ratio", "sum"]) == 0
    subset, report = sparse_subset(content, 0.3, "sum", "box")
    assert json.loads((tmp_path / "b.json").read_text()) == subset
    printed = capsys.readouterr().out
    assert "less than 30 % (sum by box)" in printed
    assert (
        f"images        {report.images[0]} of 24" in printed
        and f"{report.objects[0]} of {report.objects[1]}" in printed
    )
    before = path.read_text()
    for arguments in ([str(path)], [str(path), "--force"], [str(tmp_path / "b.json")]):
        assert program.main([str(path), *arguments]) == 1
        assert "HINT" in capsys.readouterr().err and path.read_text() == before
    assert json.loads((tmp_path / "b.json").read_text()) == subset
    assert program.main([str(path), str(tmp_path / "b.json"), "--force", "--max-ratio", "1"]) == 0
    assert len(json.loads((tmp_path / "b.json").read_text())["images"]) > len(subset["images"])
