"""Oracle selection from end to end: the mapper's labels select, in training and in evaluation."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from pycocotools.coco import COCO

from .conftest import metrics

VIT = (
    "MODEL.BACKBONE.NAME", "build_vit_fpn_backbone", "MODEL.VIT.EMBED_DIM", "32", "MODEL.VIT.DEPTH", "3",
    "MODEL.VIT.NUM_HEADS", "2", "MODEL.VIT.SPA_BLOCKS", "[1, 2]", "MODEL.SPT.SEGMENT", "image",
)  # fmt: skip
ORACLE = ("MODEL.SPT.SELECT", "oracle", "MODEL.SPT.SUPERVISE", "False")
# Strides at which blocks select, by stage.
KINDS = {"spt": ((), {"stage3": 16, "stage4": 32}), "vit": (VIT, {"stage1": 16})}


def density(labels_of: Callable[[int], list], stride: int) -> float:
    """Share of tokens labelled as objects."""
    labels = labels_of(stride)
    return sum(float((label == 1).sum()) for label in labels) / sum(label.numel() for label in labels)


@pytest.fixture
def labels_of(tiny_shapes: list[list[str]]) -> Callable[[int], list]:
    """The validation images' labels at a stride, from the masks that pycocotools decodes."""
    _, file, _ = next(entry for entry in tiny_shapes if entry[0].endswith("val"))
    content = json.loads(Path(file).read_text())
    coco = COCO()
    coco.dataset = content
    coco.createIndex()

    def labels(stride: int) -> list:
        found = []
        for image in content["images"]:
            covered = np.zeros((image["height"], image["width"]), dtype=np.uint8)
            for annotation in coco.loadAnns(coco.getAnnIds(imgIds=image["id"])):
                covered |= coco.annToMask(annotation)
            cells = torch.from_numpy(covered).float()[None, None]
            found.append(F.max_pool2d(cells, stride, ceil_mode=True)[0, 0])
        return found

    return labels


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_kept_is_what_is_labelled_in_training_and_evaluation(
    kind: str, labels_of: Callable[[int], list], train_here: Callable[..., dict], tmp_path: Path
) -> None:
    overrides, stages = KINDS[kind]
    run: Sequence[str] = ("SOLVER.MAX_ITER", "2", "SOLVER.STEPS", "()", "MODEL.SPT.LOG_PERIOD", "1")
    results = train_here("OUTPUT_DIR", tmp_path, *overrides, *ORACLE, *run)
    figures = results["selection"]
    for stage, stride in stages.items():
        assert figures[f"retention/{stage}"] == figures[f"density/{stage}"] == 1.0
        assert figures[f"keep_ratio/{stage}"] == pytest.approx(density(labels_of, stride), abs=1e-12)
    recorded = {name: value for record in metrics(tmp_path).values() for name, value in record.items()}
    for stage in stages:
        assert recorded[f"selection/{stage}/retention"] == recorded[f"selection/{stage}/density"] == 1.0
        assert 0 < recorded[f"selection/{stage}/keep_ratio"] < 1
    assert not any(name.startswith("loss_select") for name in recorded)
    assert figures["executed_macs_g"] < figures["dense_macs_g"]
    # A model that selected by labels still evaluates by its labels from a checkpoint.
    weights = ("MODEL.WEIGHTS", tmp_path / "model_final.pth")
    again = train_here("--eval-only", "OUTPUT_DIR", tmp_path / "again", *weights, *overrides, *ORACLE)
    assert again["selection"] == figures
