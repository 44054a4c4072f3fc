"""
Write the part of a COCO-format data set whose images are covered by objects to less than a share of their pixels.

    python datasets/make_sparse_subset.py INPUT.json OUTPUT.json --max-ratio 0.25 --ratio union

BDD-S, from what prepare_bdd100k.py wrote (in datasets/bdd100k/annotations):

    python datasets/make_sparse_subset.py det_val.json det_sparse_val.json
    python datasets/make_sparse_subset.py det_train.json det_sparse_train.json

Images without objects are kept. Ids stay as they are, the image folder is the same.
"""

from __future__ import annotations

import argparse
import sys

from spt_d2.data.coco_json import expect_new_files, naming_file, read_coco, write_json
from spt_d2.data.progress import terminal_progress
from spt_d2.data.sparse_subset import RATIOS, SPARSE_RATIO, SubsetReport, sparse_subset
from spt_d2.ops.labels import LABEL_SOURCES


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("input", metavar="INPUT.json")
    parser.add_argument("output", metavar="OUTPUT.json")
    parser.add_argument(
        "--max-ratio", type=float, default=SPARSE_RATIO, metavar="R", help=f"kept is what is below ({SPARSE_RATIO})"
    )
    parser.add_argument(
        "--ratio", choices=RATIOS, default="union", help="pixels under any object (default), or objects' pixels summed"
    )
    parser.add_argument(
        "--source", choices=LABEL_SOURCES, default="box", help="what an object covers (default: its box)"
    )
    parser.add_argument("--force", action="store_true", help="overwrite OUTPUT.json")
    args = parser.parse_args(argv)
    if not 0 < args.max_ratio <= 1:
        parser.error(f"--max-ratio expects a share in (0, 1]. Got {args.max_ratio}.")
    return args


def share(counts: tuple[int, int]) -> str:
    """Kept, all, and the share."""
    kept, total = counts
    return f"{kept} of {total}" + (f" ({kept / total:.1%})" if total else "")


def print_report(report: SubsetReport) -> None:
    """What was kept, on the terminal."""
    print(f"  images        {share(report.images)}, of these without objects {share(report.empty_images)}")
    print(f"  objects       {share(report.objects)}; annotations with crowds {share(report.annotations)}")
    print(f"  mean ratio    {report.mean_ratio[0]:.2%} of those kept, {report.mean_ratio[1]:.2%} of all")
    width = max(map(len, report.classes), default=0)
    for name, counts in report.classes.items():
        print(f"    {name:{width}s}  {share(counts)}")


def main(argv: list[str] | None = None) -> int:
    """Run the program; returns the exit code."""
    args = parse_arguments(argv)
    try:
        expect_new_files([args.output], args.force)
        content = read_coco(args.input)
        with naming_file(args.input):
            subset, report = sparse_subset(content, args.max_ratio, args.ratio, args.source, terminal_progress)
        write_json(args.output, subset, sources=(args.input,))
    except (OSError, ValueError) as error:
        print(error, file=sys.stderr)
        return 1
    bound = f"{100 * args.max_ratio:g} % ({args.ratio} by {args.source})"
    print(f"{args.output}: images whose objects cover less than {bound}")
    print_report(report)
    return 0


if __name__ == "__main__":
    sys.exit(main())
