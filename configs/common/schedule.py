"""Learning rates over the course of a run, as factors of the optimizer's."""

from detectron2.config import LazyCall as L
from detectron2.solver import WarmupParamScheduler
from fvcore.common.param_scheduler import MultiStepParamScheduler


def _steps(milestones: list[int], iterations: int, warmup: int) -> dict:
    """A tenth of the rate from each milestone on, and a linear warm-up, all in iterations."""
    return L(WarmupParamScheduler)(
        scheduler=L(MultiStepParamScheduler)(
            values=[0.1**i for i in range(len(milestones) + 1)], milestones=milestones, num_updates=iterations
        ),
        warmup_factor=0.001,
        warmup_length=warmup / iterations,
        warmup_method="linear",
    )


# Swin's: 12 epochs, steps after 8 and 11; 36 epochs, steps after 27 and 33. At 16 images an iteration.
coco_1x = _steps([60000, 82500], 90000, warmup=500)
coco_3x = _steps([202500, 247500], 270000, warmup=500)
bdd100k_1x = _steps([34930, 48030], 52400, warmup=500)
bdd100k_3x = _steps([117900, 144100], 157200, warmup=500)

# PASCAL VOC 2012: 36 epochs of 5,717 images, 357 iterations each; steps after 27 and 33.
voc = _steps([9650, 11790], 12860, warmup=500)

# Of the nano models.
nano = _steps([720], 900, warmup=50)

# Small data sets of one's own.
custom_t = _steps([3750, 4580], 5000, warmup=500)
custom_nano = _steps([1600], 2000, warmup=50)
