"""SPT-T of Table 5 and row 3 of Table 7: the twin of configs/VOC-Classification/multilabel_spt_t.yaml."""

from detectron2.config import LazyCall as L
from detectron2.solver import WarmupParamScheduler
from fvcore.common.param_scheduler import MultiStepParamScheduler

from spt_d2 import get_config

model = get_config("common/models/spt_multilabel.py").model
dataloader = get_config("common/data/voc_multilabel.py").dataloader
optimizer = get_config("common/optim.py").AdamW
# 36 epochs of 5,717 images, 357 iterations each; steps after 27 and 33.
lr_multiplier = L(WarmupParamScheduler)(
    scheduler=L(MultiStepParamScheduler)(values=[1.0, 0.1, 0.01], milestones=[9650, 11790], num_updates=12860),
    warmup_factor=0.001,
    warmup_length=500 / 12860,
    warmup_method="linear",
)
train = get_config("common/train.py").train
train.update(max_iter=12860, eval_period=3570)
