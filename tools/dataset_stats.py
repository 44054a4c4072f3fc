#!/usr/bin/env python3
"""
Measure data sets, side by side: objects, sizes, and the share of pixels and of tokens that objects cover.

    python tools/dataset_stats.py datasets/shapes/train.json datasets/shapes/val.json --source box mask
    python tools/dataset_stats.py coco_2017_val BDD=datasets/bdd100k/annotations/det_val.json --plot ratios.png

A data set is a COCO json, NAME=JSON to give its column another title, or the name of a registered one (VOC 2012 too).
"""

import argparse
import os
import sys

from spt_d2.data.coco_json import find_coco, is_without_json, naming_file, read_dataset, write_json
from spt_d2.data.coco_stats import DatasetStats, measure_dataset, stats_table
from spt_d2.data.progress import terminal_progress
from spt_d2.data.stats_plot import draw_stats
from spt_d2.ops.labels import LABEL_SOURCES
from spt_d2.visualization import save_picture


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset", nargs="+", metavar="[NAME=]FILE.json|NAME")
    parser.add_argument(
        "--source", nargs="+", choices=LABEL_SOURCES, default=["auto"], metavar="auto|box|mask",
        help="what an object covers, one column each: its mask where it has one (auto, the default), its box, its mask",
    )  # fmt: skip
    parser.add_argument("--json", metavar="PATH", help="write the figures for programs")
    parser.add_argument("--plot", metavar="FILE.png", help="draw ratios and densities")
    args = parser.parse_args(argv)
    try:
        named = [find_dataset(text) for text in args.dataset]
    except (OSError, ValueError) as error:
        print(error, file=sys.stderr)
        sys.exit(1)
    titles = [title for title, _ in named]
    twice = sorted({title for title in titles if titles.count(title) > 1})
    if twice:
        parser.error(
            f"data sets expect titles of their own. Got {', '.join(twice)} more than once; write NAME=FILE.json"
        )
    args.dataset = dict(named)
    return args


def find_dataset(text: str) -> tuple[str, str]:
    """Title of a data set as it was named, and its json, or the name of one that is registered without."""
    if os.path.isfile(text):
        folder, name = os.path.split(os.path.abspath(text))
        return f"{os.path.basename(folder)}/{os.path.splitext(name)[0]}", text
    title, equals, path = text.partition("=")
    name = path if equals else text
    return title if equals else text, name if is_without_json(name) else find_coco(name)[0]


def main(argv: list[str] | None = None) -> int:
    """Run the measurement; returns the exit code."""
    args = parse_arguments(argv)
    stats: dict[str, DatasetStats] = {}
    try:
        for title, path in args.dataset.items():
            content = read_dataset(path)
            for source in args.source:
                column = title if len(args.source) == 1 else f"{title} ({source})"
                with naming_file(path):
                    stats[column] = measure_dataset(content, source, progress=terminal_progress)
        summaries = {title: stat.summary() for title, stat in stats.items()}
        print(stats_table(summaries))
        if args.json:
            write_json(args.json, summaries, sources=tuple(filter(os.path.isfile, args.dataset.values())))
        if args.plot:
            save_picture(args.plot, draw_stats(stats))
    except (OSError, ValueError) as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
