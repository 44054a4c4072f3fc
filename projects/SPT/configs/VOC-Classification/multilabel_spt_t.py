"""SPT-T of Table 5 and row 3 of Table 7, on PASCAL VOC 2012: the twin of the yaml config of this name."""

from spt_d2 import get_config

model = get_config("common/models/spt_multilabel.py").model
dataloader = get_config("common/data/voc_multilabel.py").dataloader
optimizer = get_config("common/optim.py").AdamW
lr_multiplier = get_config("common/schedule.py").voc
train = get_config("common/train.py").voc
