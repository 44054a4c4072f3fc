#!/usr/bin/env python3
"""
Make a results file of runs of one config, one run for each seed, for MODEL_ZOO.md to show (results/README.md).

    F=configs/COCO-InstanceSegmentation/mask_rcnn_spt_t_fpn_3x.yaml
    W=swin_tiny_patch4_window7_224.pth
    python projects/SPT/train_net.py --config-file $F --num-gpus 8 SEED 0 MODEL.WEIGHTS $W OUTPUT_DIR output/spt_t/seed0
    python projects/SPT/train_net.py --config-file $F --num-gpus 8 SEED 1 MODEL.WEIGHTS $W OUTPUT_DIR output/spt_t/seed1
    python tools/record_results.py output/spt_t/seed0 output/spt_t/seed1
    python tools/make_model_zoo.py

Reads the evaluation.json that train_net.py, lazyconfig_train_net.py and demo.py leave in the output folder, after
training and with --eval-only; of a folder that holds a training, that of the training.
"""

import argparse
import json
import sys
from pathlib import Path

from spt_d2.engine.evaluation_file import read_evaluation
from spt_d2.model_zoo.recording import combine, file_name
from spt_d2.model_zoo.records import METRICS, read_record
from spt_d2.summary import write_summary

RESULTS = Path(__file__).resolve().parents[1] / "results"


def main(argv: list[str] | None = None) -> int:
    """Run the program; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", metavar="RUN", help="output folders of runs that differ in their seeds")
    parser.add_argument("--output", metavar="FILE", help="default: in results/, named after the config and data set")
    parser.add_argument("--test", metavar="NAME", help="data set, where the runs evaluated several")
    parser.add_argument("--hardware", metavar="TEXT", help="in words; default: what the runs saw")
    parser.add_argument("--overwrite", action="store_true", help="replace the file where it is there")
    args = parser.parse_args(argv)
    try:
        runs = {str(Path(run).resolve()): run for run in args.runs}
        record = combine({run: read_evaluation(run) for run in runs.values()}, args.test, args.hardware)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    path = Path(args.output) if args.output else RESULTS / file_name(record)
    if path.exists() and not args.overwrite:
        print(f"error: {path} is there already.\nHINT: --output FILE, or --overwrite to replace it.", file=sys.stderr)
        return 1
    path.parent.mkdir(parents=True, exist_ok=True)
    write_summary(path, record)
    written = read_record(path)
    print(json.dumps({METRICS[name][0]: written.value(name) for name in written.metrics}, indent=2, ensure_ascii=False))
    if not written.as_configured:
        print(f"With {' '.join(written.overrides)} it is no measurement of the config's row: under further results")
    print(f"{path}\n`python tools/make_model_zoo.py` puts it into the pages")
    return 0


if __name__ == "__main__":
    sys.exit(main())
