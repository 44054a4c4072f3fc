#!/usr/bin/env python3
"""
The whole path in one command: make Shapes, train a nano Select and Pack Mask R-CNN on it, evaluate it, draw it.

    python tools/demo.py                 into output/demo
    python tools/demo.py --dense         the dense twin of equal depth, into output/demo-dense
    python tools/demo.py --resume        go on where a run was stopped; without it, a run starts afresh
    python tools/demo.py SOLVER.MAX_ITER 100 SOLVER.STEPS "(80,)"    overrides of the config come last
    python tools/demo.py --config-file my_data.yaml --output output/my_data    a config of one's own, in its own folder

Leaves summary.json, selection.png, curves.png, log.txt and checkpoints. Both twins start from the same weights wherever
their names and shapes agree; the gates, which only one has, keep a start of their own.
"""

import argparse
import contextlib
import importlib.util
import io
import logging
import os
import shutil
import sys
import time
from pathlib import Path

# Detectron2 and this project read it when they are imported. The repository's folder, wherever the program is run from.
os.environ.setdefault("DETECTRON2_DATASETS", str(Path(__file__).resolve().parents[1] / "datasets"))

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog
from detectron2.data.detection_utils import read_image
from detectron2.engine import HookBase
from detectron2.utils.env import seed_all_rng
from detectron2.utils.events import EventWriter

from spt_d2 import get_config_file
from spt_d2.config import classifies
from spt_d2.config_hierarchy import backbone_kind
from spt_d2.curves import draw_curves, read_metrics
from spt_d2.data import build_mapper
from spt_d2.data.datasets import dataset_root
from spt_d2.engine.evaluation_file import EVALUATION_FILE, EvaluationFile
from spt_d2.engine.initial import dense_twin, initial_weights, load_agreeing
from spt_d2.engine.preflight import expect_data, expect_kept, expect_weights
from spt_d2.engine.progress import ProgressWriter, TerminalHandler, TrainingClock, duration
from spt_d2.engine.quiet import quiet_third_parties
from spt_d2.engine.setup import load_config, read_config, setup
from spt_d2.engine.trainer import Trainer
from spt_d2.predictor import SelectionPredictor, build_predictor
from spt_d2.summary import read_summary, summarize, summary_table, write_summary
from spt_d2.visualization import draw_ground_truth, draw_output, heat_legend, picture_grid, save_picture

ROOT = Path(__file__).resolve().parents[1]
# Titles of the table's columns, in their order.
TWINS = ("select and pack", "dense")
CONFIGS = {
    False: "Shapes-InstanceSegmentation/mask_rcnn_spt_nano_fpn_demo.yaml",
    True: "Shapes-InstanceSegmentation/mask_rcnn_swin_nano_fpn_demo.yaml",
}
# What a run leaves behind, and what the next one into the same folder begins by removing.
LEFT_BEHIND = (
    "summary.json", EVALUATION_FILE, "selection.png", "curves.png", "metrics.json", "log.txt", "config.yaml",
    "last_checkpoint", "model_*.pth", "events.out.tfevents.*", "inference",
)  # fmt: skip
PANEL = 320  # pixels, side of a picture in selection.png


def say(line: str = "") -> None:
    """To the terminal, at once, even where that is a pipe."""
    print(line, file=sys.__stdout__, flush=True)


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--dense", action="store_true", help="the dense twin: a Swin backbone of equal depth")
    which.add_argument("--config-file", metavar="FILE", help="another yaml config")
    parser.add_argument("--output", metavar="DIR", help="default: output/demo[-dense]; needed with --config-file")
    parser.add_argument("--resume", action="store_true", help="continue the run in the output folder")
    parser.add_argument("opts", nargs=argparse.REMAINDER, metavar="KEY VALUE", help="overrides of the config")
    args = parser.parse_args(argv)
    if len(args.opts) % 2:
        parser.error(f"overrides expect keys and values in turn. Got {' '.join(args.opts)}")
    if args.config_file and not args.output:
        parser.error("--config-file expects --output: output/demo is the demo's own, and each run clears its folder")
    args.output = Path(args.output or ROOT / "output" / ("demo-dense" if args.dense else "demo")).resolve()
    args.config_file = args.config_file or get_config_file(CONFIGS[args.dense])
    args.eval_only = False
    args.opts += ["OUTPUT_DIR", str(args.output)]
    return args


def shown(path: Path) -> str:
    """A path as one would type it here."""
    return os.path.relpath(path) if path.is_relative_to(Path.cwd()) else str(path)


def needs_shapes(cfg: CfgNode) -> bool:
    """Whether the config's data sets are those that ``datasets/make_shapes.py`` makes."""
    return not {"shapes_train", "shapes_val"}.isdisjoint((*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST))


def expect_detector(cfg: CfgNode) -> None:
    """
    Raises:
        SystemExit: a classifier, which has no boxes for the table and the pictures.
    """
    if classifies(cfg):
        raise SystemExit(
            f"The demo expects a detector in MODEL.META_ARCHITECTURE. Got {cfg.MODEL.META_ARCHITECTURE!r}.\n"
            "HINT: projects/SPT/train_net.py trains and evaluates a classifier."
        )


def prepare_shapes() -> None:
    """Make Shapes in the folder of data sets, unless it is there, of whatever size."""
    spec = importlib.util.spec_from_file_location("make_shapes", ROOT / "datasets" / "make_shapes.py")
    assert spec is not None and spec.loader is not None
    generator = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(generator)
    folder = Path(dataset_root()).resolve() / "shapes"
    if not (folder / "val.json").exists():
        say(f"Making the data set Shapes in {shown(folder)} (once, about 15 s) ...")
    try:
        report = generator.make_shapes(folder)
        made = {split: report[split]["images"] for split in ("train", "val")}
        say(f"Shapes: {made['train']} training and {made['val']} validation images in {shown(folder)}")
    except FileExistsError:
        if not all((folder / f"{split}.json").exists() for split in ("train", "val")):
            raise
        say(f"Shapes: {shown(folder)} holds a set of another size or seed, which is used as it is")


def left_behind(folder: Path) -> list[Path]:
    """Files and folders that an earlier run left in its folder."""
    return [path for pattern in LEFT_BEHIND for path in folder.glob(pattern)]


def clear_output(folder: Path) -> None:
    """Remove what an earlier run left, and nothing else."""
    if (folder / "config.yaml").exists():
        say(f"{shown(folder)} holds an earlier run: it is removed, and training starts afresh (--resume continues it)")
    for path in left_behind(folder):
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def prepare(args: argparse.Namespace) -> None:
    """
    Make Shapes if it is needed, and the output folder empty once config, data and weights were seen to be in order.

    Raises:
        SystemExit: one of them is not, or lies in what would be removed; nothing was removed.
    """
    try:
        merged = read_config(args.config_file, args.opts)
        expect_detector(merged)
        if not args.resume:
            expect_weights(merged.MODEL.WEIGHTS)
            expect_kept(left_behind(args.output), [args.config_file, merged.MODEL.WEIGHTS.partition("?")[0]])
        if needs_shapes(merged):
            prepare_shapes()
        # For the CPU: the setup to come tells which device there is.
        expect_data(load_config(args.config_file, [*args.opts, "MODEL.DEVICE", "cpu"]))
    except (ValueError, FileNotFoundError) as error:
        raise SystemExit(str(error)) from error
    if not args.resume:
        clear_output(args.output)


def quiet_setup(args: argparse.Namespace) -> CfgNode:
    """The project's setup, with logs of the whole config and model going to log.txt and not to the terminal."""
    # Handlers made here write to the standard output of this moment, for good.
    with contextlib.redirect_stdout(io.StringIO()):
        cfg = setup(args)
    terminal = TerminalHandler(sys.__stdout__)
    for name in ("spt_d2", "detectron2"):
        logging.getLogger(name).addHandler(terminal)
    return cfg


class DemoTrainer(Trainer):
    """The project's trainer, which tells a newcomer how it is doing."""

    def build_hooks(self) -> list[HookBase | None]:
        self.clock = TrainingClock()
        return [self.clock, *super().build_hooks()]

    def build_writers(self) -> list[EventWriter]:
        return [ProgressWriter(self.max_iter, say), *super().build_writers()]


def train(cfg: CfgNode, resume: bool) -> tuple[dict, float]:
    """Results of the evaluation by task, and the seconds spent in iterations."""
    weights = initial_weights(dense_twin(cfg))
    seed_all_rng(None if cfg.SEED < 0 else cfg.SEED)
    trainer = DemoTrainer(cfg)
    load_agreeing(trainer.model, weights)
    # A checkpoint replaces what it has of them.
    trainer.resume_or_load(resume=resume)
    images, threads = cfg.SOLVER.IMS_PER_BATCH, torch.get_num_threads()
    where = f"the CPU, {threads} threads" if cfg.MODEL.DEVICE == "cpu" else cfg.MODEL.DEVICE
    if trainer.start_iter >= trainer.max_iter:
        say("\nTraining was complete; evaluating again")
    else:
        start = f", from iteration {trainer.start_iter + 1}" if trainer.start_iter else ""
        say(f"\nTraining: {trainer.max_iter} iterations of {images} images on {where}{start}")
    return trainer.train(), trainer.clock.seconds


def pick_records(name: str, number: int) -> list[dict]:
    """Evenly spaced images of a data set, the last of them one without objects if there is any."""
    records = DatasetCatalog.get(name)
    full = [record for record in records if record.get("annotations")]
    empty = [record for record in records if not record.get("annotations")][:1]
    wanted = min(number - len(empty), len(full))
    return [full[i * len(full) // wanted] for i in range(wanted)] + empty


def draw_examples(cfg: CfgNode, predictor: SelectionPredictor, number: int = 6) -> np.ndarray:
    """A grid: ground truth, predictions and, where the backbone selects, the heat map."""
    rows, blocks, mapper = [], 0, build_mapper(cfg, is_train=False)
    for record in pick_records(cfg.DATASETS.TEST[0], number):
        # As the mapper reads it: turned as its EXIF says, and an error where it cannot be read.
        image = read_image(record["file_name"], "BGR")
        # With the labels that an oracle selects by.
        inputs = mapper(record)
        with torch.no_grad():
            output = predictor.model([inputs])[0]
        rgb = np.ascontiguousarray(image[..., ::-1])
        scale = PANEL / max(rgb.shape[:2])
        pictures, blocks = draw_output(rgb, output, inputs["image"].shape[1:], predictor.metadata, scale=scale)
        rows.append([draw_ground_truth(rgb, record, predictor.metadata, scale=scale), *pictures])
    titles = ["ground truth", "predictions", *(["selection"] if blocks else [])]
    legend = heat_legend(2 * PANEL, blocks) if blocks else None
    return picture_grid(rows, titles, groups=2, legend=legend)


def column_title(cfg: CfgNode) -> str:
    """What a run is called in the table: one of the twins, or the kind of backbone that has none."""
    kind = backbone_kind(cfg)
    if kind == "spt" or (kind == "vit" and cfg.MODEL.VIT.SPA_BLOCKS):
        return TWINS[0]
    return TWINS[1] if kind in ("swin", "vit") else kind


def compare(output: Path, summary: dict, title: str) -> None:
    """The table, with the twin beside it where there is one and it was trained."""
    name = output.name
    twin = output.with_name(name.removesuffix("-dense") if name.endswith("-dense") else f"{name}-dense")
    columns = {title: summary}
    other = read_summary(twin / "summary.json") if title in TWINS else None
    if other is not None:
        columns = {each: summary if each == title else other for each in TWINS}
    say(f"\n{summary_table(columns)}\n")
    if other is not None:
        when = time.strftime("%Y-%m-%d %H:%M", time.localtime((twin / "summary.json").stat().st_mtime))
        say(f"The twin's column is from {shown(twin)}, {when}.")


def main(argv: list[str] | None = None) -> dict:
    """Run the demo; returns what summary.json holds."""
    args = parse_arguments(argv)
    begin = time.perf_counter()
    quiet_third_parties()
    prepare(args)
    cfg = quiet_setup(args)
    record = EvaluationFile(cfg.OUTPUT_DIR, "tools/demo.py", args)

    # Programs of COCO print to the terminal; their tables are in log.txt as well.
    with contextlib.redirect_stdout(io.StringIO()):
        results, seconds = train(cfg, args.resume)
        # Before anything else that can fail: it is what the time was spent for.
        summary = summarize(results, seconds, record.commit)
        write_summary(args.output / "summary.json", summary)
        record.write(results, train=cfg.DATASETS.TRAIN, test=cfg.DATASETS.TEST, seed=cfg.SEED, device=cfg.MODEL.DEVICE)
        say("Drawing")
        predictor = build_predictor(cfg, str(args.output / "model_final.pth"))
        save_picture(args.output / "selection.png", draw_examples(cfg, predictor))
        save_picture(args.output / "curves.png", draw_curves(read_metrics(args.output / "metrics.json")))
    compare(args.output, summary, column_title(cfg))
    for name in ("summary.json", "selection.png", "curves.png", "log.txt"):
        say(shown(args.output / name))
    say(f"{duration(time.perf_counter() - begin)} in all")
    return summary


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        say("\nStopped. The same command with --resume goes on from the last checkpoint.")
        sys.exit(130)
