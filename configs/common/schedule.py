"""Learning rates over the course of a run, as factors of the optimizer's."""

from detectron2.config import LazyCall as L
from detectron2.solver import WarmupParamScheduler
from fvcore.common.param_scheduler import MultiStepParamScheduler

# Swin's 3x: 36 epochs, steps after 27 and 33; at 16 images an iteration, 270,000 iterations of COCO.
swin_3x = L(WarmupParamScheduler)(
    scheduler=L(MultiStepParamScheduler)(values=[1.0, 0.1, 0.01], milestones=[202500, 247500], num_updates=270000),
    warmup_factor=0.001,
    # 500 iterations.
    warmup_length=500 / 270000,
    warmup_method="linear",
)

# 900 iterations of the nano models: a step after 720, warm-up over 50.
nano = L(WarmupParamScheduler)(
    scheduler=L(MultiStepParamScheduler)(values=[1.0, 0.1], milestones=[720], num_updates=900),
    warmup_factor=0.001,
    warmup_length=50 / 900,
    warmup_method="linear",
)
