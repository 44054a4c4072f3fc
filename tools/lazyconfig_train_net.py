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
from omegaconf import OmegaConf

from spt_d2.checkpoint import SelectionCheckpointer
from spt_d2.data.num_classes import lazy_names
from spt_d2.engine.evaluation_file import EvaluationFile
from spt_d2.engine.launch import distribute, launch
from spt_d2.engine.lazy import LazyTrainer, evaluate_lazy, setup_lazy


def main(args: argparse.Namespace) -> dict:
    """What one process does; returns the results of the evaluation, empty in processes other than the first."""
    cfg = setup_lazy(args)
    record = EvaluationFile(cfg.train.output_dir, "tools/lazyconfig_train_net.py", args)
    train, test = (lazy_names(cfg, split) for split in ("train", "test"))
    if not args.eval_only:
        trainer = LazyTrainer(cfg)
        trainer.resume_or_load(args.resume)
        results = trainer.train()
    else:
        model = distribute(instantiate(cfg.model).to(cfg.train.device), **cfg.train.ddp)
        checkpointer = SelectionCheckpointer(model, cfg.train.output_dir)
        checkpointer.resume_or_load(cfg.train.init_checkpoint, resume=args.resume)
        results = evaluate_lazy(cfg, model)
    seed = OmegaConf.select(cfg, "train.seed", default=-1)
    record.write(results, train=train, test=test, seed=seed, device=cfg.train.device)
    return results


if __name__ == "__main__":
    launch(main, default_argument_parser(epilog=__doc__).parse_args())
