#!/usr/bin/env python3
"""
Compare backbones: train and evaluate each under one recipe on the same data and seeds, then a table and a figure.

    python tools/compare.py projects/SPT/plans/screen.yaml --weights FILE --jobs 2     run a plan, or go on with it
    python tools/compare.py PLAN.yaml --data NAME=FOLDER --results FOLDER              folders of data and of results
    python tools/compare.py --configs A.yaml B.yaml --dataset shapes --seeds 0 1 2 --max-iter 600     without a plan
    python tools/compare.py --report FOLDER --document docs/experiments.md             from results files alone

The same command goes on where an interrupted one was: runs with a results file are finished, others continue from their
checkpoint. A run that fails does not end the others. docs/experiments.md explains plans and the columns of the table.
"""

import argparse
import logging
import math
import os
import signal
import sys
from pathlib import Path
from types import FrameType

# Detectron2 and this project read it when they are imported. The repository's folder, wherever the program is run from.
os.environ.setdefault("DETECTRON2_DATASETS", str(Path(__file__).resolve().parents[1] / "datasets"))

from spt_d2.compare.document import insert_report
from spt_d2.compare.figure import draw_comparison
from spt_d2.compare.matrix import Matrix
from spt_d2.compare.plan import Budget, Plan
from spt_d2.compare.plan_file import plan_of_configs, read_plan
from spt_d2.compare.report import report_rows
from spt_d2.compare.results import read_results
from spt_d2.compare.table import comparison_table, provenance
from spt_d2.provenance import available_cores
from spt_d2.visualization import save_picture

ROOT = Path(__file__).resolve().parents[1]


def say(line: str = "") -> None:
    """To the terminal, at once, even where that is a pipe."""
    print(line, flush=True)


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("plan", nargs="?", metavar="PLAN.yaml", help="what to compare")
    parser.add_argument("--configs", nargs="+", metavar="FILE", help="without a plan: a yaml config for each variant")
    parser.add_argument(
        "--dataset", nargs="+", metavar="NAME[=FOLDER]", default=[],
        help="without a plan: NAME_train and NAME_val, or a folder with train.json, val.json and images/",
    )  # fmt: skip
    parser.add_argument("--data", nargs="+", metavar="NAME=FOLDER", default=[], help="folders of the plan's data sets")
    parser.add_argument("--weights", metavar="FILE", help="checkpoint that every run starts from")
    parser.add_argument("--data-sets", nargs="+", metavar="NAME", help="only these of the plan")
    parser.add_argument("--seeds", nargs="+", type=int, metavar="N", help="instead of the plan's")
    parser.add_argument("--variants", nargs="+", metavar="NAME", help="only these of the plan, and the reference")
    parser.add_argument("--max-iter", type=int, metavar="N", help="iterations of a run, instead of the plan's budget")
    parser.add_argument("--minutes", type=float, metavar="M", help="of training a run, instead of the plan's budget")
    parser.add_argument(
        "--overrides", nargs="+", metavar="KEY VALUE", default=[], help="of every config, over all others"
    )
    parser.add_argument("--reference", metavar="NAME", help="variant that differences are taken from")
    parser.add_argument("--name", default="comparison", help="of the comparison, without a plan")
    parser.add_argument("--output", metavar="DIR", help="checkpoints and logs; default: output/compare/NAME")
    parser.add_argument("--results", metavar="DIR", help="results files; default: results in the output folder")
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="runs at a time")
    parser.add_argument("--threads", type=int, metavar="N", help="of each run; default: the cores, divided by --jobs")
    parser.add_argument("--period", type=float, default=60.0, metavar="S", help="seconds between lines of progress")
    parser.add_argument("--report", metavar="DIR", help="no run: table and figure from the results files there")
    parser.add_argument("--document", metavar="FILE", help="page with markers that the table is put between")
    parser.add_argument("--brief", action="store_true", help="a table of few columns for --document")
    parser.add_argument("--figure", metavar="FILE", help="default: figure.png in the folder of results")
    args = parser.parse_args(argv)
    if sum((args.plan is not None, args.configs is not None, args.report is not None)) != 1:
        parser.error("expects one of PLAN.yaml, --configs and --report")
    if args.configs and not args.dataset:
        parser.error("--configs expects --dataset")
    if args.dataset and not args.configs:
        parser.error("--dataset goes with --configs; a plan names its own")
    if args.brief and not args.document:
        parser.error("--brief goes with --document")
    if args.plan is None and (args.variants or args.data_sets or args.data):
        parser.error("--variants, --data-sets and --data are of a plan. Got none")
    if args.max_iter is not None and args.minutes is not None:
        parser.error("expects one of --max-iter and --minutes")
    for option, given in (("--max-iter", args.max_iter), ("--minutes", args.minutes)):
        if given is not None and not 0 < given < math.inf:
            parser.error(f"{option} expects a number above 0. Got {given}")
    if any("=" not in given for given in args.data):
        parser.error(f"--data expects NAME=FOLDER. Got {' '.join(args.data)}")
    if len(args.overrides) % 2:
        parser.error(f"--overrides expects keys and values in turn. Got {' '.join(args.overrides)}")
    if args.jobs < 1 or (args.threads is not None and args.threads < 1):
        parser.error("--jobs and --threads expect at least 1")
    return args


def build_plan(args: argparse.Namespace) -> Plan:
    """The plan that the command line names, or makes."""
    budget = None if args.max_iter is None and args.minutes is None else Budget(args.max_iter, args.minutes)
    overrides = dict(zip(args.overrides[0::2], args.overrides[1::2]))
    if args.plan is None:
        return plan_of_configs(
            args.configs,
            args.dataset,
            name=args.name,
            seeds=args.seeds or (0,),
            reference=args.reference,
            overrides=overrides,
            weights=args.weights,
            budget=budget or Budget(),
        )
    plan = read_plan(args.plan).with_places(dict(given.split("=", 1) for given in args.data), args.weights)
    return plan.restricted(args.variants, args.seeds, budget, args.reference, overrides, args.data_sets)


def run(plan: Plan, args: argparse.Namespace) -> int:
    """Perform the plan; then report what there is. Returns the exit status."""
    output = args.output or str(ROOT / "output" / "compare" / plan.name)
    results = args.results or os.path.join(output, "results")
    threads = args.threads or max(1, available_cores() // args.jobs)
    say(f"{plan.name}: checkpoints and logs in {os.path.relpath(output)}, results in {os.path.relpath(results)}")
    failed = Matrix(plan, output, results, args.jobs, threads, say, args.period).perform()
    for (data_set, variant, seed), why in failed.items():
        say(f"FAILED: {data_set} / {variant} / seed {seed}: {why}")
    if failed:
        say("The same command runs them again, from their checkpoints.")
    try:
        report(results, args)
    except (ValueError, OSError) as error:
        # Without the reference there are no differences to report, and what failed has been said.
        if not failed:
            raise
        say(f"No report: {error}")
    return 1 if failed else 0


def report(folder: str, args: argparse.Namespace) -> None:
    """Table and figure, from the results files in a folder."""
    results = read_results(folder)
    reference = args.reference or results[0]["reference"]
    rows = report_rows(results, reference)
    say(f"\n{comparison_table(rows)}\n\n{provenance(results)}\n")
    figure = args.figure or os.path.join(folder, "figure.png")
    save_picture(figure, draw_comparison(rows, reference))
    say(os.path.relpath(figure))
    if args.document:
        insert_report(args.document, results, reference, figure, args.brief)
        say(os.path.relpath(args.document))


def _stop(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def main(argv: list[str] | None = None) -> int:
    """Run or report; returns the exit status."""
    args = parse_arguments(argv)
    # The check of all configs would warn once for each; the runs' own logs have it.
    logging.getLogger("spt_d2").setLevel(logging.ERROR)
    try:
        if args.report is not None:
            report(args.report, args)
            return 0
        # A terminal that closes and a batch system that ends this process are to end its runs as well.
        for number in (signal.SIGTERM, signal.SIGHUP):
            # nohup has it ignored.
            if signal.getsignal(number) is not signal.SIG_IGN:
                signal.signal(number, _stop)
        return run(build_plan(args), args)
    except (ValueError, OSError, KeyError) as error:
        say(f"{type(error).__name__}: {error}")
        return 2
    except KeyboardInterrupt:
        say("\nStopped. The same command goes on from the last checkpoints.")
        return 130


if __name__ == "__main__":
    sys.exit(main())
