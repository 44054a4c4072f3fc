#!/usr/bin/env python3
"""
Time backbones, blocks, packing, data and detectors side by side: ours, and others' dense Swins.

    python tools/benchmark.py backbone --quick                                      a first answer within a minute
    python tools/benchmark.py backbone --image-sizes 800x1280 --keep-ratios 0.23 3=0.23,4=0.25 --json FILE
    python tools/benchmark.py train --batch-sizes 2 --names swin_t16 spt_t --device cuda --dtype bfloat16
    python tools/benchmark.py backbone --names spt_t --peers --image-sizes 512 1024 2048      how times grow

Everything that a command compares is timed in one process, in turns (A B A B), warmed up, the device waited for. Ratios
are taken within each round: their median and quartiles are printed. docs/performance.md explains what is timed.
Overrides of the config, for our backbones, come last, after --opts: KEY VALUE.
"""

import argparse
import logging
import os
import sys

# torch's profiler, which measures memory, would complain of a machine without a GPU.
os.environ.setdefault("KINETO_LOG_LEVEL", "5")

import torch

from spt_d2.analysis.model_report import parse_keep_ratio, text_table
from spt_d2.benchmark.backbone import backbone_cases, exponents
from spt_d2.benchmark.cases import time_cases
from spt_d2.benchmark.models import OWN
from spt_d2.benchmark.peers import PEERS, available_peers
from spt_d2.benchmark.record import Record, new_record, write_record
from spt_d2.benchmark.steps import DTYPES
from spt_d2.benchmark.table import HEADER, cells, origin
from spt_d2.provenance import available_cores

COMMANDS = ("backbone", "train")


def parse_size(text: str) -> tuple[int, int]:
    """``800x1280``, height first, or ``512`` for a square."""
    try:
        numbers = [int(part) for part in text.split("x")]
        height, width = numbers if len(numbers) > 1 else numbers * 2
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"expects HEIGHTxWIDTH or one number, in pixels. Got {text!r}") from error
    if min(height, width) < 32 or height % 32 or width % 32:
        raise argparse.ArgumentTypeError(f"expects multiples of 32 pixels, as batches are padded. Got {text!r}")
    return height, width


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=COMMANDS, help="what to time")
    parser.add_argument("--names", nargs="*", metavar="NAME", help=f"of ours; default: all of {', '.join(OWN)}")
    parser.add_argument("--peers", nargs="*", metavar="NAME", help=f"default: all of {', '.join(PEERS)}")
    parser.add_argument("--device", default="cpu", help="cpu (default) or cuda")
    parser.add_argument("--dtype", default="float32", choices=DTYPES, help="lower ones through autocast")
    parser.add_argument("--batch-sizes", nargs="+", type=int, metavar="N", help="images; default: 1")
    parser.add_argument("--image-sizes", nargs="+", type=parse_size, metavar="HxW", help="default: 800x1280")
    parser.add_argument("--keep-ratios", nargs="+", metavar="R", help="0.23, or 3=0.23,4=0.25; default: 0.23")
    parser.add_argument("--threads", type=int, metavar="N", help="of torch, on the CPU; default: all cores")
    parser.add_argument("--rounds", type=int, metavar="N", help="that are counted; default: 10")
    parser.add_argument("--warmup", type=int, default=1, metavar="N", help="rounds before them; default: 1")
    parser.add_argument("--quick", action="store_true", help="defaults that take less than a minute on two cores")
    parser.add_argument("--no-memory", action="store_true", help="leave out the run that measures it")
    parser.add_argument("--json", metavar="FILE", help="results file to write")
    parser.add_argument("--opts", nargs=argparse.REMAINDER, default=[], help="overrides of the config, of ours")
    args = parser.parse_args(argv)
    slow = {"batch_sizes": [1], "image_sizes": [(800, 1280)], "keep_ratios": ["0.23"], "rounds": 10}
    quick = {"batch_sizes": [1], "image_sizes": [(448, 704)], "keep_ratios": ["0.23"], "rounds": 3}
    for name, value in (quick if args.quick else slow).items():
        if getattr(args, name) is None:
            setattr(args, name, value)
    args.names = list(OWN) if args.names is None else args.names
    args.peers = list(PEERS) if args.peers is None else args.peers
    try:
        args.keep_ratios = [parse_keep_ratio(text) for text in args.keep_ratios]
        args.peers, args.missing = available_peers(args.peers)
    except ValueError as error:
        parser.error(str(error))
    unknown = [name for name in args.names if name not in OWN]
    if unknown:
        parser.error(f"--names expects some of {', '.join(OWN)}. Got {', '.join(unknown)}")
    if len(args.opts) % 2:
        parser.error(f"--opts expects keys and values in turn. Got {' '.join(args.opts)}")
    if min(args.rounds, *args.batch_sizes) < 1 or args.warmup < 0 or (args.threads is not None and args.threads < 1):
        parser.error("--rounds, --batch-sizes and --threads expect at least 1, --warmup at least 0")
    if args.device.startswith("cuda") and not torch.cuda.is_available():
        parser.error(f"--device {args.device}: torch finds no GPU")
    return args


def run(args: argparse.Namespace, command: str) -> Record:
    """Time what the command line asks for."""
    device = torch.device(args.device)
    cases = backbone_cases(
        args.names,
        args.peers,
        keep_ratios=args.keep_ratios,
        batches=args.batch_sizes,
        image_sizes=args.image_sizes,
        device=device,
        dtype=args.dtype,
        training=args.command == "train",
        overrides=dict(zip(args.opts[0::2], args.opts[1::2])),
    )
    rows = time_cases(cases, device, rounds=args.rounds, warmup=args.warmup, memory=not args.no_memory)
    return new_record(args.command, command, args.rounds, args.device, rows, list(args.missing), exponents(rows))


def main(argv: list[str] | None = None) -> Record:
    """Run the program; returns what the results file holds."""
    args = parse_arguments(argv)
    # What became of each weight is of no interest here.
    logging.getLogger("spt_d2").setLevel(logging.WARNING)
    before = torch.get_num_threads()
    torch.set_num_threads(args.threads or available_cores())
    try:
        for name, package in args.missing.items():
            print(f"{name} is left out: {package} is not installed")
        record = run(args, " ".join(sys.argv[1:] if argv is None else argv))
    finally:
        torch.set_num_threads(before)
    print(text_table(list(HEADER), [cells(row) for row in record.rows]), *record.notes, "", origin(record), sep="\n")
    if args.json:
        write_record(record, args.json)
        print(args.json)
    return record


if __name__ == "__main__":
    main()
