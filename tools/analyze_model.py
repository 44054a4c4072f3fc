#!/usr/bin/env python3
"""
Parameters, multiply-adds and structure of a model, from a yaml config or a LazyConfig.

    F=configs/COCO-InstanceSegmentation/mask_rcnn_spt_t_fpn_3x.yaml
    python tools/analyze_model.py --config-file $F --tasks parameter macs structure
    python tools/analyze_model.py --config-file $F --tasks macs --keep-ratio 3=0.23,4=0.25 --image-size 800 1280
    python tools/analyze_model.py --config-file $F --tasks macs --dataset coco_2017_val --num-images 100 \\
        MODEL.WEIGHTS output/model_final.pth

Without --dataset every Select and Pack block is taken to keep the same share of its tokens, which needs no weights.
With it, the model selects in real images: means and percentiles over them. --keep-ratio then enforces a share, the same
of every image (SELECT topk). The blocks of a plain ViT are one stage, number 1. Overrides of the config come last:
KEY VALUE for yaml, path.key=value for a LazyConfig.
"""

import argparse
from collections.abc import Mapping
from typing import Any

from spt_d2.analysis import macs as macs_module
from spt_d2.analysis import nominal_macs
from spt_d2.analysis.hierarchy_macs import has_own_ratios
from spt_d2.analysis.model_report import (
    COUNTS,
    DataSetCost,
    bottom_up,
    image_costs,
    keep_ratio_problem,
    macs_rows,
    parameter_counts,
    parse_keep_ratio,
    plain_keep_ratio,
    selects,
    stage_rows,
    summarize_costs,
    text_table,
)
from spt_d2.analysis.operating_point import OperatingPoint, operating_point
from spt_d2.engine.model_config import ModelConfig, open_config
from spt_d2.layers.block import SelectPackBlock
from spt_d2.summary import write_summary

TASKS = ("parameter", "macs", "structure")
KEEP_RATIO_HELP = "for all stages, or STAGE=R,STAGE=R; default: 1, or with --dataset what the model itself keeps"


def make_parser() -> argparse.ArgumentParser:
    """Of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config-file", required=True, metavar="FILE", help="a yaml config or a LazyConfig")
    parser.add_argument(
        "--tasks", nargs="+", choices=TASKS, default=["parameter", "macs"], metavar="TASK", help=", ".join(TASKS)
    )
    parser.add_argument("--keep-ratio", metavar="R", help=KEEP_RATIO_HELP)
    parser.add_argument("--image-size", nargs=2, type=int, default=[800, 1280], metavar=("H", "W"), help="in pixels")
    parser.add_argument("--dataset", metavar="NAME", help="count on real images; needs weights")
    parser.add_argument("--num-images", type=int, default=100, metavar="N", help="of it, evenly spread; default: 100")
    parser.add_argument("--json", metavar="PATH", help="write the figures there too")
    parser.add_argument("opts", nargs=argparse.REMAINDER, metavar="OVERRIDE", help="overrides of the config")
    return parser


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = make_parser()
    args = parser.parse_args(argv)
    if min(*args.image_size, args.num_images) < 1:
        parser.error("--image-size and --num-images expect numbers above 0")
    try:
        args.keep_ratio = None if args.keep_ratio is None else parse_keep_ratio(args.keep_ratio)
    except ValueError as error:
        parser.error(str(error))
    if args.dataset and isinstance(args.keep_ratio, Mapping):
        parser.error("--dataset expects one --keep-ratio for all stages, or none")
    return args


def data_set_cost(config: ModelConfig, args: argparse.Namespace) -> DataSetCost:
    """Run the model on images, at the keep ratio asked for or with its own rule."""
    model = config.load_model()
    inputs = config.inputs(args.dataset, args.num_images)
    if args.keep_ratio is None or not selects(model):
        return summarize_costs(image_costs(model, inputs))
    with operating_point(model, OperatingPoint("keep_ratio", args.keep_ratio)):
        return summarize_costs(image_costs(model, inputs))


def analyze(args: argparse.Namespace) -> dict[str, Any]:
    """Print what was asked for; returns what --json holds."""
    config = open_config(args.config_file, args.opts)
    model = config.build_model("meta")
    problem = None if args.keep_ratio is None else keep_ratio_problem(model, args.keep_ratio)
    if problem is not None:
        make_parser().error(f"--keep-ratio expects {problem}")
    dense = not selects(model)
    spa = any(isinstance(module, SelectPackBlock) for module in model.modules())
    if args.dataset and args.keep_ratio is not None and not dense and not spa:
        make_parser().error(
            "--keep-ratio with --dataset is of Select and Pack blocks. This backbone selects by a rule of its own: "
            "override its ratios (KEY VALUE), or leave --dataset out"
        )
    record: dict[str, Any] = {"config": args.config_file, "image_size": args.image_size}
    own = not dense and args.keep_ratio is None and has_own_ratios(bottom_up(model))
    if own:
        # One for each block.
        record["keep_ratio"] = None
    else:
        record["keep_ratio"] = 1.0 if dense or args.keep_ratio is None else plain_keep_ratio(args.keep_ratio)
    record |= {"parameters": parameter_counts(model), "macs": None}
    if "structure" in args.tasks:
        rows = stage_rows(model)
        print(f"Model structure:\n{model}\n")
        if rows:
            print(text_table(list(rows[0]), (row.values() for row in rows)), "\n")
    if "parameter" in args.tasks:
        children = [(name, sum(p.numel() for p in child.parameters())) for name, child in model.named_children()]
        rows_of_parts = [(name, f"{number:,}") for name, number in children]
        rows_of_parts += [(name, f"{record['parameters'][key]:,}") for name, key in PARTS]
        print(text_table(["part", "parameters"], rows_of_parts), "\n")
    if "macs" in args.tasks:
        print((macs_module.__doc__ or "").strip(), "\n")
        if args.dataset:
            record |= report_data_set(data_set_cost(config, args), args.dataset)
        else:
            height, width = args.image_size
            counted = nominal_macs(bottom_up(model), (height, width), args.keep_ratio)
            ratio = (
                "dense backbone" if dense else "its own ratios" if own else f"keep ratio {said(record['keep_ratio'])}"
            )
            print(f"Backbone at {height} x {width} pixels, {ratio}, 10^9 multiply-adds:\n")
            print(text_table(HEADER, macs_rows(counted)))
            record["macs"] = counted.as_dict()
            if not dense and not own and args.keep_ratio is None:
                print("\nNo keep ratio was given: this is the most that it can cost, with everything kept.")
    return record


HEADER = ["", *COUNTS, "saved"]
PARTS = (("backbone without pyramid", "backbone"), ("model", "model"))


def said(keep_ratio: float | Mapping[str, float] | None) -> str:
    """``0.23``; ``0.23 in stage3, 0.25 in stage4``."""
    if not isinstance(keep_ratio, Mapping):
        return str(keep_ratio)
    return ", ".join(f"{ratio} in {stage}" for stage, ratio in keep_ratio.items())


def report_data_set(cost: DataSetCost, name: str) -> dict[str, Any]:
    """Print figures over images; returns their part of the record, in place of the nominal one."""
    print(f"Backbone on {cost.num_images} images of {name}, means over them, 10^9 multiply-adds:\n")
    print(text_table(HEADER, macs_rows(cost.mean)))
    rows = [[key, *(f"{getattr(macs, count) / 1e9:.3f}" for count in COUNTS)] for key, macs in cost.percentiles.items()]
    print("\nPercentiles of the backbone over images:\n")
    print(text_table(HEADER[:-1], rows))
    ratios = [(f"stage {stage}", f"{ratio:.4f}") for stage, ratio in cost.keep_ratio_by_stage.items()]
    print("\nKeep ratio over all tokens:\n")
    print(text_table(["", "kept"], [*ratios, ("all", f"{cost.keep_ratio:.4f}")]))
    return {
        "image_size": list(cost.tensor_size),
        "keep_ratio": cost.keep_ratio,
        "macs": cost.mean.as_dict(),
        "dataset": {
            "name": name,
            "num_images": cost.num_images,
            "keep_ratio_by_stage": plain_keep_ratio(cost.keep_ratio_by_stage),
            "macs_percentiles": {key: macs.as_dict() for key, macs in cost.percentiles.items()},
        },
    }


def main(argv: list[str] | None = None) -> dict[str, Any]:
    """Run the program; returns what --json holds."""
    args = parse_arguments(argv)
    record = analyze(args)
    if args.json:
        write_summary(args.json, record)
    return record


if __name__ == "__main__":
    main()
