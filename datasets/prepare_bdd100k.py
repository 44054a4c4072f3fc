"""
Write COCO json files of BDD100K's detection labels, where the data sets bdd100k_train and bdd100k_val look for them.

    python datasets/prepare_bdd100k.py

reads, under datasets/bdd100k (or $DETECTRON2_DATASETS/bdd100k, or --root), labels/det_20/det_{train,val}.json, or with
--labels 2018 the deprecated labels/bdd100k_labels_images_{train,val}.json, compares them with images/100k/{train,val},
and writes annotations/det_{train,val}.json. Files elsewhere are named one split at a time:

    python datasets/prepare_bdd100k.py --split val --label-file L.json --images DIR --output O.json

Other persons, other vehicles and trailers become crowds: no detector is blamed for finding them or not. The vintage of
the labels is told from what is in the file, and stands in the json's info.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from spt_d2.data.bdd100k import IMAGE_SIZE, ConversionReport, convert, read_frames
from spt_d2.data.coco_check.files import read_headers
from spt_d2.data.coco_json import expect_new_files, write_json
from spt_d2.data.datasets import dataset_root
from spt_d2.data.progress import terminal_progress

SPLITS = ("train", "val")
LABEL_FILES = {"2020": "labels/det_20/det_{}.json", "2018": "labels/bdd100k_labels_images_{}.json"}


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", metavar="DIR", default=os.path.join(dataset_root(), "bdd100k"))
    parser.add_argument("--split", nargs="+", choices=SPLITS, default=SPLITS)
    parser.add_argument("--labels", choices=LABEL_FILES, default="2020", help="vintage of the label files (2020)")
    parser.add_argument("--label-file", metavar="FILE", help="in place of the one under --root")
    parser.add_argument("--images", metavar="DIR", help="image folder, in place of the one under --root")
    parser.add_argument("--output", metavar="FILE", help="in place of the one under --root")
    parser.add_argument(
        "--unlabelled", choices=("exclude", "include"), default="exclude",
        help="images of the folder without an entry in the label file: exclude (default; their labels are missing by "
        "accident, 137 of train), or include as images that show nothing",
    )  # fmt: skip
    parser.add_argument("--allow-missing", action="store_true", help="leave out entries whose image is not there")
    parser.add_argument("--check-sizes", action="store_true", help="read the header of every image")
    parser.add_argument(
        "--inclusive", action="store_true",
        help="x2 and y2 are a box's last pixels, not its borders (as in the latest official converter)",
    )  # fmt: skip
    parser.add_argument("--force", action="store_true", help="overwrite what an earlier run wrote")
    args = parser.parse_args(argv)
    if len(args.split) > 1 and (args.label_file or args.images or args.output):
        parser.error("--label-file, --images and --output expect one --split")
    return args


def print_report(report: ConversionReport, label_file: Path, compared: bool) -> None:
    """What was found, on the terminal."""

    def line(what: str, found: str) -> None:
        print(f"  {what:34s} {found}")

    def some(names: list[str]) -> str:
        return f"{len(names)}" + (f": {', '.join(names[:3])}{', ...' if len(names) > 3 else ''}" if names else "")

    def counts(counter: dict[str, int]) -> str:
        return ", ".join(f"{name} {count}" for name, count in sorted(counter.items())) or "none"

    deprecated = " (deprecated: AP is not that of the labels of 2020)" if report.vintage == "2018" else ""
    line("labels", f"{label_file}, vintage {report.vintage}{deprecated}")
    line("frames", f"{report.frames}")
    line("  of these without boxes", some(report.empty_frames))
    if compared:
        line("images without a frame", some(report.unlabelled_images))
        line("frames without an image", some(report.missing_images))
    else:
        line("images", "no image folder: not compared")
    line("images written", f"{report.images}")
    line("objects written", f"{report.objects}")
    line("crowds in labels: ignored classes", counts(report.ignored))
    line("crowds in labels: by attribute", f"{report.crowds}")
    line("labels without a box", counts(report.without_box))
    line("left out: faulty boxes", some(report.faulty_boxes))
    line("left out: unknown categories", counts(report.unknown))


def check_sizes(folder: Path, names: list[str]) -> None:
    """
    Read the header of every image.

    Raises:
        ValueError: one that cannot be read, or is of another size.
    """
    paths = [str(folder / name) for name in names]
    wrong = []
    for name, header in zip(names, read_headers(paths, progress=terminal_progress)):
        if header.error is not None:
            wrong.append(f"{name} ({header.error})")
        elif header.size != IMAGE_SIZE:
            wrong.append(f"{name} ({header.size[1]} x {header.size[0]})")
    if wrong:
        more = f"\n  and {len(wrong) - 5} more" if len(wrong) > 5 else ""
        raise ValueError(
            f"{folder} expects images of {IMAGE_SIZE[1]} x {IMAGE_SIZE[0]} pixels. Got\n  "
            + "\n  ".join(wrong[:5])
            + more
        )


def output_file(split: str, args: argparse.Namespace) -> Path:
    """Where the json of a split goes."""
    return Path(args.output) if args.output else Path(args.root) / "annotations" / f"det_{split}.json"


def prepare(split: str, args: argparse.Namespace) -> None:
    """
    Convert one split.

    Raises:
        FileNotFoundError: no label file.
        ValueError: no BDD100K label file, an image missing or of another size.
    """
    root = Path(args.root)
    label_file = Path(args.label_file) if args.label_file else root / LABEL_FILES[args.labels].format(split)
    folder = Path(args.images) if args.images else root / "images" / "100k" / split
    output = output_file(split, args)
    if args.images and not folder.is_dir():
        raise FileNotFoundError(f"--images expects a folder. Got {folder}.")
    names = sorted(path.name for path in folder.iterdir() if path.suffix == ".jpg") if folder.is_dir() else None
    if names is None and (args.check_sizes or args.unlabelled == "include"):
        raise FileNotFoundError(f"--check-sizes and --unlabelled include expect the image folder {folder}.")
    content, report = convert(
        read_frames(label_file), split, names, args.unlabelled == "include", args.inclusive, terminal_progress
    )
    print(f"{output} ({split})")
    print_report(report, label_file, compared=names is not None)
    if report.missing_images and not args.allow_missing:
        raise ValueError(
            f"{folder} lacks {len(report.missing_images)} images of the label file; nothing was written.\n"
            "HINT: the download is incomplete, or --allow-missing leaves them out."
        )
    if args.check_sizes:
        check_sizes(folder, [image["file_name"] for image in content["images"]])
    write_json(output, content, sources=(label_file,))


def main(argv: list[str] | None = None) -> int:
    """Run the program; returns the exit code."""
    args = parse_arguments(argv)
    try:
        # Labels of 2018 in the place of those of 2020 would give other APs, and nobody would see it.
        expect_new_files([output_file(split, args) for split in args.split], args.force)
        for split in args.split:
            prepare(split, args)
    except (OSError, ValueError) as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
