"""The crop of some images: what Swin's detection recipe does, drawn by hand; labels and boxes follow it."""

from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.config import CfgNode, get_cfg
from detectron2.data import transforms as T
from PIL import Image

from spt_d2 import get_config
from spt_d2.config import add_spt_config
from spt_d2.data import SelectionDatasetMapper
from spt_d2.data.augmentation import OccasionalCrop, build_crop
from tests.data.scenes import annotation, scene

# Detectron2 names the mode of images to Pillow, and hands it arrays that are not writable.
pytestmark = [
    pytest.mark.filterwarnings("ignore:'mode' parameter is deprecated:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:The given NumPy array is not writable:UserWarning"),
]

SHORT_SIDES = tuple(range(480, 801, 32))
RECIPE = {"crop_type": "absolute_range", "crop_size": (384, 600), "min_sizes": (400, 500, 600)}


def recipe_by_hand(height: int, width: int) -> tuple[list[tuple], tuple[int, int]]:
    """DETR's two branches, with the draws of numpy's global state in their order: the steps, and the final size."""

    def resized(h: int, w: int, short: int) -> tuple[int, int]:
        scale = min(short / min(h, w), 1333 / max(h, w))
        return int(h * scale + 0.5), int(w * scale + 0.5)

    steps, size = [], (height, width)
    if np.random.uniform(0, 1.0) < 0.5:
        size = resized(*size, np.random.choice((400, 500, 600)))
        steps.append(("resize", *size))
        h = np.random.randint(min(size[0], 384), min(size[0], 600) + 1)
        w = np.random.randint(min(size[1], 384), min(size[1], 600) + 1)
        y, x = np.random.randint(size[0] - h + 1), np.random.randint(size[1] - w + 1)
        size = (h, w)
        steps.append(("crop", x, y, w, h))
    size = resized(*size, np.random.choice(SHORT_SIDES))
    return [*steps, ("resize", *size)], size


def describe(transform: T.Transform) -> tuple:
    if isinstance(transform, T.CropTransform):
        return ("crop", transform.x0, transform.y0, transform.w, transform.h)
    assert isinstance(transform, T.ResizeTransform)
    return ("resize", transform.new_h, transform.new_w)


def recipe_of_config() -> list[T.Augmentation]:
    cfg = get_config("COCO-InstanceSegmentation/mask_rcnn_spt_t_fpn_3x.yaml")
    return SelectionDatasetMapper(cfg, is_train=True).augmentations.augs


@pytest.mark.parametrize("size", [(480, 640), (640, 427), (300, 900), (200, 150)])
def test_the_configs_augmentations_are_swins_recipe_drawn_by_hand(size: tuple[int, int]) -> None:
    *recipe, flip = recipe_of_config()
    assert isinstance(flip, T.RandomFlip)
    image = np.zeros((*size, 3), dtype=np.uint8)
    crops = 0
    for seed in range(24):
        np.random.seed(seed)
        expected, final_size = recipe_by_hand(*size)
        np.random.seed(seed)
        augmented = T.AugInput(image)
        transforms = T.AugmentationList(recipe)(augmented)
        done = [t for t in transforms.transforms if not isinstance(t, T.NoOpTransform)]
        assert [describe(t) for t in done] == expected
        assert augmented.image.shape[:2] == final_size
        crops += len(done) == 3
    assert 6 <= crops <= 18


def test_the_share_of_cropped_images_is_the_probability() -> None:
    image = np.zeros((60, 80, 3), dtype=np.uint8)
    for probability in (0.0, 0.25, 1.0):
        crop = OccasionalCrop("absolute", (20, 30), probability)
        shapes = []
        for _ in range(400):
            augmented = T.AugInput(image)
            crop(augmented)
            shapes.append(augmented.image.shape[:2])
        assert set(shapes) <= {(20, 30), (60, 80)}
        # Four standard deviations.
        assert abs(shapes.count((20, 30)) / 400 - probability) <= 4 * (probability * (1 - probability) / 400) ** 0.5


def crop_cfg(**values: object) -> CfgNode:
    cfg = get_cfg()
    add_spt_config(cfg)
    cfg.INPUT.CROP.ENABLED = True
    for key, value in values.items():
        cfg.INPUT.CROP[key] = value
    return cfg


def test_by_default_the_crop_is_detectron2s() -> None:
    assert type(build_crop(crop_cfg())) is T.RandomCrop
    cfg = crop_cfg()
    cfg.MODEL.MASK_ON = True
    mapper = SelectionDatasetMapper(cfg, is_train=True)
    assert type(mapper.augmentations.augs[0]) is T.RandomCrop and mapper.recompute_boxes
    assert [type(aug) for aug in SelectionDatasetMapper(cfg, False).augmentations.augs] == [T.ResizeShortestEdge]


@pytest.mark.parametrize("values", [{"PROBABILITY": 0.5}, {"MIN_SIZES": [40, 50]}])
def test_either_key_makes_it_occasional(values: dict) -> None:
    cfg = crop_cfg(TYPE="absolute", SIZE=[20, 30], **values)
    cfg.INPUT.MAX_SIZE_TRAIN = 70
    crop = build_crop(cfg)
    assert isinstance(crop, OccasionalCrop)
    assert (crop.crop_type, crop.crop_size, crop.max_size) == ("absolute", (20, 30), 70)
    assert crop.probability == values.get("PROBABILITY", 1.0)
    assert crop.min_sizes == tuple(values.get("MIN_SIZES", ()))
    # What the log shows.
    assert repr(crop).startswith("OccasionalCrop(crop_type='absolute', crop_size=(20, 30), ")


@pytest.mark.parametrize("values", [{"probability": 1.5}, {"probability": -0.1}, {"min_sizes": (400, 0)}])
def test_values_that_cannot_be_are_refused(values: dict) -> None:
    with pytest.raises(ValueError, match=rf"OccasionalCrop\({next(iter(values))}=\) expects"):
        OccasionalCrop("absolute", (20, 30), **values)


def test_labels_mark_what_is_left_of_the_object(tmp_path: Path) -> None:
    """The object is the only white thing in the image, so the augmented image itself says where it went."""
    height, width = 240, 320
    pixels = np.zeros((height, width, 3), dtype=np.uint8)
    pixels[60:180, 80:240] = 255
    box = annotation([80.0, 60.0, 160.0, 120.0], segmentation=[[80, 60, 240, 60, 240, 180, 80, 180]])
    given = scene(tmp_path, [box], (height, width))
    Image.fromarray(pixels).save(given["file_name"])
    augmentations = [
        OccasionalCrop("absolute_range", (60, 200), 0.5, (200, 260)),
        T.ResizeShortestEdge((200, 300), 500, "choice"),
    ]
    mapper = SelectionDatasetMapper(True, augmentations=augmentations, image_format="RGB", use_instance_mask=True)
    seen = []
    for seed in range(12):
        np.random.seed(seed)
        output = mapper(given)
        image = output["image"][0]
        for stride, label in output["selection_labels"].items():
            certain, possible = (cells(mask, stride) for mask in (image == 255, grown(image > 0)))
            assert label[certain].eq(1).all()
            assert label[~possible].eq(0).all()
        seen.append(output["selection_labels"][8].float().mean().item())
    # Crops show more of the object, or less, than the whole image does.
    assert len({round(share, 1) for share in seen}) > 3


def cells(mask: torch.Tensor, stride: int) -> torch.Tensor:
    """Whether a cell of the grid has a pixel in the mask."""
    rows, columns = (-(-size // stride) for size in mask.shape)
    return torch.stack(
        [
            torch.stack(
                [mask[i * stride : (i + 1) * stride, j * stride : (j + 1) * stride].any() for j in range(columns)]
            )
            for i in range(rows)
        ]
    )


def grown(mask: torch.Tensor) -> torch.Tensor:
    """The mask and its neighbours: what interpolation may have spread an edge to."""
    return torch.nn.functional.max_pool2d(mask[None].float(), 3, 1, 1)[0] > 0


@pytest.mark.parametrize("tight", [True, False])
def test_boxes_are_tight_or_clipped_after_a_crop(tmp_path: Path, tight: bool) -> None:
    """A triangle whose tip the crop keeps: its box, clipped, is wider than what is left of it."""
    pytest.importorskip("shapely", reason="Detectron2 crops polygons with shapely")
    triangle = annotation([10.0, 10.0, 60.0, 40.0], segmentation=[[10, 10, 70, 10, 10, 50]])
    cfg = crop_cfg(TYPE="absolute", SIZE=[30, 100], RECOMPUTE_BOXES=tight)
    cfg.MODEL.MASK_ON = True
    cfg.INPUT.MIN_SIZE_TRAIN, cfg.INPUT.RANDOM_FLIP = (0,), "none"
    mapper = SelectionDatasetMapper(cfg, is_train=True)
    # The crop at the bottom of the image, whatever is drawn.
    mapper.augmentations = T.AugmentationList([T.CropTransform(0, 30, 83, 31)])
    output = mapper(scene(tmp_path, [triangle]))
    (found,) = output["instances"].gt_boxes.tensor.tolist()
    # At the crop's upper edge, y = 30, half of the triangle's 60 px are left.
    assert found == pytest.approx([10, 0, 40 if tight else 70, 20])
