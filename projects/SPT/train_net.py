#!/usr/bin/env python3
"""
Train or evaluate a model from a yaml config, with Detectron2's command line.

    python projects/SPT/train_net.py --config-file configs/Shapes-InstanceSegmentation/mask_rcnn_spt_nano_fpn_demo.yaml
    python projects/SPT/train_net.py --config-file FILE --eval-only MODEL.WEIGHTS output/model_final.pth
    python projects/SPT/train_net.py --config-file FILE --num-gpus 8
    torchrun --nproc-per-node 8 projects/SPT/train_net.py --config-file FILE
"""

import argparse

from detectron2.engine import default_argument_parser
from detectron2.evaluation import verify_results
from detectron2.utils import comm

import spt_d2  # noqa: F401  registers backbones, meta-architectures and data sets
from spt_d2.checkpoint import SelectionCheckpointer
from spt_d2.engine.evaluation_file import EvaluationFile
from spt_d2.engine.launch import launch
from spt_d2.engine.setup import setup
from spt_d2.engine.trainer import Trainer


def main(args: argparse.Namespace) -> dict:
    """What one process does; returns the results of the evaluation, empty in processes other than the first."""
    cfg = setup(args)
    record = EvaluationFile(cfg.OUTPUT_DIR, "projects/SPT/train_net.py", args)
    if not args.eval_only:
        trainer = Trainer(cfg)
        trainer.resume_or_load(resume=args.resume)
        results = trainer.train()
    else:
        model = Trainer.build_model(cfg)
        SelectionCheckpointer(model, cfg.OUTPUT_DIR).resume_or_load(cfg.MODEL.WEIGHTS, resume=args.resume)
        results = Trainer.test(cfg, model)
        if cfg.TEST.AUG.ENABLED:
            results.update(Trainer.test_with_TTA(cfg, model))
    record.write(results, train=cfg.DATASETS.TRAIN, test=cfg.DATASETS.TEST, seed=cfg.SEED, device=cfg.MODEL.DEVICE)
    if args.eval_only and comm.is_main_process():
        verify_results(cfg, results)
    return results


if __name__ == "__main__":
    launch(main, default_argument_parser(epilog=__doc__).parse_args())
