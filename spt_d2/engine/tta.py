"""Test-time augmentation of inputs that carry selection labels."""

from detectron2.modeling.test_time_augmentation import DatasetMapperTTA


class SelectionTTAMapper(DatasetMapperTTA):
    """Detectron2's mapper without labels and boxes for selections: they do not fit a flipped or resized image."""

    def __call__(self, dataset_dict: dict) -> list[dict]:
        """One input per flip and size, as :class:`DatasetMapperTTA` makes them."""
        return super().__call__({key: value for key, value in dataset_dict.items() if not key.startswith("selection_")})
