"""Images with annotations, and the slow truth of their selection labels, for tests of the mapper."""

import math

import numpy as np
import pycocotools.mask as mask_util
import torch
from detectron2.data import transforms as T
from detectron2.structures import BoxMode
from PIL import Image

H, W = 61, 83
STRIDES = (8, 16, 32)


class Step:
    """A transform of Detectron2, and what it does to points by the book."""

    def __init__(self, transform, points, size):
        self.transform, self.points, self.size = transform, points, size


def resize(h, w, new_h, new_w):
    return Step(T.ResizeTransform(h, w, new_h, new_w), lambda p: p * [new_w / w, new_h / h], (new_h, new_w))


def hflip(h, w):
    return Step(T.HFlipTransform(w), lambda p: p * [-1, 1] + [w, 0], (h, w))


def vflip(h, w):
    return Step(T.VFlipTransform(h), lambda p: p * [1, -1] + [0, h], (h, w))


def crop(x, y, h, w):
    return Step(T.CropTransform(x, y, w, h), lambda p: p - [x, y], (h, w))


def rotate(h, w, angle):
    """Counter-clockwise about the centre; the canvas grows to hold it all."""
    c, s = math.cos(math.radians(angle)), math.sin(math.radians(angle))
    new_h, new_w = round(h * abs(c) + w * abs(s)), round(h * abs(s) + w * abs(c))

    def points(p):
        x, y = (p - [w / 2, h / 2]).T
        return np.stack([c * x + s * y + new_w / 2, -s * x + c * y + new_h / 2], axis=1)

    return Step(T.RotationTransform(h, w, angle), points, (new_h, new_w))


AUGMENTATIONS = {
    "none": [],
    "flip": [hflip(H, W)],
    "both flips": [hflip(H, W), vflip(H, W)],
    "enlarged": [resize(H, W, 122, 150)],
    "shrunk and flipped": [resize(H, W, 40, 57), hflip(40, 57)],
    "cropped": [crop(11, 7, 40, 50)],
    "cropped, enlarged, flipped": [crop(20, 13, 33, 47), resize(33, 47, 80, 101), hflip(80, 101)],
    "rotated": [rotate(H, W, 30)],
    "cropped and rotated": [crop(20, 13, 33, 47), rotate(33, 47, -25)],
}


def polygon_object(rng, points=7):
    """A star about a random place, reaching over the image at times; its box is tight."""
    angle = np.sort(rng.random(points) * 2 * np.pi)
    radius = rng.uniform(2, 20) * rng.uniform(0.4, 1, points)
    x, y = rng.uniform(0, W), rng.uniform(0, H)
    polygon = np.round(np.stack([x + radius * np.cos(angle), y + radius * np.sin(angle)], axis=1), 2)
    (x1, y1), (x2, y2) = polygon.min(axis=0).tolist(), polygon.max(axis=0).tolist()
    return annotation([x1, y1, x2 - x1, y2 - y1], segmentation=[polygon.ravel().tolist()])


def mask_object(rng, kind):
    """A blob of pixels, as compressed or uncompressed encoding or as an array."""
    x, y = rng.integers(0, W - 12), rng.integers(0, H - 12)
    w, h = rng.integers(5, 12, 2)
    mask = np.zeros((H, W), dtype=np.uint8)
    mask[y : y + h, x : x + w] = rng.random((h, w)) < 0.6
    mask[y + h // 2, x + w // 2] = 1
    return annotation([float(x), float(y), float(w), float(h)], segmentation=encode(mask, kind))


def encode(mask, kind="compressed"):
    if kind == "bitmask":
        return mask.astype(bool)
    if kind == "uncompressed":
        changes = np.flatnonzero(np.diff(np.concatenate([[0], mask.ravel(order="F"), [2]])))
        return {"size": list(mask.shape), "counts": np.diff(changes, prepend=0).tolist()}
    return mask_util.encode(np.asfortranarray(mask))


def decode(segmentation):
    """(h, w) 0 or 1 of an encoding or array."""
    if isinstance(segmentation, np.ndarray):
        return segmentation.astype(np.uint8)
    if isinstance(segmentation["counts"], list):
        value, flat = 0, []
        for count in segmentation["counts"]:
            flat += [value] * count
            value = 1 - value
        return np.array(flat, dtype=np.uint8).reshape(segmentation["size"], order="F")
    return mask_util.decode(segmentation)


def annotation(bbox, mode=BoxMode.XYWH_ABS, **more):
    return {"bbox": bbox, "bbox_mode": mode, "category_id": 0, "iscrowd": 0, **more}


def scene(path, annotations, size=(H, W), seed=0):
    """Dataset dict of an image of noise."""
    h, w = size
    file_name = str(path / f"{h}_{w}_{seed}.png")
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (h, w, 3), dtype=np.uint8)).save(file_name)
    return {"file_name": file_name, "height": h, "width": w, "image_id": seed, "annotations": annotations}


def move_box(anno, steps):
    """XYXY after each step's hull of corners, clipped at the end; in float32 as Detectron2's ground truth."""
    x, y, a, b = (float(np.float32(v)) for v in anno["bbox"])
    if anno["bbox_mode"] == BoxMode.XYWH_ABS:
        a, b = float(np.float32(x) + np.float32(a)), float(np.float32(y) + np.float32(b))
    corners = np.array([[x, y], [a, y], [a, b], [x, b]])
    for step in steps:
        corners = step.points(corners)
        (x, y), (a, b) = corners.min(axis=0), corners.max(axis=0)
        corners = np.array([[x, y], [a, y], [a, b], [x, b]])
    h, w = steps[-1].size if steps else (H, W)
    box = np.clip([*corners.min(axis=0), *corners.max(axis=0)], 0, [w, h, w, h])
    return box.astype(np.float32).tolist()


def draw_box(box, size):
    mask = np.zeros(size, dtype=bool)
    x1, y1, x2, y2 = box
    if x2 - x1 > 1e-5 and y2 - y1 > 1e-5:
        mask[math.floor(y1) : math.ceil(y2), math.floor(x1) : math.ceil(x2)] = True
    return mask


def draw_polygon(points, size):
    return mask_util.decode(mask_util.frPyObjects([np.ravel(points).tolist()], *size))[:, :, 0].astype(bool)


def draw(anno, steps, use_mask=True):
    """Pixels that an annotation covers in the augmented image, drawn alone. (h, w) bool."""
    box = draw_box(move_box(anno, steps), steps[-1].size if steps else (H, W))
    if anno.get("segmentation") is None or not use_mask or not box.any():
        return box
    mask = draw_mask(anno, steps)
    return box if not mask.any() and is_small(anno, steps) else mask


def is_small(anno, steps):
    """Whether a mask that covers no pixel is visible, but too thin, rather than cropped away."""
    polygons = isinstance(anno["segmentation"], list)
    crops = [index for index, step in enumerate(steps) if isinstance(step.transform, T.CropTransform)]
    if not crops or crops[-1] == len(steps) - 1 or not isinstance(steps[-1].transform, T.RotationTransform):
        return polygons and draw_mask(anno, steps, magnified=64).any()
    # The box is that of what the crop cut off, too: it stands for a mask only if that lies within the crop.
    if polygons:
        points = np.concatenate([np.reshape(polygon, (-1, 2)) for polygon in anno["segmentation"]])
    else:
        points = np.argwhere(decode(anno["segmentation"]))[:, ::-1] + 0.5
    for step in steps[: crops[-1] + 1]:
        points = step.points(points)
    h, w = steps[crops[-1]].size
    return ((points > 0) & (points < [w, h])).all()


def draw_mask(anno, steps, magnified=1):
    """Pixels of an annotation's mask; ``magnified`` draws polygons on a finer grid."""
    size = steps[-1].size if steps else (H, W)
    segmentation = anno.get("segmentation")
    if not isinstance(segmentation, list):
        mask = decode(segmentation)
        for step in steps:
            mask = step.transform.apply_segmentation(mask)
        return mask == 1
    mask = np.zeros((size[0] * magnified, size[1] * magnified), dtype=bool)
    for polygon in segmentation:
        points = np.array(polygon, dtype=float).reshape(-1, 2)
        window = None
        for step in steps:
            points = step.points(points)
            window = None if window is None else step.points(window)
            if isinstance(step.transform, T.CropTransform):
                h, w = step.size
                window = np.array([[0, 0], [w, 0], [w, h], [0, h]], dtype=float)
        drawn = draw_polygon(points * magnified, mask.shape)
        mask |= drawn if window is None else drawn & draw_polygon(window * magnified, mask.shape)
    return mask


def truth(annotations, steps, strides=STRIDES, use_mask=True):
    """Labels of an image: every annotation drawn alone, every cell looked at."""
    h, w = steps[-1].size if steps else (H, W)
    objects, ignored = np.zeros((h, w), dtype=bool), np.zeros((h, w), dtype=bool)
    for anno in annotations:
        region = ignored if anno["iscrowd"] or anno.get("ignore") or anno.get("ignored") else objects
        region |= draw(anno, steps, use_mask)
    labels = {}
    for s in strides:
        labels[s] = torch.zeros(math.ceil(h / s), math.ceil(w / s), dtype=torch.uint8)
        for i in range(labels[s].shape[0]):
            for j in range(labels[s].shape[1]):
                cell = np.s_[i * s : (i + 1) * s, j * s : (j + 1) * s]
                labels[s][i, j] = 1 if objects[cell].any() else 255 if ignored[cell].any() else 0
    return labels


def assert_same_labels(got, expected):
    assert sorted(got) == sorted(expected)
    for stride, label in expected.items():
        assert got[stride].dtype == torch.uint8 and got[stride].shape == label.shape, stride
        assert torch.equal(got[stride], label), f"stride {stride}\n{got[stride]}\n{label}"
