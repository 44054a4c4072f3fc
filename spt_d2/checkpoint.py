"""Checkpoints: of this model or of a relative, pretrained or with other classes; with the average of the weights."""

import contextlib
import logging
import os
import pickle
import re
from collections.abc import Mapping
from typing import Any

from detectron2.checkpoint import DetectionCheckpointer
from torch import Tensor, nn

from spt_d2.engine.ema import EMAHook
from spt_d2.vit_weights import fit_vit
from spt_d2.weights import fit_to_model, read_weights
from spt_d2.weights.files import unreadable

logger = logging.getLogger(__name__)

# Layers whose shapes follow the number of classes: box and mask heads (of a cascade too), RetinaNet, semantic heads,
# multi-label classifiers.
_PREDICTOR = re.compile(
    r"(^|\.)(box_predictor|mask_head\.predictor|head\.cls_score|sem_seg_head\.predictor|label_predictor)\."
)


class SelectionCheckpointer(DetectionCheckpointer):
    """
    :class:`DetectionCheckpointer` that reads pretrained weights of Swin (:mod:`spt_d2.weights`) and of plain ViTs
    (:mod:`spt_d2.vit_weights`) in any layout, says which parts start anew, and knows the average of the weights.

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

    def tag_last_checkpoint(self, last_filename_basename: str) -> None:
        """As :meth:`DetectionCheckpointer.tag_last_checkpoint`, in one step: a run may be killed at any moment."""
        if "://" in self.save_dir:
            super().tag_last_checkpoint(last_filename_basename)
            return
        tag = os.path.join(self.save_dir, "last_checkpoint")
        with open(f"{tag}.new", "w", encoding="utf-8") as file:
            file.write(last_filename_basename)
        os.replace(f"{tag}.new", tag)

    def load(self, path: str, checkpointables: list[str] | None = None) -> dict[str, Any]:
        """
        As :meth:`DetectionCheckpointer.load`.

        Raises:
            ValueError: a run is resumed whose model had another number of classes; weights of a backbone of another
                width, or of one that is not Swin's first version; a file that holds more than tensors.
            ImportError: a ``.safetensors`` file, and no such package.
        """
        # Detectron2 passes an empty list where only weights are wanted.
        self._resuming = bool(self.checkpointables) and checkpointables != []
        return super().load(path, checkpointables)

    def _load_file(self, filename: str) -> dict[str, Any]:
        if filename.endswith(".safetensors"):
            return {"model": read_weights(filename)}
        try:
            loaded = super()._load_file(filename)
        except pickle.UnpicklingError as error:
            cure = "tools/convert_swin_weights.py --trust writes one without them"
            raise unreadable("A checkpoint", filename, error, cure) from error
        if isinstance(loaded["model"].get("state_dict"), Mapping):
            # As MMDetection and timm save a run.
            loaded["model"] = loaded["model"]["state_dict"]
        return loaded

    def _load_model(self, checkpoint: dict[str, Any]):
        wanted = self.model.state_dict()
        resumed = self._resuming and "trainer" in checkpoint
        if resumed and self.ema is None and _has_average(checkpoint["trainer"]):
            raise ValueError(
                "A resumed run expects an average of the weights where it began with one: the model of the checkpoint "
                "is that average. Got none.\n"
                "HINT: resume with MODEL.EMA.ENABLED True (train.ema.enabled in a LazyConfig), or start a new run from "
                "the average with MODEL.WEIGHTS, without --resume."
            )
        started = [] if resumed else self._fit(checkpoint, wanted)
        dropped = drop_other_predictors(checkpoint["model"], wanted)
        if dropped and resumed:
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
        for name in (*dropped, *started):
            if name in incompatible.missing_keys:
                incompatible.missing_keys.remove(name)
        return incompatible

    def _fit(self, checkpoint: dict[str, Any], wanted: Mapping[str, Tensor]) -> list[str]:
        """Bring pretrained weights into the model's form; returns the entries that keep their initial values."""
        self._convert_ndarray_to_tensor(checkpoint["model"])
        vit = fit_vit(checkpoint["model"], wanted)
        if vit is not None:
            checkpoint["model"] = vit
            prefix = next(name for name in vit if name.endswith("patch_embed.proj.weight"))
            prefix = prefix.removesuffix("patch_embed.proj.weight")
            new = [name for name in wanted if name.startswith(prefix) and name not in vit]
            copied = sum(name.startswith(prefix) for name in vit)
            logger.info("Weights of a plain ViT: %d entries of the backbone copied, %d new.", copied, len(new))
            return new
        checkpoint["model"], report = fit_to_model(checkpoint["model"], wanted)
        if report is None:
            return []
        logger.info("Weights of %s", report.table())
        for line in report.warnings():
            logger.warning("Of the checkpoint's weights: %s", line)
        reported = set(report.names("new", "dropped"))
        return [name for name in wanted if name.removeprefix(report.prefix) in reported]


def _has_average(trainer: Mapping[str, Any]) -> bool:
    """Whether a trainer's state, which names its hooks by their classes, is of a run with an average."""
    return any(name.rpartition(".")[2] == EMAHook.__name__ for name in trainer.get("hooks", {}))


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
