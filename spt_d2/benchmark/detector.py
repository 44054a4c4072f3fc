"""Whole detectors: a Mask R-CNN over each backbone, with the same pyramid and heads, and the same weights there."""

import functools
import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from detectron2.modeling import build_model
from detectron2.structures import Boxes, Instances, PolygonMasks
from detectron2.utils.events import EventStorage
from torch import Tensor, nn

from spt_d2.benchmark.cases import Case
from spt_d2.benchmark.models import OWN, dense_geometry, dense_weights, load_dense, variant_config
from spt_d2.benchmark.peers import build_peer
from spt_d2.benchmark.planting import KeepRatio, Planting
from spt_d2.benchmark.steps import step
from spt_d2.ops.labels import box_labels

OBJECTS = 8
_BOTTOM_UP = "backbone.bottom_up."


def build_detectors(
    names: Sequence[str], peers: Sequence[str], image_size: tuple[int, int], overrides: Mapping[str, Any]
) -> dict[str, nn.Module]:
    """
    A detector for each backbone, on the CPU.

    Args:
        names: of backbones of this project.
        peers: installed ones; they stand under the pyramid in place of ``swin_t``.
        image_size: (height, width) in pixels of the inputs.
        overrides: keys of a config and their values.
    """
    weights, geometry = dense_weights(overrides), dense_geometry(overrides)
    heads: dict[str, Tensor] = {}
    detectors = {}
    for name in [*peers, *names]:
        detector: Any = build_model(variant_config("swin_t" if name in peers else name, overrides, detector=True))
        if name in peers:
            detector.backbone.bottom_up = build_peer(name, geometry, image_size, weights)
        else:
            load_dense(detector.backbone.bottom_up, weights)
        heads = heads or {k: v for k, v in detector.state_dict().items() if not k.startswith(_BOTTOM_UP)}
        detector.load_state_dict(heads, strict=False)
        detectors[name] = detector
    return detectors


def inputs_of(batch: int, image_size: tuple[int, int]) -> list[dict[str, Any]]:
    """Noise with :data:`OBJECTS` objects an image, as a mapper gives it, with selection labels from their boxes."""
    generator = torch.Generator().manual_seed(0)
    height, width = image_size
    inputs = []
    for _ in range(batch):
        sizes = torch.tensor([height, width]) * (0.05 + 0.3 * torch.rand(OBJECTS, 1, generator=generator))
        corners = torch.rand(OBJECTS, 2, generator=generator) * (torch.tensor([height, width]) - sizes)
        boxes = torch.cat((corners, corners + sizes), dim=1)[:, [1, 0, 3, 2]]
        instances = Instances(image_size)
        instances.gt_boxes = Boxes(boxes)
        instances.gt_classes = torch.arange(OBJECTS)
        instances.gt_masks = PolygonMasks([[_ellipse(box)] for box in boxes.tolist()])
        inputs.append(
            {
                "image": torch.randint(0, 256, (3, height, width), generator=generator, dtype=torch.uint8),
                "height": height,
                "width": width,
                "instances": instances,
                "selection_labels": {stride: box_labels(boxes, image_size, stride) for stride in (4, 8, 16, 32)},
            }
        )
    return inputs


def _ellipse(box: Sequence[float], corners: int = 24) -> Any:
    """The polygon of an ellipse in a box XYXY, (2 * corners,)."""
    x1, y1, x2, y2 = box
    angles = torch.arange(corners, dtype=torch.float64) * (2 * math.pi / corners)
    x = (x1 + x2) / 2 + (x2 - x1) / 2 * angles.cos()
    y = (y1 + y2) / 2 + (y2 - y1) / 2 * angles.sin()
    return torch.stack((x, y), dim=1).flatten().numpy()


def detector_cases(
    names: Sequence[str],
    peers: Sequence[str],
    *,
    keep_ratios: Sequence[KeepRatio],
    batches: Sequence[int],
    image_sizes: Sequence[tuple[int, int]],
    device: torch.device,
    dtype: str = "float32",
    modes: Sequence[str] = ("inference",),
    overrides: Mapping[str, Any] | None = None,
) -> list[Case]:
    """
    Cases of detectors: from images to instances, or to losses and back.

    Untrained heads find no instance of enough score, so in inference the mask head has nothing to do; proposals are as
    many as a trained detector's.

    Args: as :func:`spt_d2.benchmark.backbone.backbone_cases`, and
        modes: of :data:`spt_d2.benchmark.steps.MODES`.
    """
    overrides = {**(overrides or {}), "MODEL.DEVICE": str(device)}
    cases = []
    for image_size in image_sizes:
        detectors = build_detectors(names, peers, image_size, overrides)
        plantings: dict[str, Planting] = {}
        for name, detector in detectors.items():
            detector.to(device)
            if name in names and OWN[name].selects:
                backbone: Any = detector.backbone
                plantings[name] = Planting(backbone.bottom_up)
        for batch, mode, name in itertools.product(batches, modes, detectors):
            planting = plantings.get(name)
            inputs = inputs_of(batch, image_size)
            for keep_ratio in keep_ratios if planting else [None]:
                plant: Callable[[], None] | None = None
                if planting is not None and keep_ratio is not None:
                    plant = functools.partial(planting.use, keep_ratio, batch, image_size)
                entry = step(
                    detectors[name],
                    functools.partial(_outputs, detectors[name], inputs),
                    device,
                    dtype=dtype,
                    training=mode == "training",
                    prepare=functools.partial(_ready, plant),
                )
                cases.append(
                    Case(
                        entry=entry,
                        name=name,
                        mode=mode,
                        batch=batch,
                        image_size=image_size,
                        keep_ratio=keep_ratio,
                        dtype=dtype,
                        is_peer=name in peers,
                    )
                )
    return cases


def _ready(plant: Callable[[], None] | None) -> None:
    # Training samples anchors and proposals.
    torch.manual_seed(0)
    if plant is not None:
        plant()


def _outputs(detector: nn.Module, inputs: list[dict[str, Any]]) -> Any:
    with EventStorage():
        return detector(inputs)
