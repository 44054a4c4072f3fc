#!/usr/bin/env python3
"""
Search for the shares of windows that SparseViT skips in each stage: most accurate within bounds of measured latency.

    F=configs/Shapes-InstanceSegmentation/mask_rcnn_sparse_vit_nano_fpn_adapt.yaml
    python projects/SPT/train_net.py --config-file $F MODEL.WEIGHTS output/demo-dense/model_final.pth
    python tools/search_sparsity.py --config-file $F --weights output/sparse-vit-adapt/model_final.pth --max-ms 6 \\
        --images 50 --population 20 --parents 5 --generations 4
    python projects/SPT/train_net.py --config-file output/sparse-vit-adapt/search/best.yaml \\
        MODEL.WEIGHTS output/sparse-vit-adapt/model_final.pth OUTPUT_DIR output/sparse-vit-found

The model is to have been trained at drawn ratios (MODEL.SPARSE_VIT.SAMPLE_RATIOS), and is to be trained on at those
that are found. Milliseconds are of the backbone on one image, on this machine, timed in turn with the dense backbone.
Leaves search.json (all that was measured) and best.yaml in --output: the config and its overrides with the ratios
found; for a LazyConfig best.txt, overrides to train it on with: $(cat best.txt) on the command line. The same command
goes on where an interrupted one was; one with other bounds or more generations draws on what is known. Overrides of the
config come last: KEY VALUE for yaml, path.key=value for a LazyConfig.
"""

import argparse
import logging
import math
import os
import sys
from pathlib import Path

# Detectron2 and this project read it when they are imported. The repository's folder, wherever the program is run from.
os.environ.setdefault("DETECTRON2_DATASETS", str(Path(__file__).resolve().parents[1] / "datasets"))

from spt_d2.analysis.model_report import text_table
from spt_d2.engine.model_config import open_config
from spt_d2.provenance import code_commit
from spt_d2.sparsity_search import SearchOptions, search_sparsity
from spt_d2.sparsity_search.search import best_overrides, best_yaml


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config-file", required=True, metavar="FILE", help="a yaml config or a LazyConfig")
    parser.add_argument("--weights", metavar="FILE", help="checkpoint; default: the config's")
    parser.add_argument("--dataset", metavar="NAME", help="default: the config's first data set of evaluation")
    parser.add_argument("--output", metavar="DIR", help="default: search in the config's output folder")
    parser.add_argument("--max-ms", type=float, default=math.inf, metavar="MS", help="of the backbone, one image")
    parser.add_argument("--min-ms", type=float, default=0.0, metavar="MS", help="default: 0")
    parser.add_argument(
        "--images", type=int, default=0, metavar="N", help="to evaluate on, evenly spread; default: all"
    )
    parser.add_argument("--task", default="bbox", metavar="TASK", help="whose AP counts: bbox (default) or segm")
    parser.add_argument("--population", type=int, default=100, metavar="N", help="of a generation; default: 100")
    parser.add_argument("--parents", type=int, default=25, metavar="N", help="of the next; default: 25")
    parser.add_argument("--generations", type=int, default=10, metavar="N", help="default: 10")
    parser.add_argument("--mutation", type=float, default=0.1, metavar="P", help="of a ratio; default: 0.1")
    parser.add_argument("--seed", type=int, default=0, help="default: 0")
    parser.add_argument("--timing-images", type=int, default=4, metavar="N", help="of the data set; default: 4")
    parser.add_argument("--rounds", type=int, default=10, metavar="N", help="timed passes per image; default: 10")
    parser.add_argument("--warmup", type=int, default=2, metavar="N", help="passes before them; default: 2")
    parser.add_argument("opts", nargs=argparse.REMAINDER, metavar="OVERRIDE", help="overrides of the config")
    args = parser.parse_args(argv)
    if args.timing_images < 1 or args.rounds < 1 or min(args.warmup, args.images) < 0:
        parser.error("--timing-images and --rounds expect at least 1, --warmup and --images at least 0")
    return args


def main(argv: list[str] | None = None) -> dict:
    """Run the program; returns what :func:`spt_d2.sparsity_search.search_sparsity` does."""
    args = parse_arguments(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
    options = SearchOptions(
        args.max_ms, args.min_ms, args.population, args.parents, args.generations, args.mutation, args.seed
    )
    config = open_config(args.config_file, args.opts)
    if not (args.dataset or config.datasets):
        raise ValueError("search_sparsity.py expects --dataset. Got none, and the config names none.")
    dataset, output = args.dataset or config.datasets[0], args.output or os.path.join(config.output_dir, "search")
    found = search_sparsity(
        config,
        output,
        options,
        config_name=args.config_file,
        dataset=dataset,
        weights=args.weights,
        images=args.images,
        task=args.task,
        timing_images=args.timing_images,
        rounds=args.rounds,
        warmup=args.warmup,
    )
    best = found["best"]
    header = ["skipped windows, by stage", f"{args.task} AP, %", "ms", "of dense", "10^9 MACs"]
    rows = [
        [
            str(each["ratios"]) + (" dense" if each is found["dense"] else " best" if each is best else ""),
            f"{each['accuracy']:.2f}",
            f"{each['latency_ms']:.2f}",
            f"{each['of_dense']:.3f}",
            "-" if each["macs_g"] is None else f"{each['macs_g']:.3f}",
        ]
        for each in [found["dense"], *(each for each in found["front"] if each is not found["dense"])]
    ]
    print(f"\nDense, and the Pareto front of {found['evaluated']} evaluated of {found['measured']} timed:\n")
    print(text_table(header, rows))
    bounds = f"{options.min_ms:g} to {options.max_ms:g} ms"
    comment = (
        f"Found by tools/search_sparsity.py at commit {code_commit()} for {bounds}:\n"
        f"{best['latency_ms']:.2f} ms ({best['of_dense']:.3f} of dense), {args.task} AP {best['accuracy']:.2f} on "
        f"{args.images or 'all'} images of {dataset}, before training at these ratios."
    )
    if args.config_file.endswith(".py"):
        path, text = os.path.join(output, "best.txt"), "\n".join([*best_overrides(args.opts, best["ratios"]), ""])
    else:
        base = os.path.relpath(args.config_file, output)
        path, text = os.path.join(output, "best.yaml"), best_yaml(base, args.opts, best["ratios"], comment)
    Path(path).write_text(text, encoding="utf-8")
    print(f"\nBest: {best['ratios']}\n{os.path.join(output, 'search.json')}\n{path}")
    return found


if __name__ == "__main__":
    main()
