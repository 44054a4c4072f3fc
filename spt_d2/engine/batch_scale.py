"""
Another batch size by one key: the learning rate follows it linearly (Goyal et al., 2017), the schedule inversely, so
that as many images are seen in all.

Detectron2's ``SOLVER.REFERENCE_WORLD_SIZE`` does the same where the number of GPUs is another and each has as many
images as before; the two may be combined.
"""

import contextlib
import logging
from collections.abc import Iterator

from detectron2.config import CfgNode
from omegaconf import DictConfig, OmegaConf

logger = logging.getLogger(__name__)


@contextlib.contextmanager
def whole_factor_allowed(cfg: CfgNode) -> Iterator[None]:
    """
    A context in which a merge may bring 2 for ``SOLVER.BATCH_SCALE``, where yacs would ask for 2.0.

    Args:
        cfg: changed in place: the factor is a float afterwards.

    Raises:
        ValueError: no number was merged.
    """
    node, before = cfg.SOLVER, cfg.SOLVER.BATCH_SCALE
    # Of what is None yacs lets a merge change the type.
    node.BATCH_SCALE = None
    yield
    merged = before if node.BATCH_SCALE is None else node.BATCH_SCALE
    if type(merged) not in (int, float):
        raise ValueError(f"SOLVER.BATCH_SCALE expects a number. Got {merged!r}.")
    node.BATCH_SCALE = float(merged)


def scale_batch(cfg: CfgNode) -> None:
    """
    Apply ``SOLVER.BATCH_SCALE``, and set it to 1: a config that was saved afterwards is not scaled again.

    Args:
        cfg: changed in place.

    Raises:
        ValueError: a factor that does not give a whole number of images.
    """
    node, factor = cfg.SOLVER, cfg.SOLVER.BATCH_SCALE
    if factor == 1.0:
        return
    node.IMS_PER_BATCH = _scaled_batch(node.IMS_PER_BATCH, factor, "SOLVER.BATCH_SCALE")
    node.BASE_LR *= factor
    node.BASE_LR_END *= factor
    for key in ("MAX_ITER", "WARMUP_ITERS"):
        node[key] = round(node[key] / factor)
    node.CHECKPOINT_PERIOD = _scaled_period(node.CHECKPOINT_PERIOD, factor)
    node.STEPS = tuple(round(step / factor) for step in node.STEPS)
    cfg.TEST.EVAL_PERIOD = _scaled_period(cfg.TEST.EVAL_PERIOD, factor)
    node.BATCH_SCALE = 1.0
    _report(node.IMS_PER_BATCH, node.BASE_LR, node.MAX_ITER)


def scale_lazy_batch(cfg: DictConfig) -> None:
    """
    :func:`scale_batch` of a LazyConfig, by ``train.batch_scale``.

    ``lr_multiplier`` goes by the share of the run that is over, its warm-up too, and needs no change.

    Args:
        cfg: changed in place.

    Raises:
        ValueError: as :func:`scale_batch`.
    """
    train, factor = cfg.train, OmegaConf.select(cfg, "train.batch_scale", default=1.0)
    if factor == 1.0:
        return
    loader = cfg.dataloader.train
    loader.total_batch_size = _scaled_batch(loader.total_batch_size, factor, "train.batch_scale")
    cfg.optimizer.lr *= factor
    train.max_iter = round(train.max_iter / factor)
    train.eval_period = _scaled_period(train.eval_period, factor)
    train.checkpointer.period = _scaled_period(train.checkpointer.period, factor)
    train.batch_scale = 1.0
    _report(loader.total_batch_size, cfg.optimizer.lr, train.max_iter)


def _scaled_period(period: int, factor: float) -> int:
    """In iterations; one that is off, at 0, stays off, and no other becomes so."""
    return max(round(period / factor), 1) if period > 0 else period


def _scaled_batch(images: int, factor: float, key: str) -> int:
    scaled = round(images * factor)
    if scaled < 1 or abs(scaled - images * factor) > 1e-6 * images:
        raise ValueError(
            f"{key} expects a factor that makes whole images of the config's {images}. Got {factor}.\n"
            f"HINT: n / {images} makes batches of n."
        )
    return scaled


def _report(images: int, rate: float, iterations: int) -> None:
    logger.info(
        "Batch size scaled: %d images per iteration, learning rate %g, %d iterations.", images, rate, iterations
    )
