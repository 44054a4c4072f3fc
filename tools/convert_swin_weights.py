#!/usr/bin/env python3
"""
Convert pretrained Swin weights to the names and blocks of a model here, and say what became of every entry.

    python tools/convert_swin_weights.py swin_tiny_patch4_window7_224.pth spt_t.pth --variant spt_t
    python tools/convert_swin_weights.py model.safetensors spt_t.pth --config-file FILE.yaml MODEL.SPT.POSITION rope

Layouts are recognised by their keys: Swin's classifiers and detectors, timm, torchvision, MMDetection, Detectron2 and
this project; files may be .pth, .safetensors or Detectron2's .pkl. Training does not need this program, for
MODEL.WEIGHTS and train.init_checkpoint take the same files; it shows what they will do, makes files that plain
Detectron2 loads too, and reads, with --trust, files of whole training runs.

With --config-file (yaml or LazyConfig) the weights fit that config's model; overrides come last. With --variant they
are those of a backbone alone, for any detector on it, and keep their position bias tables, should it have a use for
them.
"""

import argparse
import sys
from pathlib import Path
from typing import Any

import torch
from detectron2.config import LazyConfig, instantiate
from detectron2.modeling import build_model
from torch import Tensor

from spt_d2.engine.setup import load_config
from spt_d2.modeling import SPT, Swin
from spt_d2.weights import fit_to_model, read_weights, write_weights

# Channels, blocks and heads per stage.
_T, _B = (96, (3, 6, 12, 24)), (128, (4, 8, 16, 32))
VARIANTS = {
    "spt_t": (SPT, _T, (2, 2, 10, 2)),
    "spt_t12": (SPT, _T, (2, 2, 6, 2)),
    "spt_s": (SPT, _T, (2, 2, 22, 2)),
    "spt_b": (SPT, _B, (2, 2, 22, 2)),
    "swin_t": (Swin, _T, (2, 2, 6, 2)),
    "swin_s": (Swin, _T, (2, 2, 18, 2)),
    "swin_b": (Swin, _B, (2, 2, 18, 2)),
    "swin_t16": (Swin, _T, (2, 2, 10, 2)),
    "swin_s28": (Swin, _T, (2, 2, 22, 2)),
    "swin_b28": (Swin, _B, (2, 2, 22, 2)),
}


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path, metavar="SOURCE", help="file of pretrained weights")
    parser.add_argument("target", type=Path, metavar="TARGET", help="file to write, .pth or .safetensors")
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--config-file", metavar="FILE", help="yaml config or LazyConfig of the model")
    which.add_argument("--variant", choices=sorted(VARIANTS), help="a backbone alone")
    parser.add_argument("--force", action="store_true", help="overwrite TARGET")
    parser.add_argument(
        "--trust", action="store_true", help="read Python objects in SOURCE as well, which runs code that is in it"
    )
    parser.add_argument("opts", nargs="*", metavar="KEY VALUE", help="overrides of the config")
    # Overrides come last, after options that stand between them and the files.
    args = parser.parse_intermixed_args(argv)
    if args.variant and args.opts:
        parser.error(f"overrides expect --config-file. Got {' '.join(args.opts)}")
    if not args.source.is_file():
        parser.error(f"SOURCE expects a file. Got {args.source}")
    if args.target.suffix not in (".pth", ".safetensors"):
        parser.error(f"TARGET expects the ending .pth or .safetensors. Got {args.target}")
    if args.target.exists() and (not args.force or args.target.samefile(args.source)):
        parser.error(f"TARGET exists, and is left alone: {args.target} (--force overwrites it, unless it is SOURCE)")
    return args


def wanted_weights(args: argparse.Namespace) -> dict[str, Tensor]:
    """The state dict of the model that the weights are for."""
    if args.variant:
        model, (channels, heads), depths = VARIANTS[args.variant]
        sizes: dict[str, Any] = {"embed_dim": channels, "depths": depths, "num_heads": heads}
        if model is SPT:
            sizes["position"] = "relative_bias"
        with torch.device("meta"):
            return model(**sizes).state_dict()
    if args.config_file.endswith(".py"):
        return instantiate(LazyConfig.apply_overrides(LazyConfig.load(args.config_file), args.opts).model).state_dict()
    return build_model(load_config(args.config_file, [*args.opts, "MODEL.DEVICE", "cpu"])).state_dict()


def main(argv: list[str] | None = None) -> None:
    """Convert; an exit code above 0 means that nothing was written."""
    args = parse_arguments(argv)
    try:
        weights, wanted = read_weights(args.source, trust=args.trust), wanted_weights(args)
        fitted, report = fit_to_model(weights, wanted)
    except (ValueError, ImportError) as error:
        sys.exit(f"convert_swin_weights.py: {error}")
    placed = {n: value for n, value in fitted.items() if n in wanted and value.shape == wanted[n].shape}
    if not placed:
        sys.exit(f"convert_swin_weights.py: {args.source} holds nothing that fits the model.")
    if report is None:
        print(f"{args.source} fits the model as it is.")
    else:
        print(report.table())
    left = sorted(set(fitted) - set(placed))
    if left:
        print(f"! left out, for the model has no place of that name and shape: {', '.join(left)}")
    args.target.parent.mkdir(parents=True, exist_ok=True)
    write_weights(placed, args.target)
    print(f"{args.target}: {len(placed)} entries, {sum(value.numel() for value in placed.values()):,} parameters")


if __name__ == "__main__":
    main()
