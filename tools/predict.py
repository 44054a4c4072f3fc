#!/usr/bin/env python3
"""
Run a trained detector on images: a picture of each with what was found, and all results in one json.

    R=output/demo
    python tools/predict.py --config-file $R/config.yaml --weights $R/model_final.pth photo.jpg --output found
    python tools/predict.py --config-file $R/config.yaml --weights $R/model_final.pth photos --output found --selection

Neither the data that the model was trained on nor the folder it was trained in is needed. Pictures go by the names of
their images, with .png behind; results.json is a list with, for each object, file_name, category_id, category_name,
bbox (x, y, width, height in pixels), score and, of a model with masks, segmentation (RLE, as pycocotools reads it).
category_id is that of the data set's json where that can still be read, else the number of the class from 0; names are
of that json too, else of the evaluation.json that the run left, else "class 3".

Exit code: 0, every image was read; 1, some were not, and are named at the end; 2, there is no model to run.
"""

import argparse
import os
import pickle
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

# Detectron2 and this project read it when they are imported. The repository's folder, wherever the program is run from.
os.environ.setdefault("DETECTRON2_DATASETS", str(Path(__file__).resolve().parents[1] / "datasets"))

import numpy as np
from detectron2.data import Metadata
from detectron2.data.detection_utils import read_image
from detectron2.evaluation.coco_evaluation import instances_to_coco_json
from detectron2.modeling.meta_arch.dense_detector import DenseDetector
from detectron2.structures import Instances

import spt_d2  # noqa: F401  registers backbones, meta-architectures and data sets
from spt_d2.data.coco_json import write_json
from spt_d2.data.datasets import Categories
from spt_d2.data.progress import terminal_progress
from spt_d2.engine.quiet import quiet_third_parties
from spt_d2.folders import expect_folder
from spt_d2.predictor import SelectionPredictor, build_predictor
from spt_d2.trained_run import load_trained_config, trained_categories
from spt_d2.visualization import draw_output, heat_legend, picture_grid, save_picture

RESULTS = "results.json"
IMAGES = (".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")  # of folders; a file that is named may be another
SMALLEST = 480  # pixels; of a picture with a shorter long side labels could not be read, and it is enlarged


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("images", nargs="+", metavar="IMAGE_OR_FOLDER", help="of a folder, all images below it")
    parser.add_argument("--config-file", required=True, metavar="FILE", help="config.yaml in the run's folder")
    parser.add_argument("--weights", required=True, metavar="FILE", help="model_final.pth in the run's folder")
    parser.add_argument("--output", required=True, metavar="FOLDER", help="of pictures and results.json")
    parser.add_argument(
        "--threshold",
        type=float,
        default=0.5,
        metavar="SCORE",
        help="what scores lower is left out; below the config's SCORE_THRESH_TEST there is nothing. Default: 0.5",
    )
    parser.add_argument("--device", metavar="cpu|cuda", help="default: the config's, the CPU where there is no CUDA")
    parser.add_argument("--selection", action="store_true", help="also draw how many blocks kept each token")
    args = parser.parse_args(argv)
    if not 0 <= args.threshold <= 1:
        parser.error(f"--threshold expects a score from 0 to 1. Got {args.threshold}.")
    if args.device and not re.fullmatch(r"cpu|cuda(:\d+)?", args.device):
        parser.error(f"--device expects cpu, cuda or cuda:N. Got {args.device}.")
    for option, path in (("--config-file", args.config_file), ("--weights", args.weights)):
        if not os.path.isfile(path):
            parser.error(f"{option} expects a file. Got {path}, which is none.")
    try:
        args.files = find_images(args.images, args.output)
    except ValueError as error:
        parser.error(str(error))
    return args


def find_images(given: list[str], output: str) -> dict[str, Path]:
    """
    Images by the names that their results go by: of one in a folder, the path from there.

    Args:
        given: files, and folders, below which all images are taken.
        output: where it is below such a folder, what lies in it is passed over: this program wrote it.

    Raises:
        ValueError: a folder without images, or that is ``output``; two images of one name.
    """
    found: dict[str, Path] = {}
    written = Path(output).resolve()
    for path in map(Path, given):
        if path.is_dir() and path.resolve() == written:
            raise ValueError(f"--output expects another folder than that of the images. Got {output} for both.")
        files = {path.name: path}
        if path.is_dir():
            files = {file.relative_to(path).as_posix(): file for file in _images_below(path, written)}
        if not files:
            raise ValueError(f"A folder expects images in it, or below. {path} has none.")
        for name, file in files.items():
            if found.setdefault(name, file).resolve() != file.resolve():
                raise ValueError(
                    f"Images expect distinct names, by which their results go. Got {found[name]} and {file}.\n"
                    "HINT: name a folder above both, or predict them one after the other."
                )
    return found


def _images_below(folder: Path, written: Path) -> list[Path]:
    files = [file for file in sorted(folder.rglob("*")) if file.suffix.lower() in IMAGES and file.is_file()]
    if not written.is_relative_to(folder.resolve()):
        return files
    return [file for file in files if not file.resolve().is_relative_to(written)]


def readable(files: dict[str, Path], bad: dict[str, str]) -> Iterator[tuple[str, np.ndarray]]:
    """Names and BGR images; those that cannot be read go to ``bad``, with the reason."""
    for name, path in terminal_progress(files.items(), len(files), "predicting"):
        try:
            # As a mapper reads it: turned as its EXIF says.
            image = np.ascontiguousarray(read_image(str(path), "BGR"))
        # Pillow's readers raise anything on a damaged file.
        except Exception as error:
            bad[str(path)] = f"{type(error).__name__}: {error}"
            continue
        yield name, image


def coco_results(instances: Instances, file_name: str, categories: Categories) -> list[dict[str, Any]]:
    """Entries of results.json."""
    results = []
    for result in instances_to_coco_json(instances, file_name):
        index = result.pop("category_id")
        category = {
            "file_name": result.pop("image_id"),
            "category_id": categories.ids[index] if categories.ids else index,
            "category_name": categories.names[index],
        }
        results.append({**category, **result})
    return results


def load(args: argparse.Namespace) -> tuple[SelectionPredictor, Categories]:
    """
    The model and its classes.

    Raises:
        ValueError: a config that cannot be, weights of another model, a model that finds no objects.
    """
    cfg = load_trained_config(args.config_file, args.device)
    predictor = build_predictor(cfg, args.weights, return_selections=args.selection, whole=True)
    if not hasattr(predictor.model, "roi_heads") and not isinstance(predictor.model, DenseDetector):
        raise ValueError(
            f"predict.py expects a detector. Got a {type(predictor.model).__name__}.\n"
            "HINT: spt_d2.predictor runs models of any kind from Python."
        )
    folders = [Path(file).resolve().parent for file in (args.config_file, args.weights)]
    return predictor, trained_categories(cfg, predictor.model, folders)


def main(argv: list[str] | None = None) -> int:
    """Run the program; returns the exit code."""
    args = parse_arguments(argv)
    quiet_third_parties()
    try:
        predictor, categories = load(args)
        expect_folder(args.output, "--output")
    # An unknown key of a config is a KeyError, a damaged checkpoint a RuntimeError or an UnpicklingError.
    except (ValueError, OSError, KeyError, ImportError, RuntimeError, pickle.UnpicklingError) as error:
        print(error, file=sys.stderr)
        return 2
    metadata = Metadata(thing_classes=list(categories.names))
    print(f"{len(categories.names)} classes, named by {categories.source}")

    output, selected = Path(args.output), False
    results: list[dict[str, Any]] = []
    bad: dict[str, str] = {}
    for name, image in readable(args.files, bad):
        found = predictor(image)
        instances = found["instances"].to("cpu")
        instances = instances[instances.scores >= args.threshold]
        rgb = np.ascontiguousarray(image[..., ::-1])
        pictures, blocks = draw_output(
            rgb,
            {**found, "instances": instances},
            found["input_size"],
            metadata,
            score_threshold=args.threshold,
            scale=max(1.0, SMALLEST / max(rgb.shape[:2])),
        )
        picture = pictures[0]
        if blocks:
            legend = heat_legend(2 * picture.shape[1], blocks)
            picture = picture_grid([pictures], ["predictions", "selection"], legend=legend)
        save_picture(output / f"{name}.png", picture)
        results += coco_results(instances, name, categories)
        selected = selected or blocks > 0

    write_json(output / RESULTS, results)
    print(f"{len(results)} objects in {len(args.files) - len(bad)} images: {output / RESULTS}, and a picture of each")
    if args.selection and not selected and len(bad) < len(args.files):
        print("--selection: the backbone of this model selects nothing; there is nothing to draw of it")
    if not categories.ids:
        print("category_id is the number of the class, from 0, for no json of its data sets could be read")
    for path, reason in bad.items():
        print(f"not read: {path}: {reason}", file=sys.stderr)
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
