#!/usr/bin/env python3
"""
Check a COCO-format data set for everything that training stumbles over, in one report.

    python tools/check_dataset.py my_data/train.json --images my_data/images
    python tools/check_dataset.py my_data/train.json --images my_data/images --decode     read every pixel, too
    python tools/check_dataset.py my_data/train.json --images my_data/images --fix clean.json
    python tools/check_dataset.py coco_2017_val                                           a registered data set

Exit code: 0, training would be safe, as far as was looked at; 1, it would not; 2, there is no such json. With --fix: of
the clean copy, which is a file of its own; what was checked is never written to.
"""

import argparse
import os
import sys

from spt_d2.data.coco_check import check_coco
from spt_d2.data.coco_json import find_coco, read_coco, write_json
from spt_d2.data.progress import terminal_progress


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset", metavar="FILE.json|NAME")
    parser.add_argument("--images", metavar="DIR", help="image folder; without it the json alone is checked")
    parser.add_argument("--decode", action="store_true", help="read every pixel: finds files that are cut short")
    parser.add_argument("--workers", type=int, metavar="N", help="threads that read files")
    parser.add_argument("--fix", metavar="OUT.json", help="write a clean copy")
    parser.add_argument("--json", metavar="PATH", help="write the report for programs")
    args = parser.parse_args(argv)
    try:
        args.dataset, images = find_coco(args.dataset)
    except (OSError, ValueError) as error:
        print(error, file=sys.stderr)
        sys.exit(2)
    args.images = args.images or images
    if args.images is not None and not os.path.isdir(args.images):
        parser.error(f"--images expects a folder. Got {args.images}.")
    if args.decode and args.images is None:
        parser.error("--decode expects --images.")
    return args


def main(argv: list[str] | None = None) -> int:
    """Run the check; returns the exit code."""
    args = parse_arguments(argv)
    try:
        content = read_coco(args.dataset)
    except (OSError, ValueError) as error:
        print(error, file=sys.stderr)
        return 1 if isinstance(error, ValueError) else 2
    report = check_coco(content, args.images, args.decode, args.workers, terminal_progress)
    seen = "not looked at" if args.images is None else f"{args.images}, {'every pixel' if args.decode else 'headers'}"
    unseen = "images (--images)" if args.images is None else "" if args.decode else "pixels (--decode)"
    print(f"{args.dataset}, images: {seen}\n{report.text(unseen)}")
    if args.fix and report.clean is None:
        print("--fix: no clean copy can be made; see the errors that it cannot mend", file=sys.stderr)
    try:
        if args.json:
            looked_at = {"json_file": args.dataset, "image_root": args.images, "decoded": args.decode}
            write_json(args.json, {**looked_at, **report.as_dict()}, sources=(args.dataset,))
        if args.fix and report.clean is not None:
            write_json(args.fix, report.clean, sources=(args.dataset,))
            images, annotations = len(report.clean["images"]), len(report.clean["annotations"])
            print(f"{args.fix}: {images} of {report.images} images, {annotations} of {report.annotations} annotations")
    except (OSError, ValueError) as error:
        print(error, file=sys.stderr)
        return 1
    return 0 if report.safe or (args.fix and report.clean is not None) else 1


if __name__ == "__main__":
    sys.exit(main())
