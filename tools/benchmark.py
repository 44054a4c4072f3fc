#!/usr/bin/env python3
"""
Time backbones, blocks, packing, data and detectors side by side: ours, and others' dense Swins.

    python tools/benchmark.py backbone --quick                            a first answer within a minute
    python tools/benchmark.py backbone --batch-sizes 1 2 --keep-ratios 0.23 3=0.23,4=0.25 --json FILE
    python tools/benchmark.py backbone --peers none --names swin_t spt_t --image-sizes 512 1024 2048     how times grow
    python tools/benchmark.py train --batch-sizes 2 --device cuda --dtype bfloat16
    python tools/benchmark.py attention --keep-ratios 0.23 1.0            stages and blocks beside dense ones
    python tools/benchmark.py packing                                     against padding to the fullest image
    python tools/benchmark.py data                                        mapper and loader against the stock ones
    python tools/benchmark.py model --modes inference training            whole detectors
    python tools/benchmark.py report results/benchmark/*.json --document docs/performance.md

Everything that a command compares is timed in one process, in turns (A B A B), warmed up, the device waited for. Ratios
are taken within each round; their median and quartiles are printed. docs/performance.md explains what is timed.
Overrides of the config, for the backbones of this project, come last: --opts KEY VALUE ...
"""

import argparse
import logging
import os
import shlex
import sys
from collections.abc import Iterable

# torch's profiler, which measures memory, would complain of a machine without a GPU.
os.environ.setdefault("KINETO_LOG_LEVEL", "5")

import torch

from spt_d2.analysis.model_report import parse_keep_ratio, text_table
from spt_d2.benchmark.commands import COMMANDS, Settings
from spt_d2.benchmark.models import OWN
from spt_d2.benchmark.page import PROGRAM, insert_records
from spt_d2.benchmark.peers import PEERS, available_peers
from spt_d2.benchmark.record import Record, new_record, read_record, write_record
from spt_d2.benchmark.steps import DTYPES, MODES
from spt_d2.benchmark.table import HEADER, cells, origin
from spt_d2.compare.document import between_markers
from spt_d2.folders import expect_folder
from spt_d2.provenance import available_cores, code_commit

# What --quick makes of options that are not given, and what they are otherwise.
QUICK = {"image_sizes": [(384, 640)], "rounds": 3, "images": 16}
THOROUGH = {"image_sizes": [(800, 1280)], "rounds": 10, "images": 64}


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
    parser.add_argument("command", choices=[*COMMANDS, "report"], help="what to time, or to report")
    parser.add_argument("files", nargs="*", metavar="FILE", help="results files to report")
    parser.add_argument("--document", metavar="FILE", help="the page that results are put into")
    parser.add_argument("--names", nargs="*", default=list(OWN), metavar="NAME", help=f"some of {', '.join(OWN)}")
    parser.add_argument(
        "--peers", nargs="*", default=list(PEERS), metavar="NAME",
        help=f"none, or some of {', '.join(PEERS)}; default, and without a name: all that are installed",
    )  # fmt: skip
    parser.add_argument("--device", default="cpu", help="cpu (default) or cuda")
    parser.add_argument("--dtype", default="float32", choices=DTYPES, help="the lower ones through autocast")
    parser.add_argument("--modes", nargs="+", default=["inference"], choices=MODES, help="of attention, packing, model")
    parser.add_argument("--batch-sizes", nargs="+", type=int, default=[1], metavar="N", help="images; default: 1")
    parser.add_argument("--image-sizes", nargs="+", type=parse_size, metavar="HxW", help="default: 800x1280")
    parser.add_argument(
        "--keep-ratios", nargs="+", default=["0.23"], metavar="R",
        help="0.23 (default), or 3=0.23,4=0.25; of packing, one for each image (default: 0.05 0.1 0.3 0.9)",
    )  # fmt: skip
    parser.add_argument("--threads", type=int, metavar="N", help="of torch, on the CPU; default: all cores")
    parser.add_argument("--rounds", type=int, metavar="N", help="that are counted; default: 10")
    parser.add_argument("--warmup", type=int, default=1, metavar="N", help="rounds before them; default: 1")
    parser.add_argument("--images", type=int, metavar="N", help="of data; default: 64")
    parser.add_argument("--quick", action="store_true", help="smaller defaults: 384x640, 3 rounds, 16 images")
    parser.add_argument("--no-memory", action="store_true", help="leave out the run that measures it")
    parser.add_argument("--json", metavar="FILE", help="results file to write")
    parser.add_argument("--opts", nargs=argparse.REMAINDER, default=[], help="overrides of the config")
    args = parser.parse_args(argv)
    for name, value in (QUICK if args.quick else THOROUGH).items():
        if getattr(args, name) is None:
            setattr(args, name, value)
    try:
        args.keep_ratios = [parse_keep_ratio(text) for text in args.keep_ratios]
        names = [] if args.peers == ["none"] else args.peers or list(PEERS)
        args.peers, args.missing = available_peers(names)
    except ValueError as error:
        parser.error(str(error))
    unknown = [name for name in args.names if name not in OWN]
    if unknown:
        parser.error(f"--names expects some of {', '.join(OWN)}. Got {', '.join(unknown)}")
    shares = [share for given in args.keep_ratios for share in (given.values() if isinstance(given, dict) else [given])]
    if not all(0 <= share <= 1 for share in shares):
        parser.error(f"--keep-ratios expects shares from 0 to 1. Got {', '.join(f'{share:g}' for share in shares)}")
    if (args.command == "report") != bool(args.files):
        parser.error("report expects results files, and nothing else does")
    if args.command == "report" and args.json:
        parser.error("--json is for what is measured; report reads such files")
    if len(args.opts) % 2:
        parser.error(f"--opts expects keys and values in turn. Got {' '.join(args.opts)}")
    if min(args.rounds, *args.batch_sizes) < 1 or args.warmup < 0 or (args.threads is not None and args.threads < 1):
        parser.error("--rounds, --batch-sizes and --threads expect at least 1, --warmup at least 0")
    if args.images < 8:
        parser.error("--images expects at least 8, more than workers hold ready")
    if args.device.startswith("cuda") and not torch.cuda.is_available():
        parser.error(f"--device {args.device}: torch finds no GPU")
    return args


def expect_json(path: str) -> None:
    """
    See, before anything is measured, that a results file can be written.

    Raises:
        ValueError: it cannot.
    """
    if os.path.isdir(path):
        raise ValueError(f"--json expects a file that can be written. Got {path}, a folder.")
    # It is written beside its place, and then moved there.
    expect_folder(os.path.dirname(os.path.abspath(path)), "--json")


def expect_page(path: str, benchmarks: Iterable[str]) -> None:
    """
    See, before anything is measured, that a page has a place for each benchmark and can be written.

    Raises:
        ValueError: it has not, or cannot.
    """
    try:
        with open(path, "r+", encoding="utf-8"):
            pass
    except OSError as error:
        raise ValueError(f"--document expects a page that can be written. Got {path}: {error}.") from error
    for benchmark in benchmarks:
        between_markers(path, benchmark, PROGRAM)


def warn_of_changes(path: str) -> None:
    """Say, on the error stream, when the results file would name no commit that has the code which is measured."""
    commit = code_commit()
    if commit is not None and commit.endswith("-dirty"):
        print(
            f"warning: code or configs differ from the commit. {path} will say {commit},\n"
            "and its figures cannot be traced to a commit.\nHINT: commit first.",
            file=sys.stderr,
        )


def show(record: Record) -> None:
    """To the terminal."""
    print(text_table(list(HEADER), [cells(row) for row in record.rows]), *record.notes, "", origin(record), sep="\n")


def measure(args: argparse.Namespace, command: str) -> Record:
    """Time what the command line asks for."""
    settings = Settings(
        names=tuple(args.names),
        peers=tuple(args.peers),
        keep_ratios=tuple(args.keep_ratios),
        batches=tuple(args.batch_sizes),
        image_sizes=tuple(args.image_sizes),
        device=torch.device(args.device),
        dtype=args.dtype,
        modes=tuple(args.modes),
        rounds=args.rounds,
        warmup=args.warmup,
        memory=not args.no_memory,
        images=args.images,
        overrides=dict(zip(args.opts[0::2], args.opts[1::2])),
    )
    before = torch.get_num_threads()
    torch.set_num_threads(args.threads or available_cores())
    try:
        rows, notes = COMMANDS[args.command](settings)
        # It states the threads.
        return new_record(args.command, command, args.rounds, args.device, rows, list(args.missing), notes)
    finally:
        torch.set_num_threads(before)


def main(argv: list[str] | None = None) -> list[Record]:
    """Run the program; returns what it measured, or read."""
    args = parse_arguments(argv)
    # What became of each weight is of no interest here.
    logging.getLogger("spt_d2").setLevel(logging.WARNING)
    try:
        records = [read_record(path) for path in args.files]
        if args.json:
            expect_json(args.json)
        if args.document:
            expect_page(args.document, [record.benchmark for record in records] or [args.command])
    except (OSError, ValueError) as error:
        sys.exit(f"benchmark.py: {error}")
    if args.command != "report":
        if args.json:
            warn_of_changes(args.json)
        for name, package in args.missing.items():
            print(f"{name} is left out: {package} is not installed")
        records = [measure(args, shlex.join(sys.argv[1:] if argv is None else argv))]
    # First of all: what follows may fail, and a measurement takes long.
    if args.json:
        write_record(records[0], args.json)
    for record in records:
        show(record)
    if args.json:
        print(args.json)
    if args.document:
        insert_records(args.document, records)
        print(args.document)
    return records


if __name__ == "__main__":
    main()
