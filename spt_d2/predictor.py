"""From one image to a model's output, for yaml configs and LazyConfigs alike."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode, instantiate
from detectron2.data import Metadata, MetadataCatalog
from detectron2.data import transforms as T
from detectron2.modeling import build_model
from omegaconf import DictConfig, OmegaConf
from torch import nn

from spt_d2.checkpoint import SelectionCheckpointer
from spt_d2.data.datasets import dataset_categories
from spt_d2.engine.setup import available_device


class SelectionPredictor:
    """
    Run a model on one image at a time, prepared as for evaluation; :func:`build_predictor` makes it from a config.

    Does what Detectron2's ``DefaultPredictor`` does, and tells what was selected.

    Args:
        model: a meta-architecture with its weights, on its device; put into evaluation mode.
        augmentations: of an evaluation's mapper: the resize.
        image_format: channel order that the model takes, ``RGB`` or ``BGR``.
        metadata: class names for pictures.
        return_selections: whether outputs carry ``selection``. The model is told so; one that is no
            ``Selection...`` meta-architecture has none to return.

    Raises:
        ValueError: another channel order.
    """

    def __init__(
        self,
        model: nn.Module,
        augmentations: Sequence[T.Augmentation | T.Transform],
        *,
        image_format: str = "RGB",
        metadata: Metadata | None = None,
        return_selections: bool = True,
    ):
        if image_format not in ("RGB", "BGR"):
            raise ValueError(f"SelectionPredictor(image_format=) expects 'RGB' or 'BGR'. Got {image_format!r}.")
        self.model = model.eval()
        if hasattr(model, "return_selections"):
            model.return_selections = return_selections  # type: ignore[assignment]
        self.augmentations = T.AugmentationList(list(augmentations))
        self.image_format = image_format
        self.metadata = metadata

    @torch.no_grad()
    def __call__(self, image: np.ndarray) -> dict[str, Any]:
        """
        Args:
            image: (H, W, 3) uint8 in BGR order, as ``cv2.imread`` gives it where there is an image to read.

        Returns:
            the model's output for it, in pixels of ``image``: ``instances`` and the like; where selections are
            returned, ``selection`` (an :class:`~spt_d2.ops.selection.ImageSelection`); always ``input_size``:
            (height, width) of the image as the network saw it, which the functions of :mod:`spt_d2.visualization`
            ask for.

        Raises:
            TypeError: no array.
            ValueError: an array that is no such image.
        """
        if not isinstance(image, np.ndarray):
            hint = "pass the image itself: cv2.imread(path), or tensor.numpy()."
            if image is None:
                hint = "cv2.imread returns None where there is no file of that path, or none that it can read."
            raise TypeError(
                f"SelectionPredictor expects an image as a numpy array. Got {type(image).__name__}.\nHINT: {hint}"
            )
        if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or image.size == 0:
            raise ValueError(
                "SelectionPredictor expects an image of shape (H, W, 3) and dtype uint8, in BGR order.\n"
                f"  image.shape: {image.shape}\n  image.dtype: {image.dtype}"
            )
        height, width = image.shape[:2]
        if self.image_format == "RGB":
            image = image[:, :, ::-1]
        resized = T.AugInput(image)
        self.augmentations(resized)
        pixels = np.ascontiguousarray(resized.image.transpose(2, 0, 1), dtype=np.float32)
        output = self.model([{"image": torch.from_numpy(pixels), "height": height, "width": width}])[0]
        return {**output, "input_size": pixels.shape[1:]}


def build_predictor(
    cfg: CfgNode | DictConfig,
    weights: str | None = None,
    *,
    return_selections: bool = True,
    whole: bool = False,
) -> SelectionPredictor:
    """
    Build the model of a config and load its weights.

    Args:
        cfg: of :func:`spt_d2.engine.setup.load_config`, or a LazyConfig with ``model``, ``dataloader.test`` and
            ``train`` (configs/common). A CUDA device is replaced by the CPU on a machine that has none.
        weights: path of a checkpoint; by default the config's (``MODEL.WEIGHTS``, ``train.init_checkpoint``).
        return_selections: see :class:`SelectionPredictor`.
        whole: whether the checkpoint has to hold all of the model. By default what it lacks keeps its initial values,
            as in a training that begins.

    Raises:
        ValueError: a checkpoint of less, or of another model, where the whole was asked for.
    """
    parts = _yacs_parts(cfg) if isinstance(cfg, CfgNode) else _lazy_parts(cfg)
    model, augmentations, image_format, names, configured = parts
    loader = _WholeCheckpointer if whole else SelectionCheckpointer
    loader(model).load(configured if weights is None else weights)
    return SelectionPredictor(
        model,
        augmentations,
        image_format=image_format,
        metadata=_metadata(names),
        return_selections=return_selections,
    )


class _WholeCheckpointer(SelectionCheckpointer):
    """Takes checkpoints only that leave nothing of the model as it was initialised."""

    def _load_model(self, checkpoint: dict[str, Any]):
        given = {name.removeprefix("module."): tuple(value.shape) for name, value in checkpoint["model"].items()}
        wanted = {name: tuple(value.shape) for name, value in self.model.state_dict().items()}
        # Detectron2's own older files name their entries otherwise, and it finds out which is which.
        if not checkpoint.get("matching_heuristics"):
            bad = [name for name, shape in wanted.items() if given.get(name) != shape]
            if bad:
                listed = [f"  {name}: {given.get(name, 'none')} in the checkpoint, {wanted[name]} here" for name in bad]
                more = [f"  and {len(bad) - 5} more"] if len(bad) > 5 else []
                raise ValueError(
                    f"A trained model expects all of its {len(wanted)} entries in the checkpoint. "
                    f"It lacks {len(bad)}, or has them in another shape:\n"
                    + "\n".join([*listed[:5], *more])
                    + "\nHINT: take the config.yaml that the run left beside its weights."
                )
        return super()._load_model(checkpoint)


def _yacs_parts(cfg: CfgNode) -> tuple[nn.Module, list[T.Augmentation], str, list[str], str]:
    cfg = cfg.clone()
    cfg.defrost()
    cfg.MODEL.DEVICE = available_device(cfg.MODEL.DEVICE)
    size = cfg.INPUT.MIN_SIZE_TEST
    resize = T.ResizeShortestEdge([size, size], cfg.INPUT.MAX_SIZE_TEST)
    return build_model(cfg), [resize], cfg.INPUT.FORMAT, list(cfg.DATASETS.TEST), cfg.MODEL.WEIGHTS


def _lazy_parts(cfg: DictConfig) -> tuple[nn.Module, list[T.Augmentation], str, list[str], str]:
    mapper = cfg.dataloader.test.mapper
    names = OmegaConf.select(cfg, "dataloader.test.dataset.names") or []
    model = instantiate(cfg.model).to(available_device(cfg.train.device))
    augmentations = [instantiate(augmentation) for augmentation in mapper.augmentations]
    names = [names] if isinstance(names, str) else list(names)
    return model, augmentations, mapper.image_format, names, cfg.train.init_checkpoint


def _metadata(names: Sequence[str]) -> Metadata | None:
    """Of the first data set, with its class names where they can be known."""
    if not names:
        return None
    metadata = MetadataCatalog.get(names[0])
    if metadata.get("thing_classes") is None and (categories := dataset_categories(names[0])) is not None:
        metadata.thing_classes = list(categories.names)
    return metadata
