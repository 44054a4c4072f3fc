#!/usr/bin/env python3
"""
Evaluate one trained model over thresholds, top-k ratios and token budgets, and plot accuracy and milliseconds.

    F=configs/Shapes-InstanceSegmentation/mask_rcnn_spt_nano_fpn_demo.yaml
    python tools/sweep_keep_ratio.py --config-file $F --weights output/demo/model_final.pth
    python tools/sweep_keep_ratio.py --config-file F.py --thresholds 0.01 0.1 --keep-ratios --token-budgets 100 200 \\
        --output output/sweep train.init_checkpoint=FILE

Leaves sweep.json and sweep.png in --output. The same command goes on where an interrupted one was: points in sweep.json
are not evaluated again. Overrides of the config come last: KEY VALUE for yaml, path.key=value for a LazyConfig.
"""

import argparse
import logging
import os
import sys
from pathlib import Path

# Detectron2 and this project read it when they are imported. The repository's folder, wherever the program is run from.
os.environ.setdefault("DETECTRON2_DATASETS", str(Path(__file__).resolve().parents[1] / "datasets"))

from spt_d2.analysis.model_report import text_table
from spt_d2.analysis.sweep import operating_points, sweep
from spt_d2.analysis.sweep_figure import draw_sweep
from spt_d2.engine.model_config import open_config
from spt_d2.visualization import save_picture

THRESHOLDS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.4)
KEEP_RATIOS = (0.05, 0.1, 0.2, 0.3, 0.5, 0.75, 1.0)
TOKEN_BUDGETS = (25, 50, 100, 200, 400, 800)


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config-file", required=True, metavar="FILE", help="a yaml config or a LazyConfig")
    parser.add_argument("--weights", metavar="FILE", help="checkpoint; default: the config's")
    parser.add_argument("--dataset", metavar="NAME", help="default: the config's first data set of evaluation")
    parser.add_argument("--output", metavar="DIR", help="default: sweep in the config's output folder")
    parser.add_argument("--thresholds", nargs="*", type=float, default=THRESHOLDS, metavar="P", help="of the gate")
    parser.add_argument("--keep-ratios", nargs="*", type=float, default=KEEP_RATIOS, metavar="R", help="of top-k")
    parser.add_argument(
        "--token-budgets", nargs="*", type=int, default=TOKEN_BUDGETS, metavar="K", help="tokens per image and block"
    )
    parser.add_argument("--timing-images", type=int, default=8, metavar="N", help="of the data set; default: 8")
    parser.add_argument("--rounds", type=int, default=10, metavar="N", help="timed passes per image; default: 10")
    parser.add_argument("--warmup", type=int, default=2, metavar="N", help="passes before them; default: 2")
    parser.add_argument("opts", nargs=argparse.REMAINDER, metavar="OVERRIDE", help="overrides of the config")
    args = parser.parse_args(argv)
    if args.timing_images < 1 or args.rounds < 1 or args.warmup < 0:
        parser.error("--timing-images and --rounds expect at least 1, --warmup at least 0")
    return args


def main(argv: list[str] | None = None) -> dict:
    """Run the program; returns what sweep.json holds of the points asked for."""
    args = parse_arguments(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
    config = open_config(args.config_file, args.opts)
    if not (args.dataset or config.datasets):
        raise ValueError("sweep_keep_ratio.py expects --dataset. Got none, and the config names none.")
    output = args.output or os.path.join(config.output_dir, "sweep")
    record = sweep(
        config,
        operating_points(args.thresholds, args.keep_ratios, args.token_budgets),
        output,
        config_name=args.config_file,
        dataset=args.dataset or config.datasets[0],
        weights=args.weights,
        timing_images=args.timing_images,
        rounds=args.rounds,
        warmup=args.warmup,
    )
    title = f"{Path(args.config_file).stem} on {record['dataset']}, {record['timing']['device']}"
    save_picture(Path(output) / "sweep.png", draw_sweep(record, title))
    tasks = list(dict.fromkeys(task for point in record["points"] for task in point["accuracy"]))
    rows = [
        [
            f"{point['kind']} {'' if point['value'] is None else point['value']}".strip(),
            f"{100 * point['keep_ratio']:.1f}",
            *("-" if (value := point["accuracy"].get(task)) is None else f"{value:.2f}" for task in tasks),
            f"{point['macs_g']['executed']:.3f}",
            f"{point['latency']['median_ms']:.2f}",
        ]
        for point in record["points"]
    ]
    header = ["", "kept, %", *(f"{task}, %" for task in tasks), "10^9 MACs", "ms"]
    print(f"\n{text_table(header, rows)}\n\n{os.path.join(output, 'sweep.json')}\n{os.path.join(output, 'sweep.png')}")
    return record


if __name__ == "__main__":
    main()
