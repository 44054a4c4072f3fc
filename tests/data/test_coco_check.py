"""The check of a data set: every fault is found, named and mended, faultless records stay, and what is safe trains."""

import copy
import json
from pathlib import Path

import numpy as np
import pycocotools.mask as mask_util
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data import transforms as T
from detectron2.data.datasets import load_coco_json
from PIL import Image
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from spt_d2.data import SelectionDatasetMapper
from spt_d2.data.coco_check import check_coco
from spt_d2.data.coco_check.masks import rle_runs
from spt_d2.data.coco_json import find_coco
from spt_d2.data.coco_stats import measure_dataset
from tests.conftest import load_program
from tests.data.scenes import encode

ROOT = Path(__file__).resolve().parents[2]
H, W = 48, 64


def rle(mask, kind="text"):
    if kind == "uncompressed":
        return encode(mask, kind)
    compressed = encode(mask)
    return {"size": compressed["size"], "counts": compressed["counts"].decode()}


def blob():
    mask = np.zeros((H, W), dtype=np.uint8)
    mask[20:30, 5:25:2] = 1
    return mask


def make_content():
    """Polygons, crowds with run-length encodings of both kinds, an image without objects, gaps in the ids."""
    images = [
        {"id": 3 * n + 2, "file_name": f"{n}.{'png' if n == 1 else 'jpg'}", "height": H, "width": W} for n in range(6)
    ]

    def annotation(number, image_id, box, segmentation, category_id=4, iscrowd=0, area=None):
        area = box[2] * box[3] if area is None else area
        return {"id": number, "image_id": image_id, "category_id": category_id, "bbox": box, "iscrowd": iscrowd,
                "area": area, "segmentation": segmentation}  # fmt: skip

    def outline(x, y, w, h):
        return [x, y, x + w, y, x + w, y + h, x, y + h]

    annotations = [
        annotation(11, 2, [10.5, 5.0, 20.0, 30.0], [outline(10.5, 5.0, 20.0, 30.0)]),
        annotation(12, 2, [30.0, 5.0, 20.0, 30.0], [outline(30, 5, 8, 8), outline(45, 30, 5, 5)], 9, area=89),
        annotation(13, 5, [0.0, 0.0, 64.0, 48.0], [[0, 0, 64, 0, 0, 48]], area=1536),
        annotation(14, 5, [5.0, 20.0, 19.0, 10.0], rle(blob()), iscrowd=1, area=100),
        annotation(15, 8, [5.0, 20.0, 19.0, 10.0], rle(blob(), "uncompressed"), iscrowd=1, area=100),
        annotation(16, 8, [40.0, 40.0, 24.5, 8.4], [outline(40, 40, 24, 8)]),  # over the border, but by rounding
        annotation(17, 11, [1.0, 1.0, 5.0, 5.0], [outline(1, 1, 5, 5)], 9),
        annotation(18, 14, [1.0, 1.0, 5.0, 5.0], [outline(1, 1, 5, 5)]),
    ]
    categories = [{"id": 9, "name": "cat"}, {"id": 4, "name": "dog"}]
    return {"info": {}, "licenses": [], "images": images, "annotations": annotations, "categories": categories}


def write_images(folder, content):
    folder.mkdir()
    for image in content["images"]:
        Image.fromarray(np.random.default_rng(0).integers(0, 256, (H, W, 3), dtype=np.uint8)).save(
            folder / image["file_name"]
        )


@pytest.fixture
def content():
    return make_content()


@pytest.fixture
def folder(tmp_path, content):
    write_images(tmp_path / "images", content)
    return tmp_path / "images"


def kinds(report):
    return {problem.kind: problem.count for problem in report.problems}


def problem(report, kind):
    (found,) = [p for p in report.problems if p.kind == kind]
    return found


@pytest.mark.parametrize("decode", [False, True])
def test_a_faultless_set_is_safe_and_its_clean_copy_is_itself(content, folder, decode):
    report = check_coco(content, str(folder), decode)
    assert report.problems == () and report.safe
    assert report.clean == content == make_content()
    assert report.statistics == measure_dataset(content, "box").summary()
    assert (report.images, report.annotations, report.categories) == (6, 8, 2)
    assert report.text().endswith("\nSAFE to train on")


# --- faults of the json: how to make one, what it is called, whether it is an error, and what becomes of it


def edit(place, **values):
    """Change an annotation by its place; None takes the key out."""

    def change(content):
        anno = content["annotations"][place]
        for key, value in values.items():
            anno.pop(key)
            if value is not None:
                anno[key] = value

    return change


def edit_image(place, **values):
    def change(content):
        image = content["images"][place]
        image.update(values)
        for key in [key for key, value in values.items() if value is None]:
            del image[key]

    return change


def extra_image(**values):
    return lambda content: content["images"].append({**content["images"][-1], **values})


def mask(place, segmentation):
    return edit(place, segmentation=segmentation)


FLAT = [10.5, 5, 20, 5, 20, 30]
OVER_RIGHT = {"bbox": [50, 5, 20, 30], "area": 420, "segmentation": [[50, 5, 64, 5, 64, 35, 50, 35]]}
OVER_TOP = {"bbox": [5, -2, 20, 30], "area": 560, "segmentation": [[5, 0, 25, 0, 25, 28, 5, 28]]}
# As annotated before the box was clipped: 840 pixels of the polygon, half of them outside.
UNCLIPPED = {"bbox": [50, 5, 28, 30], "area": 840, "segmentation": [[50, 5, 78, 5, 78, 35, 50, 35]]}
CLIPPED = {"bbox": [50, 5, 14, 30], "area": 420}
THIN = {"bbox": [10, 10, 20, 0.3], "area": None, "segmentation": [[10, 10, 30, 10, 30, 10.3, 10, 10.3]]}
GONE = "gone"

# name: change, kind, error, what the clean copy has: GONE or the annotation's expected part
ANNOTATIONS = {
    "id missing": (edit(0, id=None), "annotation_id", True, {"id": 19}),
    "id text": (edit(0, id="11"), "annotation_id", True, {"id": 19}),
    "id true": (edit(0, id=True), "annotation_id", True, {"id": 19}),
    "id fraction": (edit(0, id=1.5), "annotation_id", True, {"id": 19}),
    "id twice": (edit(1, id=11), "annotation_id_twice", True, {"id": 19}),
    "id zero": (edit(0, id=0), "annotation_id_zero", False, {"id": 19}),
    "image unknown": (edit(0, image_id=3), "annotation_image", True, GONE),
    "image missing": (edit(0, image_id=None), "annotation_image", True, GONE),
    "image text": (edit(0, image_id="2"), "annotation_image", True, GONE),
    "category unknown": (edit(0, category_id=1), "annotation_category", True, GONE),
    "category missing": (edit(0, category_id=None), "annotation_category", True, GONE),
    "box missing": (edit(0, bbox=None), "box_missing", True, GONE),
    "box empty": (edit(0, bbox=[]), "box_missing", True, GONE),
    "box of three": (edit(0, bbox=[1, 2, 3]), "box_missing", True, GONE),
    "box of texts": (edit(0, bbox=["1", 2, 3, 4]), "box_missing", True, GONE),
    "box null": (edit(0, bbox=[1, None, 3, 4]), "box_missing", True, GONE),
    "box nan": (edit(0, bbox=[1, float("nan"), 3, 4]), "box_not_finite", True, GONE),
    "box infinite": (edit(0, bbox=[1, 2, float("inf"), 4]), "box_not_finite", True, GONE),
    "box negative": (edit(0, bbox=[30, 5, -20, 30]), "box_negative", True, GONE),
    "box of no width": (edit(0, bbox=[10.5, 5, 0, 30], area=0), "box_no_area", False, GONE),
    "box right of the image": (edit(0, bbox=[64, 5, 20, 30]), "box_outside", True, GONE),
    "box above the image": (edit(0, bbox=[1, -30, 20, 30]), "box_outside", True, GONE),
    "box over the right border": (edit(0, **OVER_RIGHT), "box_over_border", False, {"bbox": [50, 5, 14, 30]}),
    "box over the top border": (edit(0, **OVER_TOP), "box_over_border", False, {"bbox": [5, 0, 20, 28]}),
    "box and mask over the border": (edit(0, **UNCLIPPED), "box_over_border", False, CLIPPED),
    "iscrowd missing": (edit(0, iscrowd=None), "iscrowd", True, {"iscrowd": 0}),
    "iscrowd text": (edit(0, iscrowd="no"), "iscrowd", True, {"iscrowd": 0}),
    "iscrowd two": (edit(0, iscrowd=2), "iscrowd", True, {"iscrowd": 1}),
    "area missing, mask too thin": (edit(0, **THIN), "area", True, {"area": 6.0}),
    "area missing": (edit(0, area=None), "area", True, {"area": 600}),
    "area nan": (edit(0, area=float("nan")), "area", True, {"area": 600}),
    "area negative": (edit(0, area=-1), "area", True, {"area": 600}),
    "area larger than the box": (edit(0, area=900), "area_of_box", False, {"area": 600}),
    "area zero": (edit(0, area=0), "area_of_box", False, {"area": 600}),
    "mask a text": (mask(0, "polygon"), "mask_format", True, "outlined"),
    "mask a flat list": (mask(0, FLAT), "mask_format", True, "outlined"),
    "polygon of two corners": (mask(0, [[1, 1, 5, 5]]), "polygon", True, "outlined"),
    "polygon of odd length": (mask(0, [[*FLAT, 1]]), "polygon", True, "outlined"),
    "polygon of pairs": (mask(0, [[10, 5], [20, 5], [20, 30]]), "polygon", True, "outlined"),
    "polygon nested": (mask(0, [[[10, 5], [20, 5], [20, 30]] * 2]), "polygon", True, "outlined"),
    "polygon of texts": (mask(0, [[str(v) for v in FLAT]]), "polygon", True, "outlined"),
    "polygon nan": (mask(0, [[float("nan"), *FLAT[1:]]]), "polygon", True, "outlined"),
    "polygon a point": (mask(0, [[10, 10] * 4]), "polygon", True, "outlined"),
    "polygon a line": (mask(0, [[10, 10, 20, 20, 30, 30]]), "polygon", True, "outlined"),
    "polygon outside": (mask(0, [[70, 5, 90, 5, 90, 30]]), "polygon", True, "outlined"),
    "one polygon of two": (mask(0, [FLAT, [1, 1]]), "polygon_part", False, {"segmentation": [FLAT]}),
    "one polygon of two a line": (mask(0, [[1, 1] * 3, FLAT]), "polygon_part", False, {"segmentation": [FLAT]}),
    "mask missing": (edit(0, segmentation=None), "mask_missing", False, "outlined"),
    "mask empty": (mask(0, []), "mask_missing", False, "outlined"),
    "rle transposed": (mask(3, {**rle(blob()), "size": [W, H]}), "rle_size", True, "outlined"),
    "rle without size": (mask(3, {"counts": "abc"}), "rle_size", True, "outlined"),
    "rle without counts": (mask(3, {"size": [H, W]}), "rle_counts", True, "outlined"),
    "rle too short": (mask(4, {"size": [H, W], "counts": [100, 50]}), "rle_counts", True, "outlined"),
    "rle too long": (mask(4, {"size": [H, W], "counts": [H * W, 1]}), "rle_counts", True, "outlined"),
    "rle negative": (mask(4, {"size": [H, W], "counts": [H * W + 5, -5]}), "rle_counts", True, "outlined"),
    "rle of texts": (mask(4, {"size": [H, W], "counts": ["1"]}), "rle_counts", True, "outlined"),
    "rle cut short": (mask(3, {"size": [H, W], "counts": rle(blob())["counts"][:-3]}), "rle_counts", True, "outlined"),
    "rle no rle": (mask(3, {"size": [H, W], "counts": "häh? ~"}), "rle_counts", True, "outlined"),
    "rle empty": (mask(3, rle(blob() * 0)), "rle_empty", False, "outlined"),
    "rle on an object": (mask(0, rle(blob())), "rle_object", False, {"segmentation": rle(blob())}),
    "ignore": (lambda c: c["annotations"][0].update(ignore=1), "ignore", True, {"iscrowd": 1}),
}  # fmt: skip


def changed_place(content, clean_from):
    (place,) = [i for i, (a, b) in enumerate(zip(content["annotations"], clean_from["annotations"])) if not same(a, b)]
    return place


def same(a, b):
    return json.dumps(a, sort_keys=True) == json.dumps(b, sort_keys=True)


@pytest.mark.parametrize("name", ANNOTATIONS)
def test_a_fault_of_an_annotation_is_found_alone_and_mended(content, name):
    change, kind, error, expected = ANNOTATIONS[name]
    change(content)
    before = json.dumps(content)
    report = check_coco(content)
    assert kinds(report) == {kind: 1}, report.text()
    assert json.dumps(content) == before, "the content itself is not changed"
    assert problem(report, kind).error == error and report.safe == (not error)
    place = changed_place(content, make_content())
    broken = content["annotations"][place]
    assert f"{broken.get('id')!r} of image {broken.get('image_id')!r}" in problem(report, kind).examples[0]
    others = content["annotations"][:place] + content["annotations"][place + 1 :]
    clean = list(report.clean["annotations"])
    if expected != GONE:
        mended = clean.pop(place)
        if expected == "outlined":
            x, y, w, h = mended["bbox"]
            expected = {"segmentation": [[x, y, x + w, y, x + w, y + h, x, y + h]]}
        assert {key: mended[key] for key in expected} == {
            k: pytest.approx(v) if k == "area" else v for k, v in expected.items()
        }
        assert "ignore" not in mended
        assert all(mended[key] == value for key, value in broken.items() if key not in {*expected, "ignore"})
    assert clean == others
    assert check_coco(report.clean).safe and not set(kinds(check_coco(report.clean))) - {"rle_object"}


def test_the_mended_area_of_a_clipped_box_is_that_of_what_is_left(content):
    edit(0, bbox=[50, 5, 20, 30], segmentation=[])(content)
    assert check_coco(content).clean["annotations"][0]["area"] == 14 * 30


def test_a_polygon_whose_halves_cancel_out_encloses_something(content):
    mask(0, [[10, 10, 30, 30, 30, 10, 10, 30]])(content)
    assert check_coco(content).problems == ()


def test_boxes_alone_need_no_masks(content):
    for anno in content["annotations"]:
        del anno["segmentation"]
    assert check_coco(content).problems == ()


IMAGES = {
    "id missing": (edit_image(0, id=None), "image_id", True, 5),
    "id text": (edit_image(0, id="2"), "image_id", True, 5),
    "name missing": (edit_image(0, file_name=None), "image_file_name", True, 5),
    "name empty": (edit_image(0, file_name=""), "image_file_name", True, 5),
    "same image twice": (extra_image(), "image_id_twice", True, 6),
    "other image of that id": (extra_image(file_name="x.jpg"), "image_id_twice", True, 5),
    "same file twice": (extra_image(id=99), "image_file_twice", False, 7),
    "height missing": (edit_image(0, height=None), "image_size_missing", True, 5),
    "width zero": (edit_image(0, width=0), "image_size_missing", True, 5),
    "no object": (lambda c: c["images"].append("6.jpg"), "image_record", True, 6),
}  # fmt: skip


@pytest.mark.parametrize("name", IMAGES)
def test_a_fault_of_an_image_is_found_and_takes_its_annotations_with_it(content, name):
    change, kind, error, left = IMAGES[name]
    change(content)
    before = copy.deepcopy(content)
    report = check_coco(content)
    assert content == before
    # Without its id, nobody knows that the image was meant.
    follows = {"annotation_image"} if kind == "image_id" else set()
    assert set(kinds(report)) == {kind} | follows and problem(report, kind).error == error
    assert len(report.clean["images"]) == left
    ids = {image["id"] for image in report.clean["images"]}
    assert report.clean["annotations"] == [a for a in content["annotations"] if a["image_id"] in ids]
    assert check_coco(report.clean).safe


def test_sizes_that_the_json_lacks_are_filled_in_from_the_files(content, folder):
    edit_image(0, height=None, width=None)(content)
    report = check_coco(content, str(folder))
    assert kinds(report) == {"image_size_missing": 1} and not report.safe
    assert report.clean == make_content()


UNMENDABLE = {
    "no categories": (lambda c: c["categories"].clear(), "categories_missing"),
    "category id twice": (lambda c: c["categories"].append({"id": 9, "name": "cow"}), "category_id_twice"),
    "category id text": (lambda c: c["categories"].append({"id": "9", "name": "cow"}), "category_id"),
    "category without name": (lambda c: c["categories"].append({"id": 1}), "category_name"),
    "category no object": (lambda c: c["categories"].append("cow"), "category_name"),
    "nothing but crowds": (lambda c: [a.update(iscrowd=1) for a in c["annotations"]], "no_objects"),
    "nothing at all": (lambda c: c["annotations"].clear(), "no_objects"),
    "no images": (lambda c: c["images"].clear(), "no_objects"),
    "relative boxes": (lambda c: [a.update(bbox=[0.1, 0.2, 0.3, 0.4]) for a in c["annotations"]], "box_relative"),
}  # fmt: skip


@pytest.mark.parametrize("name", UNMENDABLE)
def test_where_nobody_knows_what_was_meant_there_is_no_clean_copy(content, name):
    change, kind = UNMENDABLE[name]
    change(content)
    report = check_coco(content)
    assert problem(report, kind).error and not report.safe
    assert report.clean is None and report.statistics is None
    assert "--fix cannot mend this" in report.text() and report.text().endswith("NOT SAFE to train on")
    json.dumps(report.as_dict(), allow_nan=False)


def test_categories_of_one_name_and_a_missing_info_are_warnings(content):
    content["categories"].append({"id": 1, "name": "cat"})
    del content["info"]
    report = check_coco(content)
    assert kinds(report) == {"category_name_twice": 1, "info_missing": 1} and report.safe
    assert report.clean["info"] == {}


def test_numbers_that_json_wrote_with_a_point_are_whole(content):
    for image in content["images"]:
        image["height"], image["width"] = float(image["height"]), float(image["width"])
    for anno in content["annotations"]:
        anno["id"], anno["image_id"], anno["category_id"] = (float(anno[k]) for k in ("id", "image_id", "category_id"))
    assert check_coco(content).problems == ()


# --- faults of files


def save_turned(path, orientation, size=(W, H)):
    exif = Image.Exif()
    exif[274] = orientation
    Image.new("RGB", size, (90, 60, 30)).save(path, exif=exif)


def cut_short(path):
    path.write_bytes(path.read_bytes()[:-700])


FILES = {
    "missing": (lambda path: path.unlink(), "image_missing", True),
    "a folder": (lambda path: (path.unlink(), path.mkdir()), "image_missing", True),
    "no image": (lambda path: path.write_bytes(b"<html>404</html>"), "image_unreadable", True),
    "empty": (lambda path: path.write_bytes(b""), "image_unreadable", True),
    "of another size": (lambda path: Image.new("RGB", (W + 1, H)).save(path), "image_size", True),
    "transposed": (lambda path: Image.new("RGB", (H, W)).save(path), "image_size", True),
    "turned, size as stored": (lambda path: save_turned(path, 6), "exif_size", True),
    "turned, size as read": (lambda path: save_turned(path, 8, (H, W)), "exif_turned", False),
    "upside down": (lambda path: save_turned(path, 3), "exif_turned", False),
    "of 16 bits": (lambda path: Image.fromarray(np.zeros((H, W), np.uint16)).save(path, "png"), "image_depth", False),
}  # fmt: skip


@pytest.mark.parametrize("decode", [False, True])
@pytest.mark.parametrize("name", FILES)
def test_a_fault_of_a_file_is_found_and_leaves_the_image_out_where_it_is_an_error(content, folder, name, decode):
    change, kind, error = FILES[name]
    change(folder / "0.jpg")
    report = check_coco(content, str(folder), decode)
    assert kinds(report) == {kind: 1}, report.text()
    assert problem(report, kind).error == error and "0.jpg" in problem(report, kind).examples[0]
    left = [image for image in content["images"] if not error or image["id"] != 2]
    assert report.clean["images"] == left
    assert [a for a in content["annotations"] if not error or a["image_id"] != 2] == report.clean["annotations"]
    assert check_coco(report.clean, str(folder), decode).safe


def test_an_upright_orientation_is_no_fault(content, folder):
    save_turned(folder / "0.jpg", 1)
    assert check_coco(content, str(folder)).problems == ()


def test_a_file_that_is_cut_short_is_found_where_pixels_are_read(content, folder):
    cut_short(folder / "0.jpg")
    assert check_coco(content, str(folder)).problems == ()
    report = check_coco(content, str(folder), decode=True)
    assert kinds(report) == {"image_unreadable": 1} and "truncated" in problem(report, "image_unreadable").examples[0]


# --- everything at once


@pytest.fixture
def ruins(content, folder):
    """A set with every fault of annotations, images and files that can be mended, each on a copy of its own."""
    images, annotations = content["images"], content["annotations"]
    wanted = set()
    for number, (change, kind, _, _) in enumerate(ANNOTATIONS.values()):
        broken = make_content()
        change(broken)
        place = changed_place(broken, make_content())
        anno = broken["annotations"][place]
        if not kind.startswith("annotation_id"):
            anno["id"] = 1000 + number
        annotations.append(anno)
        wanted.add(kind)
    for number, (change, kind, _) in enumerate(FILES.values()):
        image = {"id": 500 + number, "file_name": f"f{number}.jpg", "height": H, "width": W}
        Image.new("RGB", (W, H)).save(folder / image["file_name"])
        change(folder / image["file_name"])
        images.append(image)
        wanted.add(kind)
    images += [{"id": None, "file_name": "0.jpg"}, {"id": 600, "height": H, "width": W}, "no object", dict(images[0])]
    images.append({"id": 601, "file_name": "0.jpg"})
    annotations.append("no object")
    wanted |= {"image_id", "image_file_name", "image_record", "image_id_twice", "image_file_twice", "annotation_record"}
    return content, wanted | {"image_size_missing"}


def test_all_faults_stand_in_one_report_and_one_pass_mends_them(ruins, folder, tmp_path):
    content, wanted = ruins
    report = check_coco(content, str(folder), decode=True)
    assert wanted <= set(kinds(report))
    errors = [p.error for p in report.problems]
    assert errors == sorted(errors, reverse=True)
    text, figures = report.text(), report.as_dict()
    for kind, count in kinds(report).items():
        assert f"  {kind:20s} {count} " in text
        assert [p["count"] for p in figures["problems"] if p["kind"] == kind][-1] == count
    again = check_coco(report.clean, str(folder), decode=True)
    assert again.safe, again.text()
    assert set(kinds(again)) <= {"exif_turned", "image_depth", "rle_object", "image_file_twice"}


@pytest.mark.filterwarnings("ignore:The given NumPy array is not writable:UserWarning")  # Detectron2's bitmasks
def test_what_is_called_safe_is_loaded_read_and_evaluated(ruins, folder, tmp_path):
    """The clean copy of a ruin goes through Detectron2's loader, the mapper and COCO's evaluation."""
    clean = check_coco(ruins[0], str(folder), decode=True).clean
    path = tmp_path / "clean.json"
    path.write_text(json.dumps(clean, allow_nan=False))
    records = load_coco_json(str(path), str(folder), extra_annotation_keys=["area"])
    assert sum(len(record["annotations"]) for record in records) == len(clean["annotations"])
    mapper = SelectionDatasetMapper(
        is_train=True, augmentations=[T.ResizeShortestEdge(48, 64)], image_format="RGB", use_instance_mask=True,
        instance_mask_format="bitmask", strides=(8, 16),
    )  # fmt: skip
    for record in records:
        assert mapper(record)["selection_labels"][8].shape == (6, 8)
    truth = COCO(str(path))
    objects = [a for a in clean["annotations"] if not a["iscrowd"]]
    found = [{**{k: a[k] for k in ("image_id", "category_id", "bbox")}, "score": 0.9} for a in objects]
    evaluation = COCOeval(truth, truth.loadRes(found), "bbox")
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    assert evaluation.stats[1] > 0.9


# --- run-length encodings


@pytest.mark.parametrize("seed", range(6))
def test_runs_of_a_compressed_encoding_are_those_of_the_pixels(seed):
    rng = np.random.default_rng(seed)
    h, w = (int(v) for v in rng.integers(1, 400, 2))
    mask = (rng.random((h, w)) < rng.choice([0, 0.001, 0.5, 1])).astype(np.uint8)
    mask[: h // 2] |= rng.integers(0, 2, dtype=np.uint8)
    compressed = mask_util.encode(np.asfortranarray(mask))["counts"].decode()
    assert rle_runs(compressed).tolist() == encode(mask, "uncompressed")["counts"]


@pytest.mark.parametrize("text", ["", " ", "~", "P", "ä", "PPPPPPPPPPPPPP0"])
def test_what_cannot_be_an_encoding_has_no_runs(text):
    assert rle_runs(text) is None


# --- the program


@pytest.fixture
def program():
    return load_program(ROOT / "tools" / "check_dataset.py")


def test_program_says_by_its_exit_code_whether_training_is_safe(program, content, folder, tmp_path, capsys):
    path = tmp_path / "a.json"
    path.write_text(json.dumps(content))
    images = ["--images", str(folder)]
    # A verdict says what it is of: a file that is cut short is found by its pixels only.
    for arguments, seen in (
        ([], ", as far as looked at: not at images (--images)"),
        (images, ", as far as looked at: not at pixels (--decode)"),
        ([*images, "--decode"], ""),
    ):
        assert program.main([str(path), *arguments]) == 0
        assert capsys.readouterr().out.endswith(f"\nSAFE to train on{seen}\n")
    edit(0, category_id=77)(content)
    path.write_text(json.dumps(content))
    assert program.main([str(path)]) == 1
    printed = capsys.readouterr().out
    assert "NOT SAFE" in printed and "annotation_category" in printed and "category 77" in printed
    path.write_text("{")
    assert program.main([str(path)]) == 1
    assert "not in COCO format" in capsys.readouterr().err
    with pytest.raises(SystemExit) as left:
        program.main([str(tmp_path / "none.json")])
    assert left.value.code == 2 and "path of a COCO json or a registered name" in capsys.readouterr().err
    for arguments in (["--images", str(tmp_path / "none")], ["--decode"]):
        with pytest.raises(SystemExit):
            program.main([str(path), *arguments])


def test_program_writes_a_clean_copy_and_a_report_and_leaves_the_original(program, content, folder, tmp_path, capsys):
    edit(0, bbox=[1, 2, float("nan"), 4])(content)
    cut_short(folder / "1.png")
    path, clean, figures = tmp_path / "a.json", tmp_path / "new" / "clean.json", tmp_path / "report.json"
    path.write_text(json.dumps(content))
    before = path.read_bytes()
    arguments = [str(path), "--images", str(folder), "--decode", "--fix", str(clean), "--json", str(figures)]
    assert program.main(arguments) == 0
    assert path.read_bytes() == before
    report = json.loads(figures.read_text())
    assert report["safe"] is False and report["decoded"] is True and report["statistics"]["images"] == 5
    assert {p["kind"]: p["count"] for p in report["problems"]} == {"box_not_finite": 1, "image_unreadable": 1}
    assert "5 of 6 images, 5 of 8 annotations" in capsys.readouterr().out
    assert program.main([str(clean), "--images", str(folder), "--decode"]) == 0


def test_program_never_writes_to_what_it_checks(program, content, tmp_path, capsys):
    path, link = tmp_path / "a.json", tmp_path / "b.json"
    path.write_text(json.dumps(content))
    link.hardlink_to(path)
    before = path.read_bytes()
    for option in ("--fix", "--json"):
        for target in (path, link):
            assert program.main([str(path), option, str(target)]) == 1
            assert "HINT: choose another name" in capsys.readouterr().err and path.read_bytes() == before


def test_program_writes_no_copy_where_there_is_none(program, content, tmp_path, capsys):
    content["categories"].clear()
    path = tmp_path / "a.json"
    path.write_text(json.dumps(content))
    assert program.main([str(path), "--fix", str(tmp_path / "b.json")]) == 1
    assert "no clean copy can be made" in capsys.readouterr().err and not (tmp_path / "b.json").exists()


def test_program_takes_the_name_of_a_registered_set(program, content, folder, tmp_path, capsys):
    path = tmp_path / "a.json"
    path.write_text(json.dumps(content))
    DatasetCatalog.register(f"check_{tmp_path.name}", list)
    MetadataCatalog.get(f"check_{tmp_path.name}").set(json_file=str(path), image_root=str(folder))
    try:
        assert program.main([f"check_{tmp_path.name}"]) == 0
        assert str(folder) in capsys.readouterr().out
    finally:
        DatasetCatalog.remove(f"check_{tmp_path.name}")
        MetadataCatalog.remove(f"check_{tmp_path.name}")


@pytest.mark.parametrize(
    "metadata, message",
    [({"json_file": "gone.json"}, "its json is not there: gone.json"), ({}, "registered without one")],
    ids=["gone", "none"],
)
def test_a_registered_set_without_its_json_is_an_error_of_its_own(metadata, message, request):
    name = f"json_{request.node.callspec.id}"
    DatasetCatalog.register(name, list)
    MetadataCatalog.get(name).set(**metadata)
    try:
        with pytest.raises((FileNotFoundError, ValueError), match=message):
            find_coco(name)
        with pytest.raises(FileNotFoundError, match=f"close to it: {name}"):
            find_coco(f"{name}s")
    finally:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)
