"""A COCO json under examination: what was found wrong with it, and what a clean copy does about it."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from spt_d2.data.object_sizes import annotation_area

NUM_EXAMPLES = 5


@dataclass(frozen=True)
class Problem:
    """
    One kind of fault.

    Attributes:
        kind: short name, stable, for programs.
        error: True where training or evaluation would stop, or learn something else than the json says; False where it
            runs, but perhaps not as meant.
        count: how many images, annotations or categories have it.
        what: said of them, as "have no file".
        cure: what a clean copy does about it.
        examples: the first few, named.
        hint: where the fault may come from, in words; empty where nothing is known.
    """

    kind: str
    error: bool
    count: int
    what: str
    cure: str
    examples: tuple[str, ...]
    hint: str = ""


class Draft:
    """
    The content with the faults found so far; nothing in the content itself is ever changed.

    Attributes:
        content: of the json.
        images, annotations: its records, as they are.
        problems: in the order they were found.
        keep_images, keep_annotations: bool per record, what a clean copy holds.
        sizes: (images, 2) int64 (h, w) in pixels, 0 where not known.
        is_record: (annotations,) bool, which are json objects at all.
        image_of: (annotations,) index of the image of each, -1 for none.
        boxes: (annotations, 4) float64 XYWH, NaN where there is none.
        mendable: False where no clean copy can be made.
    """

    def __init__(self, content: Mapping[str, Any]):
        self.content = content
        self.images: list[Any] = content["images"]
        self.annotations: list[Any] = content["annotations"]
        self.problems: list[Problem] = []
        self.keep_images = np.ones(len(self.images), dtype=bool)
        self.keep_annotations = np.ones(len(self.annotations), dtype=bool)
        self.sizes = np.zeros((len(self.images), 2), dtype=np.int64)
        self.is_record = np.array([isinstance(entry, dict) for entry in self.annotations], dtype=bool)
        self.image_of = np.full(len(self.annotations), -1, dtype=np.int64)
        self.boxes = np.full((len(self.annotations), 4), np.nan)
        self.mendable = True
        self._changes: dict[int, dict[str, Any]] = {}
        self._outlined = np.zeros(len(self.annotations), dtype=bool)
        self._measured = np.zeros(len(self.annotations), dtype=bool)

    def add(self, kind: str, error: bool, examples: Sequence[str], what: str, cure: str = "") -> None:
        """Note a fault of the whole or of categories, if it has examples. Without a cure there is no clean copy."""
        if examples:
            self.problems.append(Problem(kind, error, len(examples), what, cure, tuple(examples[:NUM_EXAMPLES])))
            self.mendable &= bool(cure) or not error

    def add_images(
        self,
        kind: str,
        error: bool,
        bad: np.ndarray,
        what: str,
        drop: bool = True,
        cure: str = "leaves them out, with their annotations",
        detail: Callable[[int], str] = lambda index: "",
        hint: str = "",
    ) -> None:
        """Note a fault of the images where ``bad``, (images,) bool, is set; ``detail`` says more of one."""
        indices = np.flatnonzero(bad)
        if len(indices):
            examples = tuple(self._name_image(i) + detail(i) for i in indices[:NUM_EXAMPLES].tolist())
            self.problems.append(Problem(kind, error, len(indices), what, cure, examples, hint))
            if drop:
                self.keep_images[indices] = False

    def add_annotations(
        self,
        kind: str,
        error: bool,
        bad: np.ndarray,
        what: str,
        drop: bool = True,
        cure: str = "leaves them out",
        detail: Callable[[int], str] = lambda index: "",
    ) -> None:
        """Note a fault of annotations, as :meth:`add_images` does of images."""
        indices = np.flatnonzero(bad)
        if len(indices):
            examples = tuple(self._name_annotation(i) + detail(i) for i in indices[:NUM_EXAMPLES].tolist())
            self.problems.append(Problem(kind, error, len(indices), what, cure, examples))
            if drop:
                self.keep_annotations[indices] = False

    def change(self, index: int, **values: Any) -> None:
        """What a clean copy writes into an annotation; None takes the key out."""
        self._changes.setdefault(index, {}).update(values)

    def outline(self, bad: np.ndarray) -> None:
        """Have a clean copy put the outline of the box in place of the mask, where ``bad`` is set."""
        self._outlined |= bad

    def measure_area(self, bad: np.ndarray) -> None:
        """Have a clean copy measure the area, where ``bad`` is set."""
        self._measured |= bad

    def records(self) -> list[dict[str, Any]]:
        """The annotations, an empty one in place of what is no json object."""
        return [entry if ok else {} for entry, ok in zip(self.annotations, self.is_record.tolist())]

    def annotation_sizes(self) -> np.ndarray:
        """(annotations, 2) float64 (h, w) of the image of each, NaN where not known."""
        # One more image, of no size, is that of the annotations that have none: the index -1.
        sizes = np.append(self.sizes, [[0, 0]], axis=0).astype(np.float64)[self.image_of]
        return np.where(sizes > 0, sizes, np.nan)

    def clean_copy(self) -> dict[str, Any]:
        """A json without the faults; records that had none are those of the content."""
        keep = self.keep_annotations & (self.image_of >= 0)
        if len(self.images):
            keep &= self.keep_images[self.image_of]
        images = []
        for index in np.flatnonzero(self.keep_images).tolist():
            image, (h, w) = self.images[index], self.sizes[index].tolist()
            same = image.get("height") == h and image.get("width") == w
            images.append(image if same else {**image, "height": h, "width": w})
        return {
            **self.content,
            "info": self.content.get("info") or {},
            "licenses": self.content.get("licenses") or [],
            "images": images,
            "annotations": [self._clean_annotation(index) for index in np.flatnonzero(keep).tolist()],
        }

    def _clean_annotation(self, index: int) -> dict[str, Any]:
        annotation: dict[str, Any] = self.annotations[index]
        if index not in self._changes and not self._outlined[index] and not self._measured[index]:
            return annotation
        changes = self._changes.get(index, {})
        removed = {key for key, value in changes.items() if value is None}
        mended = {key: value for key, value in {**annotation, **changes}.items() if key not in removed}
        if self._outlined[index]:
            x, y, w, h = mended["bbox"]
            mended["segmentation"] = [[x, y, x + w, y, x + w, y + h, x, y + h]]
        if self._measured[index]:
            mask, (h, w) = mended.get("segmentation"), self.sizes[self.image_of[index]].tolist()
            # As in the labels, a mask without a pixel leaves its place to the box.
            area = annotation_area({"segmentation": mask}, (h, w)) if mask else 0
            mended["area"] = area or mended["bbox"][2] * mended["bbox"][3]
        return mended

    def _name_image(self, index: int) -> str:
        image = self.images[index]
        if not isinstance(image, dict):
            return f"images[{index}]"
        return f"image {image.get('id')!r} ({image.get('file_name')})"

    def _name_annotation(self, index: int) -> str:
        annotation = self.annotations[index]
        if not isinstance(annotation, dict):
            return f"annotations[{index}]"
        return f"annotation {annotation.get('id')!r} of image {annotation.get('image_id')!r}"
