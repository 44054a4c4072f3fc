"""Checkpoints: of this model or of a relative with other classes; with the average of the weights where one is kept."""

import contextlib
import logging
import re
from collections.abc import Mapping
from typing import Any

from detectron2.checkpoint import DetectionCheckpointer
from torch import Tensor, nn

from spt_d2.engine.ema import EMAHook

logger = logging.getLogger(__name__)

# Buffers that Swin's authors store and this project computes.
_COMPUTED = ("relative_position_index", "relative_coords_table", "attn_mask")
# Layers whose shapes follow the number of classes: box and mask heads (of a cascade too), RetinaNet, semantic heads,
# multi-label classifiers.
_PREDICTOR = re.compile(
    r"(^|\.)(box_predictor|mask_head\.predictor|head\.cls_score|sem_seg_head\.predictor|label_predictor)\."
)


class SelectionCheckpointer(DetectionCheckpointer):
    """
    :class:`DetectionCheckpointer` that says plainly which predictors start anew, and knows the average of the weights.

    Args:
        model: wrapped for several processes or not.
        save_dir: folder to save in and to resume from.
        ema: hook whose average is what is saved as the model.
        **kwargs: of :class:`DetectionCheckpointer`.
    """

    def __init__(self, model: nn.Module, save_dir: str = "", *, ema: EMAHook | None = None, **kwargs: Any):
        super().__init__(model, save_dir, **kwargs)
        self.ema = ema
        self._resuming = False

    def save(self, name: str, **kwargs: Any) -> None:
        """As :meth:`DetectionCheckpointer.save`."""
        with contextlib.nullcontext() if self.ema is None else self.ema.average_weights():
            super().save(name, **kwargs)

    def load(self, path: str, checkpointables: list[str] | None = None) -> dict[str, Any]:
        """
        As :meth:`DetectionCheckpointer.load`.

        Raises:
            ValueError: a run is resumed whose model had another number of classes.
        """
        # Detectron2 passes an empty list where only weights are wanted.
        self._resuming = bool(self.checkpointables) and checkpointables != []
        return super().load(path, checkpointables)

    def _load_model(self, checkpoint: dict[str, Any]):
        weights, wanted = checkpoint["model"], self.model.state_dict()
        drop_computed_buffers(weights, wanted)
        dropped = drop_other_predictors(weights, wanted)
        if dropped and self._resuming and "trainer" in checkpoint:
            raise ValueError(
                "A resumed run expects the number of classes it began with. Got predictors of other shapes:\n"
                + _listed(dropped)
                + "\nHINT: start a new run from that checkpoint with MODEL.WEIGHTS, without --resume."
            )
        if dropped:
            logger.warning(
                "The checkpoint was trained for another number of classes. These %d entries of its predictors are "
                "dropped, and those of the model start from their initial values:\n%s",
                len(dropped),
                _listed(dropped),
            )
        incompatible = super()._load_model(checkpoint)
        # Reported above.
        for name in dropped:
            if name in incompatible.missing_keys:
                incompatible.missing_keys.remove(name)
        return incompatible


def drop_computed_buffers(weights: dict[str, Any], wanted: Mapping[str, Tensor]) -> None:
    """Remove what Swin's checkpoints store and ``wanted``, a state dict, does not have."""
    for name in list(weights):
        if name.rsplit(".", 1)[-1] in _COMPUTED and name not in wanted:
            del weights[name]


def drop_other_predictors(
    weights: dict[str, Any], wanted: Mapping[str, Tensor]
) -> dict[str, tuple[tuple[int, ...], tuple[int, ...]]]:
    """
    Remove entries of predictors whose shape is another one in ``wanted``, a state dict.

    Returns:
        for each entry its shape in ``weights`` and in ``wanted``.
    """
    dropped = {}
    for name in list(weights):
        bare = name.removeprefix("module.")
        if bare in wanted and _PREDICTOR.search(bare) and tuple(weights[name].shape) != tuple(wanted[bare].shape):
            dropped[bare] = (tuple(weights.pop(name).shape), tuple(wanted[bare].shape))
    return dropped


def _listed(dropped: Mapping[str, tuple[tuple[int, ...], tuple[int, ...]]]) -> str:
    width = max(map(len, dropped))
    return "\n".join(f"  {name:{width}}: {old} in the checkpoint, {new} here" for name, (old, new) in dropped.items())
