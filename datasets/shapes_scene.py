"""
Draw one picture of the Shapes data set: small filled shapes on a textured, cluttered background.

A picture depends on ``(seed, split, index)`` and on nothing else. The constants below are the numbers of
``datasets/README.md``; they were frozen before any detector was tuned on the pictures. Whoever changes one raises
``VERSION``.

Coordinates are pixels with the origin at the upper left corner of the picture; pixel (x, y) covers
[x, x+1) x [y, y+1), which is also how pycocotools reads a polygon.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import cv2
import numpy as np

VERSION = "1.0"
CLASSES = ("disc", "square", "triangle", "cross")
SPLITS = ("train", "val")  # the position is part of the seed

EMPTY_EVERY = 10  # pictures 9, 19, 29, ... show no object
MAX_OBJECTS = 6  # the others: uniform over 1..6
SIZE_RANGE = (14.0, 44.0)  # longer side of an object's bounding box, pixels, uniform
BORDER = 2.0  # pixels between a box and the picture's border
GAP = 2  # pixels between the drawn pixels of two objects: polygons are never occluded
CROSS_ARM = 0.36  # width of a cross's arms, as a share of its length
MIN_CONTRAST = 70.0  # RGB distance of an object's colour from the mean around it, plus that neighbourhood's spread
CONTRAST_WINDOW = 4  # pixels by which the box is grown to measure the two
MAX_SHADE = 0.15  # an object's brightness varies linearly across it by up to this share, either way
OCTAVE_DECAY = 0.65  # strength of each finer octave of smooth noise, relative to the coarser one
TEXTURES = ("noise", "gradient", "stripes", "grain")
MAX_BLOBS, MAX_STROKES = 4, 5  # distractors: 1..4 soft blobs, 1..5 open strokes
SPECKLE_SHARE = 0.3  # share of pictures strewn with dots of 1 or 2 pixels radius
SENSOR_NOISE = (1.0, 4.0)  # standard deviation of the noise laid over everything, grey levels
SUBPIXELS = 8  # anti-aliasing: a pixel's coverage is counted on an 8 x 8 grid


@dataclass(frozen=True)
class SceneObject:
    """
    One drawn object.

    Attributes:
        category: index into ``CLASSES``.
        polygon: (V, 2) float64 x, y in pixels, multiples of 1/100.
        alpha: (size, size) float32 in [0, 1], the share of each pixel that the object covers.
    """

    category: int
    polygon: np.ndarray
    alpha: np.ndarray


@dataclass(frozen=True)
class Scene:
    """
    One picture. ``background`` is the same picture, same noise, before the objects were drawn on it.

    Attributes:
        image, background: (size, size, 3) uint8 RGB.
        objects: in the order drawn; no two of them share a pixel.
    """

    image: np.ndarray
    background: np.ndarray
    objects: tuple[SceneObject, ...]


def _smooth_field(rng: np.random.Generator, size: int, octaves: tuple[int, ...]) -> np.ndarray:
    """Sum of random grids of ``octaves`` cells a side, scaled to [0, 1]; (size, size) float32."""
    field = np.zeros((size, size), np.float32)
    for power, cells in enumerate(octaves):
        grid = rng.random((cells + 1, cells + 1), dtype=np.float32)
        field += cv2.resize(grid, (size, size), interpolation=cv2.INTER_CUBIC) * OCTAVE_DECAY**power
    return (field - field.min()) / (field.max() - field.min())


def _texture(rng: np.random.Generator, size: int, kind: str) -> np.ndarray:
    """One-channel texture in [0, 1], (size, size) float32."""
    ys, xs = np.mgrid[0:size, 0:size].astype(np.float32)
    angle = rng.uniform(0, 2 * math.pi)
    across = math.cos(angle) * xs + math.sin(angle) * ys  # pixels along the direction of change
    if kind == "noise":
        return _smooth_field(rng, size, (3, 6, 12, 24, 48))
    if kind == "gradient":
        if rng.random() < 0.5:
            centre_x, centre_y = rng.uniform(0, size, 2)
            across = np.hypot(xs - centre_x, ys - centre_y).astype(np.float32)
        ramp = (across - across.min()) / (across.max() - across.min())
        return 0.7 * ramp + 0.3 * _smooth_field(rng, size, (8, 16, 32))
    if kind == "stripes":
        period, sharpness = rng.uniform(10, 40), rng.uniform(0.5, 1.5)
        bend = rng.uniform(0, 30) * _smooth_field(rng, size, (2, 4))
        wave = np.clip(0.5 + sharpness * np.sin((across + bend) * (2 * math.pi / period)), 0, 1)
        return 0.75 * wave + 0.25 * _smooth_field(rng, size, (8, 16, 32))
    # grain: a field that changes fast in one direction and slowly in the other, turned by the angle
    big = int(size * 1.5)
    grid = rng.random((int(rng.integers(4, 9)), int(rng.integers(32, 97))), dtype=np.float32)
    field = cv2.resize(grid, (big, big), interpolation=cv2.INTER_CUBIC)
    turn = np.asarray(cv2.getRotationMatrix2D((big / 2, big / 2), math.degrees(angle), 1.0), np.float64)
    turn[:, 2] -= (big - size) / 2
    return np.clip(cv2.warpAffine(field, turn, (size, size), borderMode=cv2.BORDER_REFLECT), 0, 1)


def _background(rng: np.random.Generator, size: int) -> np.ndarray:
    """A texture between two colours of moderate distance; (size, size, 3) float32 in [0, 255]."""
    field = _texture(rng, size, TEXTURES[rng.integers(len(TEXTURES))])
    grey = rng.uniform(60, 195)
    base = grey + 0.5 * (rng.uniform(0, 255, 3) - 127.5)
    direction = rng.normal(size=3)
    step = direction * (rng.uniform(30, 100) / np.linalg.norm(direction))
    return np.clip(base + (field[..., None] - 0.5) * step, 0, 255).astype(np.float32)


def _draw_blobs(rng: np.random.Generator, image: np.ndarray) -> None:
    """Blend soft Gaussian spots, round or oblong, into the float image: no hard edge anywhere."""
    size = image.shape[0]
    ys, xs = np.mgrid[0:size, 0:size].astype(np.float32)
    for _ in range(rng.integers(1, MAX_BLOBS + 1)):
        centre_x, centre_y = rng.uniform(0, size, 2)
        sigma_u, sigma_v = rng.uniform(5, 14, 2)
        angle, strength = rng.uniform(0, math.pi), rng.uniform(0.5, 0.9)
        colour = rng.uniform(0, 255, 3).astype(np.float32)
        u = math.cos(angle) * (xs - centre_x) + math.sin(angle) * (ys - centre_y)
        v = math.cos(angle) * (ys - centre_y) - math.sin(angle) * (xs - centre_x)
        weight = np.float32(strength) * np.exp(-0.5 * ((u / sigma_u) ** 2 + (v / sigma_v) ** 2))
        image += weight[..., None].astype(np.float32) * (colour - image)


def _draw_strokes(rng: np.random.Generator, image: np.ndarray) -> None:
    """Draw open strokes (curves, arcs, zigzags) and, in some pictures, speckles into the uint8 image."""
    size = image.shape[0]
    for _ in range(rng.integers(1, MAX_STROKES + 1)):
        kind = rng.integers(3)
        start = rng.uniform(0, size, 2)
        if kind == 0:  # a cubic Bezier curve
            control = start + np.cumsum(np.vstack([np.zeros(2), rng.normal(scale=35, size=(3, 2))]), axis=0)
            t = np.linspace(0, 1, 25)[:, None]
            weights = np.hstack([(1 - t) ** 3, 3 * t * (1 - t) ** 2, 3 * t**2 * (1 - t), t**3])
            points = weights @ control
        elif kind == 1:  # part of a circle: a disc's outline, but open and not filled
            angles = rng.uniform(0, 2 * math.pi) + np.linspace(0, math.radians(rng.uniform(100, 290)), 25)
            points = start + rng.uniform(7, 22) * np.stack([np.cos(angles), np.sin(angles)], axis=1)
        else:  # one or two corners, as squares, triangles and crosses have them
            angles = np.cumsum(rng.uniform(math.radians(60), math.radians(130), int(rng.integers(2, 4))))
            angles = rng.uniform(0, 2 * math.pi) + angles * rng.choice([-1.0, 1.0])
            steps = rng.uniform(10, 36, (len(angles), 1)) * np.stack([np.cos(angles), np.sin(angles)], axis=1)
            points = start + np.vstack([np.zeros(2), np.cumsum(steps, axis=0)])
        colour = tuple(int(c) for c in rng.integers(0, 256, 3))
        fixed = np.round(points * 16).astype(np.int32)
        cv2.polylines(image, [fixed], False, colour, int(rng.integers(2, 5)), cv2.LINE_AA, shift=4)
    if rng.random() < SPECKLE_SHARE:
        colour = tuple(int(c) for c in rng.integers(0, 256, 3))
        for x, y, radius in rng.integers([0, 0, 1], [size, size, 3], (int(rng.integers(10, 41)), 3)).tolist():
            cv2.circle(image, (x, y), radius, colour, -1, cv2.LINE_AA)


def _outline(category: int, angle: float) -> np.ndarray:
    """The class's outline turned by ``angle`` radians, scaled so that the longer side of its box is 1; (V, 2)."""
    name = CLASSES[category]
    if name == "cross":
        a = CROSS_ARM
        x = np.array([1, 1, a, a, -a, -a, -1, -1, -a, -a, a, a])
        y = np.array([-a, a, a, 1, 1, a, a, -a, -a, -1, -1, -a])
    else:
        corners = {"disc": 40, "square": 4, "triangle": 3}[name]
        turns = np.arange(corners) * (2 * math.pi / corners)
        x, y = np.cos(turns), np.sin(turns)
    points = np.stack([math.cos(angle) * x - math.sin(angle) * y, math.sin(angle) * x + math.cos(angle) * y], axis=1)
    points -= points.min(axis=0)
    return points / points.max()


def _coverage(polygon: np.ndarray, size: int) -> np.ndarray:
    """Share of each pixel inside the polygon, (size, size) float32, counted on a grid of SUBPIXELS a side."""
    x0, y0 = np.floor(polygon.min(axis=0)).astype(int)
    x1, y1 = np.ceil(polygon.max(axis=0)).astype(int)
    fine = np.zeros(((y1 - y0) * SUBPIXELS, (x1 - x0) * SUBPIXELS), np.uint8)
    # cv2 puts integer coordinates at the centres of (sub)pixels, hence the half
    fixed = np.round(((polygon - [x0, y0]) * SUBPIXELS - 0.5) * 16).astype(np.int32)
    cv2.fillPoly(fine, [fixed], 1, shift=4)
    alpha = np.zeros((size, size), np.float32)
    alpha[y0:y1, x0:x1] = fine.reshape(y1 - y0, SUBPIXELS, x1 - x0, SUBPIXELS).mean(axis=(1, 3))
    return alpha


def _object_colour(rng: np.random.Generator, image: np.ndarray, polygon: np.ndarray) -> np.ndarray:
    """A uniformly drawn RGB colour that stands out from what the object will cover and border on."""
    x0, y0 = np.maximum(np.floor(polygon.min(axis=0)).astype(int) - CONTRAST_WINDOW, 0)
    x1, y1 = np.ceil(polygon.max(axis=0)).astype(int) + CONTRAST_WINDOW
    around = image[y0:y1, x0:x1].reshape(-1, 3)
    mean = around.mean(axis=0)
    spread = math.sqrt(float(((around - mean) ** 2).sum(axis=1).mean()))
    for colour in rng.uniform(0, 255, (32, 3)):
        if np.linalg.norm(colour - mean) >= MIN_CONTRAST + spread:
            return colour
    return np.where(mean < 127.5, 255.0, 0.0)  # the farthest colour there is


def _draw_object(rng: np.random.Generator, image: np.ndarray, taken: np.ndarray) -> SceneObject | None:
    """Draw one object where ``taken`` (bool map, updated) leaves room; None if 50 tries found no place for it."""
    size = image.shape[0]
    category = int(rng.integers(len(CLASSES)))
    outline = _outline(category, rng.uniform(0, 2 * math.pi)) * rng.uniform(*SIZE_RANGE)
    for _ in range(50):
        corner = rng.uniform(BORDER, size - BORDER - outline.max(axis=0))
        polygon = np.round(outline + corner, 2)
        alpha = _coverage(polygon, size)
        drawn = alpha > 0
        if not (drawn & taken).any():
            break
    else:
        return None
    taken |= cv2.dilate(drawn.astype(np.uint8), np.ones((2 * GAP + 1, 2 * GAP + 1), np.uint8)).astype(bool)
    colour = _object_colour(rng, image, polygon)
    angle, shade = rng.uniform(0, 2 * math.pi), rng.uniform(0, MAX_SHADE)
    ys, xs = np.nonzero(drawn)
    along = math.cos(angle) * xs + math.sin(angle) * ys
    along = 2 * (along - along.min()) / (along.max() - along.min()) - 1
    shaded = np.clip(colour * (1 + shade * along)[:, None], 0, 255)
    image[ys, xs] += alpha[ys, xs, None] * (shaded.astype(np.float32) - image[ys, xs])
    return SceneObject(category, polygon, alpha)


def render_scene(seed: int, split: str, index: int, size: int = 256) -> Scene:
    """
    Draw picture ``index`` (from 0) of a split: texture, blobs, strokes, objects, noise, in this order.

    Args:
        seed: 0 or more.
        split: one of ``SPLITS``.
        index: 0 or more.
        size: side of the square picture, pixels.
    """
    rng = np.random.default_rng([seed, SPLITS.index(split), index])
    canvas = _background(rng, size)
    _draw_blobs(rng, canvas)
    canvas = np.round(np.clip(canvas, 0, 255)).astype(np.uint8)
    _draw_strokes(rng, canvas)
    background = canvas.astype(np.float32)
    image = background.copy()
    empty = index % EMPTY_EVERY == EMPTY_EVERY - 1
    count = 0 if empty else int(rng.integers(1, MAX_OBJECTS + 1))
    taken = np.zeros((size, size), bool)
    drawn = [_draw_object(rng, image, taken) for _ in range(count)]
    noise = rng.standard_normal((size, size, 3), dtype=np.float32) * np.float32(rng.uniform(*SENSOR_NOISE))
    finish = [np.round(np.clip(x + noise, 0, 255)).astype(np.uint8) for x in (image, background)]
    return Scene(finish[0], finish[1], tuple(obj for obj in drawn if obj is not None))
