#!/usr/bin/env python3
"""
Train or evaluate a model from a LazyConfig, with Detectron2's command line.

    F=projects/SPT/configs/Shapes-InstanceSegmentation/mask_rcnn_spt_nano_fpn_demo.py
    python tools/lazyconfig_train_net.py --config-file $F
    python tools/lazyconfig_train_net.py --config-file FILE --eval-only train.init_checkpoint=output/model_final.pth
    torchrun --nproc-per-node 8 tools/lazyconfig_train_net.py --config-file FILE train.amp.enabled=True
"""

import argparse

from detectron2.config import instantiate
from detectron2.engine import default_argument_parser
from omegaconf import DictConfig, OmegaConf

from spt_d2.checkpoint import SelectionCheckpointer
from spt_d2.engine.evaluation_file import write_evaluation
from spt_d2.engine.launch import distribute, launch
from spt_d2.engine.lazy import LazyTrainer, evaluate_lazy, setup_lazy


def main(args: argparse.Namespace) -> dict:
    """What one process does; returns the results of the evaluation, empty in processes other than the first."""
    cfg = setup_lazy(args)
    if not args.eval_only:
        trainer = LazyTrainer(cfg)
        trainer.resume_or_load(args.resume)
        results = trainer.train()
        record(cfg, args, results)
        return results

    model = distribute(instantiate(cfg.model).to(cfg.train.device), **cfg.train.ddp)
    SelectionCheckpointer(model, cfg.train.output_dir).resume_or_load(cfg.train.init_checkpoint, resume=args.resume)
    results = evaluate_lazy(cfg, model)
    record(cfg, args, results)
    return results


def record(cfg: DictConfig, args: argparse.Namespace, results: dict) -> None:
    """Leave the results and their provenance in the output folder."""
    write_evaluation(
        cfg.train.output_dir, "tools/lazyconfig_train_net.py", args, results,
        train=names(cfg, "dataloader.train.dataset.names"), test=names(cfg, "dataloader.test.dataset.names"),
        seed=OmegaConf.select(cfg, "train.seed", default=-1), device=cfg.train.device,
    )  # fmt: skip


def names(cfg: DictConfig, key: str) -> list[str]:
    """Of data sets; none where a loader of another kind is configured."""
    found = OmegaConf.select(cfg, key)
    return [] if found is None else [found] if isinstance(found, str) else list(found)


if __name__ == "__main__":
    launch(main, default_argument_parser(epilog=__doc__).parse_args())
