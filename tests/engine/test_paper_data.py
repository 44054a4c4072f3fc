"""The paper's data sets in their own layouts, below ``$DETECTRON2_DATASETS``: configs train and are evaluated."""

import json
from pathlib import Path

import numpy as np
import pytest
from detectron2.data import MetadataCatalog
from PIL import Image

from tests.conftest import ROOT, load_program
from tests.data.test_bdd100k import NAMES, lay_out
from tests.engine.conftest import TRAIN_NET, predictions, run_apart

HEIGHT, WIDTH = 60, 80
# Category ids have holes, as COCO's do: 90 is the eightieth.
PERSON, TOOTHBRUSH = 1, 90
SMALL = {
    "MODEL.DEVICE": "cpu",
    "MODEL.SPT.EMBED_DIM": 8,
    "MODEL.SPT.DEPTHS": [1, 1, 1, 1],
    "MODEL.SPT.NUM_HEADS": [1, 2, 2, 4],
    "MODEL.FPN.OUT_CHANNELS": 16,
    "MODEL.RPN.POST_NMS_TOPK_TEST": 20,
    "MODEL.ROI_BOX_HEAD.FC_DIM": 16,
    "MODEL.ROI_MASK_HEAD.CONV_DIM": 8,
    "MODEL.ROI_HEADS.SCORE_THRESH_TEST": 0.0,
    "INPUT.MIN_SIZE_TRAIN": [64],
    "INPUT.MIN_SIZE_TEST": 64,
    "SOLVER.MAX_ITER": 1,
    "SOLVER.STEPS": [],
    "SOLVER.IMS_PER_BATCH": 2,
    "TEST.DETECTIONS_PER_IMAGE": 5,
    "DATALOADER.NUM_WORKERS": 0,
    "SEED": 0,
}


def train_and_evaluate(config: str, root: Path, output: Path, monkeypatch: pytest.MonkeyPatch) -> dict:
    """Run ``train_net.py`` with a config made small; what it left of its evaluation."""
    monkeypatch.setenv("DETECTRON2_DATASETS", str(root))
    overrides = [str(part) for pair in SMALL.items() for part in pair]
    run_apart(TRAIN_NET, "--config-file", ROOT / "configs" / config, "OUTPUT_DIR", output, *overrides)
    return json.loads((output / "evaluation.json").read_text())


def coco_instances(numbers: list[int]) -> dict:
    """``instances_*2017.json``: an object with two polygons, a crowd with an uncompressed mask, an image of nothing."""
    url = "http://images.cocodataset.org/{}/{:012d}.jpg"
    images = [
        {
            "license": 4,
            "file_name": f"{number:012d}.jpg",
            "coco_url": url.format("train2017", number),
            "height": HEIGHT,
            "width": WIDTH,
            "date_captured": "2013-11-14 17:02:52",
            "flickr_url": "http://farm7.staticflickr.com/6116/6255196340_da26cf2c9e_z.jpg",
            "id": number,
        }
        for number in numbers
    ]
    annotations = []
    for number in numbers[:-1]:
        common = {"image_id": number}
        parts = [[10.0, 10.0, 30.0, 10.0, 30.0, 40.0, 10.0, 40.0], [34.5, 10.0, 40.25, 10.0, 37.0, 22.0]]
        person = {"segmentation": parts, "area": 635.5, "iscrowd": 0, "bbox": [10.0, 10.0, 30.25, 30.0]}
        brush = {"segmentation": [[50.0, 5.0, 70.0, 5.0, 60.0, 25.0]], "area": 200.0, "iscrowd": 0}
        # Down the columns: background first, then objects, by turns.
        crowd = {"segmentation": {"counts": [50, 20, HEIGHT * WIDTH - 70], "size": [HEIGHT, WIDTH]}, "area": 20}
        annotations += [
            {**person, **common, "category_id": PERSON, "id": 10 * number},
            {**brush, **common, "bbox": [50.0, 5.0, 20.0, 20.0], "category_id": TOOTHBRUSH, "id": 10 * number + 1},
            {**crowd, **common, "iscrowd": 1, "bbox": [0, 0, 2, 60], "category_id": PERSON, "id": 900100000 + number},
        ]
    metadata = MetadataCatalog.get("coco_2017_val")
    categories = [
        {"supercategory": "thing", "id": number, "name": metadata.thing_classes[index]}
        for number, index in metadata.thing_dataset_id_to_contiguous_id.items()
    ]
    licenses = [{"url": "http://creativecommons.org/licenses/by/2.0/", "id": 4, "name": "Attribution License"}]
    info = {"description": "COCO 2017 Dataset", "version": "1.0", "year": 2017}
    return {"info": info, "licenses": licenses, "images": images, "annotations": annotations, "categories": categories}


def test_coco_2017_in_its_own_layout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    generator = np.random.default_rng(0)
    for split, numbers in (("train", [9, 25, 581929]), ("val", [139, 285])):
        content = coco_instances(numbers)
        folder = tmp_path / "coco" / f"{split}2017"
        folder.mkdir(parents=True)
        for image in content["images"]:
            pixels = generator.integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / image["file_name"])
        (tmp_path / "coco" / "annotations").mkdir(exist_ok=True)
        (tmp_path / "coco" / "annotations" / f"instances_{split}2017.json").write_text(json.dumps(content))
    output = tmp_path / "out"
    config = "COCO-InstanceSegmentation/mask_rcnn_spt_t_fpn_1x.yaml"
    evaluation = train_and_evaluate(config, tmp_path, output, monkeypatch)
    (tested,) = evaluation["test"]
    assert tested["name"] == "coco_2017_val" and tested["images"] == 2
    # Both classes that are there have an AP, the others none; the gates are measured against the labels.
    results = tested["results"]
    for task in ("bbox", "segm"):
        measured = {key for key, value in results[task].items() if key.startswith("AP-") and value is not None}
        assert measured == {"AP-person", "AP-toothbrush"}
    assert 0 <= results["selection"]["retention"] <= 1
    known = set(MetadataCatalog.get("coco_2017_val").thing_dataset_id_to_contiguous_id)
    found = predictions(output)
    assert {row["image_id"] for row in found} == {139, 285} and {row["category_id"] for row in found} <= known


def test_bdd100k_and_its_sparse_part_from_the_official_labels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = tmp_path / "bdd100k"
    lay_out(root, NAMES)
    (root / "images" / "100k" / "train").symlink_to(root / "images" / "100k" / "val")
    assert load_program(ROOT / "datasets" / "prepare_bdd100k.py").main(["--root", str(root)]) == 0
    subset = load_program(ROOT / "datasets" / "make_sparse_subset.py")
    for split in ("train", "val"):
        files = [str(root / "annotations" / f"det_{part}{split}.json") for part in ("", "sparse_")]
        assert subset.main(files) == 0
    folder = "BDD100K-Detection/faster_rcnn_spt_t_fpn_3x"
    for suffix, name, images in (("", "bdd100k_val", 4), ("_sparse", "bdd100k_sparse_val", 3)):
        evaluation = train_and_evaluate(f"{folder}{suffix}.yaml", tmp_path, tmp_path / name, monkeypatch)
        (tested,) = evaluation["test"]
        # A bicycle fills the frame that is not sparse; crowds alone give a class no AP.
        assert tested["name"] == name and tested["images"] == images
        classes = {key for key, value in tested["results"]["bbox"].items() if key[:3] == "AP-" and value is not None}
        assert classes == {"AP-car", "AP-traffic light", "AP-train", *(["AP-bicycle"] if not suffix else [])}
