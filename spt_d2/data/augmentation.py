"""Crops of some images only, as the detection recipes of DETR and Swin take them."""

from collections.abc import Sequence

from detectron2.config import CfgNode
from detectron2.data import transforms as T
from fvcore.transforms.transform import Transform


class OccasionalCrop(T.Augmentation):
    """
    Resize and crop an image, or leave it as it is.

    Half of the images of DETR's recipe (Carion et al., 2020), and after it of Swin's (Liu et al., 2021), are resized to
    a short side of 400, 500 or 600 px and cropped to 384 to 600 px a side. What is left is then resized as the other
    half is, so this goes before that resize.

    Args:
        crop_type, crop_size: of :class:`detectron2.data.transforms.RandomCrop`.
        probability: that an image is resized and cropped, in [0, 1].
        min_sizes: short sides in pixels, one of which the image is resized to before the crop; empty for no resize.
        max_size: of the long side after that resize, in pixels; the short side gives way.

    Raises:
        ValueError: a probability outside [0, 1], or a short side that is not above 0.
    """

    def __init__(
        self,
        crop_type: str,
        crop_size: Sequence[float],
        probability: float = 0.5,
        min_sizes: Sequence[int] = (),
        max_size: int = 1333,
    ):
        super().__init__()
        if not 0.0 <= probability <= 1.0:
            raise ValueError(
                f"OccasionalCrop(probability=) expects a number in [0, 1] (INPUT.CROP.PROBABILITY). Got {probability}."
            )
        if any(size <= 0 for size in min_sizes):
            raise ValueError(
                "OccasionalCrop(min_sizes=) expects short sides above 0 px (INPUT.CROP.MIN_SIZES). "
                f"Got {tuple(min_sizes)}."
            )
        self.crop_type, self.crop_size = crop_type, tuple(crop_size)
        self.probability, self.min_sizes, self.max_size = probability, tuple(min_sizes), max_size
        resize = [T.ResizeShortestEdge(self.min_sizes, max_size, sample_style="choice")] if min_sizes else []
        self._steps = T.AugmentationList([*resize, T.RandomCrop(crop_type, self.crop_size)])

    def __call__(self, aug_input: T.AugInput) -> Transform:
        """Change the input in place; returns what was done to it."""
        # A crop is chosen where the image resized is, so there is no transform to give before the first is applied.
        return self._steps(aug_input) if self._rand_range() < self.probability else T.NoOpTransform()


def build_crop(cfg: CfgNode) -> T.Augmentation:
    """``INPUT.CROP``: Detectron2's own crop, unless it is for some images only or has a resize before it."""
    node = cfg.INPUT.CROP
    if node.PROBABILITY == 1.0 and not node.MIN_SIZES:
        return T.RandomCrop(node.TYPE, node.SIZE)
    return OccasionalCrop(node.TYPE, node.SIZE, node.PROBABILITY, node.MIN_SIZES, cfg.INPUT.MAX_SIZE_TRAIN)
