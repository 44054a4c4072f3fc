#!/usr/bin/env python3
"""
Convert pretrained weights of Swin, or of a plain ViT, to the names of a model here, and say what became of them.

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
from torch import Tensor

from spt_d2.engine.model_config import open_config
from spt_d2.model_zoo.variants import SIZES, VARIANTS
from spt_d2.modeling import SPT, Swin
from spt_d2.vit_weights import fit_vit
from spt_d2.weights import fit_to_model, read_weights, write_weights


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
        variant = VARIANTS[args.variant]
        size = SIZES[variant.size]
        sizes: dict[str, Any] = {"embed_dim": size.embed_dim, "depths": variant.depths, "num_heads": size.num_heads}
        with torch.device("meta"):
            backbone = SPT(position="relative_bias", **sizes) if variant.selects else Swin(**sizes)
        return backbone.state_dict()
    return open_config(args.config_file, args.opts).build_model("meta").state_dict()


def main(argv: list[str] | None = None) -> None:
    """Convert; an exit code above 0 means that nothing was written."""
    args = parse_arguments(argv)
    try:
        weights, wanted = read_weights(args.source, trust=args.trust), wanted_weights(args)
        vit = fit_vit(weights, wanted)
        fitted, report = fit_to_model(weights, wanted) if vit is None else (vit, None)
    except (ValueError, ImportError, OSError) as error:
        sys.exit(f"convert_swin_weights.py: {error}")
    placed = {n: value for n, value in fitted.items() if n in wanted and value.shape == wanted[n].shape}
    if not placed:
        sys.exit(f"convert_swin_weights.py: {args.source} holds nothing that fits the model.")
    if vit is not None:
        print(f"{args.source} is that of a plain ViT, under other names or for another grid of positions.")
    elif report is None:
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
