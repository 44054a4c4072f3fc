"""Figures of the evaluator equal those that loops count, however images are dealt out to processes."""

import json
import math
import os

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from spt_d2.ops.selection import ImageBlockSelection, ImageSelection, split_selections

pytest.importorskip("detectron2")
from detectron2.data import DatasetCatalog
from detectron2.data.datasets import register_coco_instances
from detectron2.evaluation import COCOEvaluator, DatasetEvaluators
from detectron2.structures import Boxes, Instances

from spt_d2.analysis import image_macs
from spt_d2.evaluation import SelectionEvaluator, selection_summary
from spt_d2.modeling import SPT, Swin

NANO = {"embed_dim": 8, "depths": (1, 1, 2, 1), "num_heads": (1, 2, 4, 4), "window_size": 3}
SHAPES = ((40, 56), (33, 64), (64, 64), (17, 20))


def block(stage: int, number: int | None, keep: torch.Tensor | None) -> ImageBlockSelection:
    score = torch.zeros(2, 2) if keep is None else torch.zeros(keep.shape)
    kept = 0 if keep is None else int(keep.sum())
    return ImageBlockSelection(stage, number, 2 ** (stage + 1), score, keep, kept, float(kept**2), kept**2)


def mask(*rows: str) -> torch.Tensor:
    return torch.tensor([[character == "x" for character in row] for row in rows])


def label(*rows: str) -> torch.Tensor:
    values = {"o": 1, ".": 0, "?": 255}
    return torch.tensor([[values[character] for character in row] for row in rows], dtype=torch.uint8)


def evaluate(pairs, **options) -> dict[str, float]:
    evaluator = SelectionEvaluator(**options)
    evaluator.reset()
    for given, output in pairs:
        evaluator.process([given], [output])
    return evaluator.evaluate()["selection"]


def random_pairs(seed: int = 0) -> list[tuple[dict, dict]]:
    """Images of several sizes, stages 3 and 4, labels with ignored tokens, objects of all sizes; SPT's own layouts."""
    generator = torch.Generator().manual_seed(seed)
    pairs = []
    for index, (height, width) in enumerate(SHAPES):
        blocks = [block(2, None, None)]
        labels = {}
        for stage, number in ((3, 0), (3, 1), (4, 0)):
            stride = 2 ** (stage + 1)
            size = (-(-height // stride), -(-width // stride))
            blocks.append(block(stage, number, torch.rand(size, generator=generator) < 0.4))
            if stride not in labels:
                draw = torch.rand(size, generator=generator)
                labels[stride] = torch.where(draw < 0.4, 1, torch.where(draw < 0.6, 255, 0)).to(torch.uint8)
        corner = torch.rand(5, 2, generator=generator) * torch.tensor([width, height])
        extent = torch.rand(5, 2, generator=generator) * 40
        boxes = torch.cat((corner, torch.minimum(corner + extent, torch.tensor([width, height]))), dim=1)
        given = {
            "image_id": index,
            "selection_labels": labels,
            "selection_boxes": boxes,
            "selection_areas": torch.tensor([10.0, 1023.9, 1024.0, 9215.9, 9216.0]),
        }
        size = (-(-height // 32) * 32, -(-width // 32) * 32)
        pairs.append((given, {"selection": ImageSelection(blocks, size)}))
    return pairs


def slow_figures(pairs) -> dict[str, float]:
    """Token by token."""
    counts: dict[str, list[int]] = {}
    sizes = {0: "small", 1: "small", 2: "medium", 3: "medium", 4: "large"}

    def tally(name, hit):
        entry = counts.setdefault(name, [0, 0])
        entry[0] += bool(hit)
        entry[1] += 1

    for given, output in pairs:
        for one in output["selection"].blocks:
            if one.keep_mask is None:
                continue
            for i in range(one.keep_mask.shape[0]):
                for j in range(one.keep_mask.shape[1]):
                    kept = bool(one.keep_mask[i, j])
                    truth = int(given["selection_labels"][one.stride][i, j])
                    for suffix in ("", f"/stage{one.stage}"):
                        tally("keep_ratio" + suffix, kept)
                        if truth == 1:
                            tally("retention" + suffix, kept)
                        if kept and truth != 255:
                            tally("density" + suffix, truth == 1)
                    for k, (x1, y1, x2, y2) in enumerate(given["selection_boxes"].tolist()):
                        rows = range(math.floor(y1), math.ceil(y2))
                        columns = range(math.floor(x1), math.ceil(x2))
                        cell_rows = range(i * one.stride, (i + 1) * one.stride)
                        cell_columns = range(j * one.stride, (j + 1) * one.stride)
                        overlaps = set(rows) & set(cell_rows) and set(columns) & set(cell_columns)
                        if overlaps and truth == 1:
                            tally(f"retention/{sizes[k]}", kept)
    return {name: hits / whole for name, (hits, whole) in counts.items()}


def test_worked_example():
    # Stage 3, two blocks of 2 x 3 tokens; stage 4, one block of 1 x 2.
    selection = ImageSelection(
        [
            block(2, None, None),
            block(3, 0, mask("xx.", "..x")),
            block(3, 1, mask("x..", "...")),
            block(4, 0, mask("x.")),
        ],
        (32, 64),
    )
    labels = {16: label("o.o", "..?"), 32: label("oo")}
    figures = evaluate([({"selection_labels": labels}, {"selection": selection})])
    assert figures == {
        "keep_ratio": 5 / 14,  # 3 + 1 + 1 of 6 + 6 + 2
        "retention": 3 / 6,  # 1 + 1 + 1 of 2 + 2 + 2
        "density": 3 / 4,  # of the 5 kept, one is ignored
        "keep_ratio/stage3": 4 / 12,
        "retention/stage3": 2 / 4,
        "density/stage3": 2 / 3,
        "keep_ratio/stage4": 1 / 2,
        "retention/stage4": 1 / 2,
        "density/stage4": 1.0,
        **{f"image_keep_ratio/{name}": 5 / 14 for name in ("mean", "p5", "p50", "p95")},
    }
    assert selection_summary(figures) == {
        "keep_ratio": 5 / 14,
        "retention": 3 / 6,
        "density": 3 / 4,
        "by_stage": {
            "stage3": {"keep_ratio": 4 / 12, "retention": 2 / 4, "density": 2 / 3},
            "stage4": {"keep_ratio": 1 / 2, "retention": 1 / 2, "density": 1.0},
        },
    }


def test_figures_equal_those_of_a_loop_over_tokens():
    pairs = random_pairs()
    figures = evaluate(pairs)
    slow = slow_figures(pairs)
    assert {"retention/small", "retention/medium", "retention/large"} <= set(slow)
    assert {name: value for name, value in figures.items() if not name.startswith("image_")} == slow


def test_batches_and_single_images_give_the_same_figures():
    pairs = random_pairs()
    evaluator = SelectionEvaluator()
    evaluator.process([given for given, _ in pairs], [output for _, output in pairs])
    assert evaluator.evaluate()["selection"] == evaluate(pairs)


def test_reset_forgets():
    first, second = random_pairs(0), random_pairs(1)
    evaluator = SelectionEvaluator()
    evaluator.process(*map(list, zip(*first)))
    evaluator.reset()
    evaluator.process(*map(list, zip(*second)))
    assert evaluator.evaluate()["selection"] == evaluate(second) != evaluate(first)


def test_ignored_tokens_count_for_the_keep_ratio_alone():
    selection = ImageSelection([block(3, 0, mask("xx", "x."))], (32, 32))
    figures = evaluate([({"selection_labels": {16: label("o?", "??")}}, {"selection": selection})])
    assert (figures["keep_ratio"], figures["retention"], figures["density"]) == (3 / 4, 1.0, 1.0)
    figures = evaluate([({"selection_labels": {16: label("??", "??")}}, {"selection": selection})])
    assert figures["keep_ratio"] == 3 / 4
    assert "retention" not in figures and "density" not in figures


def test_an_object_is_judged_by_the_object_tokens_in_its_box():
    # The box reaches over 2 x 2 tokens by one pixel, its mask fills three of them; another object lies outside.
    selection = ImageSelection([block(3, 0, mask("x.x", "xx."))], (32, 48))
    given = {
        "selection_labels": {16: label("oo.", "o.o")},
        "selection_boxes": torch.tensor([[3.0, 3.0, 16.1, 16.1]]),
        "selection_areas": torch.tensor([100.0]),
    }
    figures = evaluate([(given, {"selection": selection})])
    assert figures["retention/small"] == 2 / 3
    assert figures["retention"] == 2 / 4
    assert "retention/medium" not in figures


def test_percentiles_are_over_images_and_not_over_tokens():
    pairs = [
        ({}, {"selection": ImageSelection([block(3, 0, torch.ones(1, 1, dtype=torch.bool))], (32, 32))}),
        ({}, {"selection": ImageSelection([block(3, 0, torch.zeros(3, 3, dtype=torch.bool))], (64, 64))}),
    ]
    figures = evaluate(pairs)
    assert figures["keep_ratio"] == 0.1
    assert figures["image_keep_ratio/mean"] == figures["image_keep_ratio/p50"] == 0.5
    assert figures["image_keep_ratio/p5"] == pytest.approx(0.05)
    assert figures["image_keep_ratio/p95"] == pytest.approx(0.95)


def test_without_labels_only_keep_ratio_and_macs_are_known():
    figures = evaluate([({}, output) for _, output in random_pairs()])
    assert {name.split("/")[0] for name in figures} == {"keep_ratio", "image_keep_ratio"}
    assert selection_summary(figures)["by_stage"]["stage4"]["retention"] is None


def test_one_image_without_labels_among_others():
    pairs = random_pairs()
    figures = evaluate([({}, pairs[0][1]), *pairs[1:]])
    assert figures["retention"] == slow_figures(pairs[1:])["retention"]
    assert figures["keep_ratio"] == slow_figures(pairs)["keep_ratio"]


def test_macs_are_means_over_images_from_real_selections(tmp_path):
    model = SPT(**NANO, select="random", keep_ratio=0.3).eval()
    pairs, expected = [], []
    for index, (height, width) in enumerate(((60, 90), (64, 64))):
        _, selections = model.forward_with_selections(torch.randn(1, 3, 64, 96), [(height, width)])
        selection = split_selections(selections, [(height, width)], (64, 96))[0]
        pairs.append(({"image_id": index}, {"selection": selection}))
        expected.append(image_macs(model, selection))
    figures = evaluate(pairs, backbone=model, output_dir=str(tmp_path))
    assert figures["executed_macs_g"] == sum(macs.executed for macs in expected) / 2e9
    assert figures["useful_macs_g"] == sum(macs.useful for macs in expected) / 2e9
    assert figures["dense_macs_g"] == sum(macs.dense for macs in expected) / 2e9
    written = json.loads((tmp_path / "selection_results.json").read_text())
    assert written["selection"] == figures
    assert [row["image_id"] for row in written["images"]] == [0, 1]
    assert [row["executed_macs"] for row in written["images"]] == [macs.executed for macs in expected]


def test_dense_backbone_has_macs_and_no_selection():
    model = Swin(**NANO).eval()
    _, selections = model.forward_with_selections(torch.randn(1, 3, 64, 64))
    selection = split_selections(selections, [(64, 64)], (64, 64))[0]
    figures = evaluate([({}, {"selection": selection})], backbone=model)
    assert set(figures) == {"executed_macs_g", "useful_macs_g", "dense_macs_g"}
    assert figures["executed_macs_g"] == figures["dense_macs_g"] > 0
    assert evaluate([({}, {"selection": selection})]) == {}
    assert selection_summary({}) == {"keep_ratio": None, "retention": None, "density": None, "by_stage": {}}


def test_no_image_gives_no_result():
    assert SelectionEvaluator().evaluate() == {}


def test_works_beside_the_coco_evaluator(tmp_path):
    image = {"id": 7, "file_name": "7.jpg", "height": 32, "width": 48}
    annotation = {"id": 1, "image_id": 7, "category_id": 1, "bbox": [4, 4, 20, 20], "area": 400, "iscrowd": 0}
    data = {"images": [image], "annotations": [annotation], "categories": [{"id": 1, "name": "thing"}]}
    (tmp_path / "one.json").write_text(json.dumps(data))
    name = "test_selection_evaluator_one"
    register_coco_instances(name, {}, str(tmp_path / "one.json"), str(tmp_path))
    DatasetCatalog.get(name)
    instances = Instances((32, 48))
    instances.pred_boxes = Boxes(torch.tensor([[4.0, 4.0, 24.0, 24.0]]))
    instances.scores, instances.pred_classes = torch.tensor([0.9]), torch.tensor([0])
    selection = ImageSelection([block(3, 0, mask("xx.", "xx."))], (32, 64))
    coco = COCOEvaluator(name, tasks=("bbox",), use_fast_impl=False, output_dir=str(tmp_path / "out"))
    both = DatasetEvaluators([coco, SelectionEvaluator()])
    try:
        both.reset()
        both.process([{"image_id": 7}], [{"instances": instances, "selection": selection}])
        results = both.evaluate()
    finally:
        DatasetCatalog.remove(name)
    assert results["bbox"]["AP"] == pytest.approx(100.0)
    assert results["selection"]["keep_ratio"] == 4 / 6


SPLITS = (((0, 1, 2, 3), ()), ((), (0, 1, 2, 3)), ((0,), (1, 2, 3)), ((3, 1), (2, 0)))


def _evaluate_shares(rank: int, folder: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    pairs, results = random_pairs(), []
    for split in SPLITS:
        evaluator = SelectionEvaluator(Swin(**NANO))
        for index in split[rank]:
            evaluator.process([pairs[index][0]], [pairs[index][1]])
        results.append(evaluator.evaluate())
    with open(f"{folder}/{rank}.json", "w") as file:
        json.dump(results, file)
    # Left to Python, a process was once seen to abort while it took gloo's threads apart, with all it had to do done.
    dist.barrier()
    os._exit(0)


def test_two_processes_equal_one_however_images_are_dealt_out(tmp_path):
    mp.spawn(_evaluate_shares, args=(str(tmp_path),), nprocs=2)
    main, other = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1))
    assert main == [{"selection": evaluate(random_pairs(), backbone=Swin(**NANO))}] * len(SPLITS)
    assert other == [{}] * len(SPLITS)


def test_errors_name_the_cure():
    selection = ImageSelection([block(3, 0, mask("xx", "x."))], (32, 32))
    evaluator = SelectionEvaluator()
    with pytest.raises(ValueError, match=r"MODEL\.SPT\.RETURN_SELECTIONS"):
        evaluator.process([{}], [{"instances": None}])
    with pytest.raises(ValueError, match=r"at stride 16\. Got strides \[8, 32\](.|\n)*INPUT\.SPT\.STRIDES"):
        evaluator.process([{"selection_labels": {8: None, 32: None}}], [{"selection": selection}])
    with pytest.raises(ValueError, match=r"selection: \(2, 2\)\n  label    : \(2, 3\)"):
        evaluator.process([{"selection_labels": {16: label("ooo", "ooo")}}], [{"selection": selection}])
    given = {"selection_boxes": torch.zeros(2, 4), "selection_areas": torch.zeros(3)}
    with pytest.raises(ValueError, match=r"selection_boxes: \(2, 4\)\n  selection_areas: \(3,\)"):
        evaluator.process([given], [{"selection": selection}])
    with pytest.raises(TypeError, match="Got Conv2d"):
        SelectionEvaluator(torch.nn.Conv2d(3, 3, 1))
