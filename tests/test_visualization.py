"""Pictures of selections, detections and annotations: counts against a slow loop, pixels where they should be."""

import itertools
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

pytest.importorskip("detectron2", reason="detectron2 is not installed")

from detectron2.data import Metadata
from detectron2.structures import Boxes, BoxMode, Instances
from detectron2.utils.visualizer import VisImage, Visualizer

from spt_d2.ops.selection import ImageBlockSelection, ImageSelection
from spt_d2.visualization import (
    draw_ground_truth,
    draw_keep_mask,
    draw_output,
    draw_predictions,
    draw_selection,
    heat_legend,
    picture_grid,
    save_picture,
    selection_heat,
)

H, W = 61, 83
WHITE, GREY = (255, 255, 255), (128, 128, 128)


def block(stage: int, number: int | None, keep: torch.Tensor | None) -> ImageBlockSelection:
    score = torch.zeros(1, 1) if keep is None else torch.zeros(keep.shape)
    return ImageBlockSelection(stage, number, 2 ** (stage + 1), score, keep, 0, 0.0, 0.0)


def random_selection(size: tuple[int, int]) -> ImageSelection:
    """An extra gate at stage 2, three blocks of stage 3, two of stage 4; each keeps its first token, no other all."""
    blocks = [block(2, None, None)]
    for stage, number in ((3, 0), (3, 1), (3, 2), (4, 0), (4, 1)):
        stride = 2 ** (stage + 1)
        keep = torch.rand(-(-size[0] // stride), -(-size[1] // stride)) < 0.5
        keep[0, 0], keep[-1, -1] = True, False
        blocks.append(block(stage, number, keep))
    return ImageSelection(blocks, (-(-size[0] // 32) * 32, -(-size[1] // 32) * 32))


def uniform_selection(size: tuple[int, int], kept: int, blocks: int) -> ImageSelection:
    """Blocks of stage 3: the first ``kept`` keep everything, the others nothing."""
    grid = (-(-size[0] // 16), -(-size[1] // 16))
    return ImageSelection([block(3, i, torch.full(grid, i < kept)) for i in range(blocks)], size)


def noise(height: int = H, width: int = W) -> np.ndarray:
    return np.random.randint(0, 256, (height, width, 3), dtype=np.uint8)


def assert_is_picture(picture: np.ndarray, height: int, width: int) -> None:
    assert picture.shape == (height, width, 3) and picture.dtype == np.uint8


# --- heat


@pytest.mark.parametrize("size", [(64, 96), (61, 83), (33, 64), (16, 17), (1, 1)])
@pytest.mark.parametrize("stage, blocks", [(None, 5), (3, 3), (4, 2)])
def test_heat_counts_the_blocks_that_kept_the_token_under_each_pixel(
    size: tuple[int, int], stage: int | None, blocks: int
) -> None:
    selection = random_selection(size)
    heat, counted = selection_heat(selection, size, stage)
    expected = np.zeros(size, dtype=np.int64)
    for y, x in itertools.product(*map(range, size)):
        for one in selection.blocks:
            if one.keep_mask is not None and stage in (None, one.stage):
                expected[y, x] += bool(one.keep_mask[y // one.stride, x // one.stride])
    assert counted == blocks
    assert heat.dtype == np.int64
    np.testing.assert_array_equal(heat, expected)


def test_a_dense_backbone_has_no_heat() -> None:
    heat, blocks = selection_heat(ImageSelection([], (64, 96)), (H, W))
    assert blocks == 0 and heat.shape == (H, W) and not heat.any()


@pytest.mark.parametrize("stage", [1, 2])
def test_a_stage_that_selects_nothing_is_an_error_that_names_those_that_do(stage: int) -> None:
    with pytest.raises(ValueError, match=rf"tokens: \[3, 4\]. Got {stage}"):
        selection_heat(random_selection((H, W)), (H, W), stage)


@pytest.mark.parametrize("size", [(H, W + 32), (H - 32, W), (2 * H, 2 * W)])
def test_an_input_size_of_another_image_is_an_error_with_a_hint(size: tuple[int, int]) -> None:
    selection = random_selection((H, W))
    with pytest.raises(ValueError, match=r"(?s)keep_mask.shape: \(4, 6\).*HINT: pass input_size="):
        selection_heat(selection, size)
    # By default it is the picture's.
    with pytest.raises(ValueError, match="HINT"):
        draw_selection(noise(*size), selection)
    with pytest.raises(ValueError, match="HINT"):
        draw_keep_mask(noise(*size), selection, 3)


# --- the heat map


def test_a_heat_map_shows_counts_by_colours_from_blue_to_red_over_a_grey_picture() -> None:
    image, selection = noise(), random_selection((H, W))
    heat, blocks = selection_heat(selection, (H, W))
    assert len(np.unique(heat)) == blocks + 1
    # At full opacity nothing of the picture is left: as many colours as counts.
    opaque = draw_selection(image, selection, alpha=1.0)
    assert_is_picture(opaque, H, W)
    colors = [np.unique(opaque[heat == count], axis=0) for count in range(blocks + 1)]
    assert [len(found) for found in colors] == [1] * (blocks + 1)
    assert len(np.unique(np.concatenate(colors), axis=0)) == blocks + 1
    redness = [int(found[0, 0]) - int(found[0, 2]) for found in colors]
    assert redness == sorted(redness) and redness[0] < -100 and redness[-1] > 100
    np.testing.assert_array_equal(opaque, draw_selection(noise(), selection, alpha=1.0))
    # At none, the picture without its colours.
    grey = draw_selection(image, selection, alpha=0.0)
    assert (grey == grey[..., :1]).all()
    luminance = image @ np.array([0.299, 0.587, 0.114])
    np.testing.assert_allclose(grey[..., 0], luminance, atol=1)
    np.testing.assert_allclose(draw_selection(image, selection), opaque / 2 + grey / 2, atol=1)


def test_a_heat_map_of_one_stage_leaves_the_others_out() -> None:
    image, selection = noise(), random_selection((H, W))
    alone = ImageSelection([one for one in selection.blocks if one.stage == 4], selection.tensor_size)
    drawn = draw_selection(image, selection, stage=4)
    np.testing.assert_array_equal(drawn, draw_selection(image, alone))
    assert (drawn != draw_selection(image, selection)).any()


def test_a_heat_map_is_scaled_to_the_picture() -> None:
    selection = random_selection((H, W))
    small = draw_selection(noise(), selection, alpha=1.0)
    large = draw_selection(noise(2 * H, 3 * W), selection, (H, W), alpha=1.0)
    np.testing.assert_array_equal(large, small.repeat(2, axis=0).repeat(3, axis=1))


def test_a_heat_map_of_a_dense_backbone_is_as_cold_as_one_that_kept_nothing() -> None:
    dense, nothing = ImageSelection([], (H, W)), uniform_selection((H, W), kept=0, blocks=3)
    image = noise()
    np.testing.assert_array_equal(draw_selection(image, dense), draw_selection(image, nothing))


def test_a_legend_stands_below_the_picture_that_it_explains() -> None:
    image, selection = noise(), random_selection((H, W))
    plain, explained = draw_selection(image, selection), draw_selection(image, selection, legend=True)
    legend = heat_legend(W, 5)
    np.testing.assert_array_equal(explained, np.vstack((plain, legend)))


@pytest.mark.parametrize("blocks", [1, 4, 12])
def test_a_legend_shows_the_colour_of_each_count_from_left_to_right(blocks: int) -> None:
    row = heat_legend(640, blocks)[15]
    places = []
    for count in range(blocks + 1):
        color = draw_selection(noise(16, 16), uniform_selection((16, 16), count, blocks), alpha=1.0)[0, 0]
        (found,) = np.nonzero((row == color).all(axis=1))
        assert len(found) >= 640 / 2 / (blocks + 1)
        assert (np.diff(found) == 1).all()
        places.append(found[0])
    assert places == sorted(places)


@pytest.mark.parametrize("width, height", [(1, 30), (40, 30), (299, 12), (300, 60), (640, 1)])
@pytest.mark.parametrize("blocks", [0, 1, 12, 100])
def test_a_legend_has_the_size_asked_for(width: int, height: int, blocks: int) -> None:
    assert_is_picture(heat_legend(width, blocks, height), height, width)


# --- the keep mask


@pytest.mark.parametrize("stage, blocks", [(3, 3), (4, 2)])
def test_a_keep_mask_darkens_the_pixels_of_dropped_tokens_and_no_others(stage: int, blocks: int) -> None:
    image, selection = noise(), random_selection((H, W))
    of_stage = [one for one in selection.blocks if one.stage == stage]
    pictures = [draw_keep_mask(image, selection, stage, block=i) for i in range(blocks)]
    for one, picture in zip(of_stage, pictures):
        assert_is_picture(picture, H, W)
        for y, x in itertools.product(range(H), range(W)):
            kept = bool(one.keep_mask[y // one.stride, x // one.stride])
            assert picture[y, x].tolist() == (image[y, x] if kept else image[y, x] // 4).tolist()
    assert not np.array_equal(pictures[0], pictures[-1])
    np.testing.assert_array_equal(draw_keep_mask(image, selection, stage), pictures[-1])


def test_a_keep_mask_is_scaled_to_the_picture() -> None:
    selection, white = random_selection((H, W)), np.full((H, W, 3), 255, np.uint8)
    small = draw_keep_mask(white, selection, 3)
    large = draw_keep_mask(white.repeat(2, axis=0).repeat(3, axis=1), selection, 3, (H, W))
    np.testing.assert_array_equal(large, small.repeat(2, axis=0).repeat(3, axis=1))


def test_a_keep_mask_of_a_block_or_stage_that_is_not_there_is_an_error() -> None:
    image, selection = noise(), random_selection((H, W))
    for number in (3, -4):
        with pytest.raises(IndexError, match=rf"block=\) expects one of 3 blocks of stage 3. Got {number}"):
            draw_keep_mask(image, selection, 3, block=number)
    with pytest.raises(ValueError, match=r"\[3, 4\]. Got 2"):
        draw_keep_mask(image, selection, 2)


# --- outputs


@pytest.mark.parametrize("kept_by", [None, 0, 5], ids=["stock", "dense", "selecting"])
def test_an_output_is_drawn_with_its_selection_where_there_is_one(kept_by: int | None) -> None:
    image, found, selection = noise(HIGH, WIDE), instances(), random_selection((HIGH, WIDE))
    if kept_by == 0:
        selection = ImageSelection(selection.blocks[:1], selection.tensor_size)
    output = {"instances": found} if kept_by is None else {"instances": found, "selection": selection}
    pictures, blocks = draw_output(image, output, (HIGH, WIDE), score_threshold=0.1, scale=0.5)
    expected = [draw_predictions(image, found, score_threshold=0.1, scale=0.5)]
    if kept_by:
        expected.append(draw_selection(image, selection, (HIGH, WIDE)))
    assert blocks == (kept_by or 0) and len(pictures) == len(expected)
    for picture, wanted in zip(pictures, expected):
        np.testing.assert_array_equal(picture, wanted)


# --- predictions

# Large enough for labels to stand below their boxes.
HIGH, WIDE = 240, 320
FIRST, SECOND = (30, 60, 120, 150), (200, 90, 300, 200)  # x1, y1, x2, y2
BORDER = 10  # between a box and its mask
LABEL = 16  # height of a label, at any scale
Box = tuple[int, int, int, int]


def ground(value: int = 100) -> np.ndarray:
    return np.full((HIGH, WIDE, 3), value, np.uint8)


def instances(scores: tuple[float, float] = (0.9, 0.8), classes: tuple[int, int] = (0, 1), masks: bool = True):
    """Two objects far from each other."""
    found = Instances((HIGH, WIDE))
    found.pred_boxes = Boxes(torch.tensor([FIRST, SECOND], dtype=torch.float32))
    found.scores, found.pred_classes = torch.tensor(scores), torch.tensor(classes)
    if masks:
        found.pred_masks = torch.zeros(2, HIGH, WIDE, dtype=torch.bool)
        for i, box in enumerate((FIRST, SECOND)):
            found.pred_masks[i][inside(box, BORDER)] = True
    return found


def inside(box: Box, margin: int) -> tuple[slice, slice]:
    x1, y1, x2, y2 = box
    return slice(y1 + margin, y2 - margin), slice(x1 + margin, x2 - margin)


def changed(picture: np.ndarray, image: np.ndarray) -> np.ndarray:
    """(h, w) bool: where the two differ."""
    assert picture.shape == image.shape and picture.dtype == np.uint8
    return (picture != image).any(axis=2)


def assert_drawn(difference: np.ndarray, masks: bool, scale: float = 1.0) -> None:
    """Both boxes along all their edges, both masks or neither, a label below each box, and nothing else."""
    allowed = np.zeros_like(difference)
    for box in (FIRST, SECOND):
        x1, y1, x2, y2 = (round(side * scale) for side in box)
        line = 3
        for edge in (np.s_[y1:y2, x1], np.s_[y1:y2, x2], np.s_[y1, x1:x2], np.s_[y2, x1:x2]):
            assert difference[edge].all()
        border = round(BORDER * scale)
        within = border + line
        mask = difference[y1 + within : y2 - within, x1 + within : x2 - within]
        assert mask.all() if masks else not mask.any()
        between = difference[y2 - border + line : y2 - line, x1 + within : x2 - within]
        assert between.size and not between.any()
        assert difference[y2 + line : y2 + LABEL, x1:x2].any()
        allowed[y1 - line : y2 + LABEL, x1 - line : x2 + line] = True
    assert not (difference & ~allowed).any()


@pytest.mark.parametrize("scale", [0.75, 1.0, 1.5, 2.3])
@pytest.mark.parametrize("masks", [False, True])
def test_predictions_are_drawn_on_their_boxes_and_masks_and_nowhere_else(masks: bool, scale: float) -> None:
    picture = draw_predictions(ground(), instances(masks=masks), scale=scale)
    assert_is_picture(picture, round(HIGH * scale), round(WIDE * scale))
    assert_drawn((picture != 100).any(axis=2), masks, scale)


def test_what_scores_below_the_threshold_is_not_drawn() -> None:
    image, found = noise(HIGH, WIDE), instances((0.5, 0.3))
    picture = draw_predictions(image, found)
    np.testing.assert_array_equal(picture, draw_predictions(image, found[:1]))
    assert changed(picture, image)[:, :160].any() and not changed(picture, image)[:, 160:].any()
    both = draw_predictions(image, found, score_threshold=0.25)
    assert changed(both, image)[:, 160:].any()
    assert len(found) == 2, "the caller's instances stay as they are"


@pytest.mark.parametrize("scale", [0.5, 1.0, 1.7])
@pytest.mark.parametrize("masks", [False, True])
def test_where_nothing_was_found_the_picture_is_only_scaled(masks: bool, scale: float) -> None:
    image = noise(HIGH, WIDE)
    size = (round(WIDE * scale), round(HIGH * scale))
    expected = cv2.resize(image, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC)
    found = instances(masks=masks)
    for picture in (
        draw_predictions(image, found, score_threshold=0.95, scale=scale),
        draw_predictions(image, found[:0], scale=scale),
    ):
        np.testing.assert_array_equal(picture, expected)


@pytest.mark.parametrize("scale", [0.5, 1.5, 2.0, 3.3])
def test_a_scaled_picture_has_the_scaled_size_to_the_nearest_pixel(scale: float) -> None:
    assert_is_picture(draw_ground_truth(noise(61, 83), {}, scale=scale), round(61 * scale), round(83 * scale))


def test_an_object_whose_mask_is_empty_is_drawn_as_its_box() -> None:
    found = instances()
    found.pred_masks[:] = False
    assert_drawn(changed(draw_predictions(ground(), found), ground()), masks=False)


def test_a_class_has_the_same_colour_in_every_picture_and_its_neighbour_another() -> None:
    colors = []
    for classes in ((0, 0), (1, 0), (0, 1), (8, 9)):
        picture = draw_predictions(ground(), instances(classes=classes))
        colors.append(tuple(tuple(picture[inside(box, 20)][-1, -1].tolist()) for box in (FIRST, SECOND)))
    (zero, _), (one, _) = colors[:2]
    assert zero != one
    # Eight colours, then from the beginning.
    assert colors == [(zero, zero), (one, zero), (zero, one), (zero, one)]


@pytest.mark.parametrize("name", ["US$ x^_$", "$x$", "a$", r"\$a$", "$$"])
def test_dollar_signs_in_a_name_begin_no_formula(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What matplotlib makes of the label that it is given: plain text, the name as it is."""
    drawn = []
    get_output = Visualizer.get_output

    def remember(visualizer: Visualizer) -> VisImage:
        drawn.extend(visualizer.output.ax.texts)
        return get_output(visualizer)

    monkeypatch.setattr(Visualizer, "get_output", remember)
    assert_is_picture(
        draw_predictions(noise(HIGH, WIDE), instances(), Metadata(thing_classes=[name, name])), HIGH, WIDE
    )
    assert len(drawn) == 2
    for text in drawn:
        shown, is_formula = text._preprocess_math(text.get_text())
        assert shown.startswith(f"{name} ") and not is_formula


def test_labels_name_a_class_where_its_name_is_known() -> None:
    numbered, unnamed, named, half_named = (
        draw_predictions(ground(), instances(), metadata)
        for metadata in (None, Metadata(), Metadata(thing_classes=["disc", "cross"]), Metadata(thing_classes=["disc"]))
    )
    np.testing.assert_array_equal(unnamed, numbered)
    assert changed(named, numbered)[:, :160].any() and changed(named, numbered)[:, 160:].any()
    # A class beyond the names is shown by its index.
    np.testing.assert_array_equal(half_named[:, :160], named[:, :160])
    np.testing.assert_array_equal(half_named[:, 160:], numbered[:, 160:])


# --- ground truth


def annotation(box: Box, **more: object) -> dict:
    x1, y1, x2, y2 = box
    return {"bbox": [x1, y1, x2 - x1, y2 - y1], "bbox_mode": BoxMode.XYWH_ABS, "category_id": 0, **more}


def polygon(box: Box) -> list[list[float]]:
    x1, y1, x2, y2 = (float(a + b) for a, b in zip(box, (BORDER, BORDER, -BORDER, -BORDER)))
    return [[x1, y1, x2, y1, x2, y2, x1, y2]]


def run_length(box: Box) -> dict:
    mask = np.zeros((HIGH, WIDE), np.uint8)
    mask[inside(box, BORDER)] = 1
    changes = np.flatnonzero(np.diff(np.concatenate([[0], mask.ravel(order="F"), [2]])))
    return {"size": [HIGH, WIDE], "counts": np.diff(changes, prepend=0).tolist()}


@pytest.mark.parametrize("scale", [0.75, 1.0, 2.3])
@pytest.mark.parametrize("encode", [polygon, run_length])
def test_annotations_are_drawn_on_their_boxes_and_masks_and_nowhere_else(encode, scale: float) -> None:
    record = {"annotations": [annotation(box, segmentation=encode(box)) for box in (FIRST, SECOND)]}
    picture = draw_ground_truth(ground(), record, scale=scale)
    assert_is_picture(picture, round(HIGH * scale), round(WIDE * scale))
    assert_drawn((picture != 100).any(axis=2), True, scale)


@pytest.mark.parametrize("without", [{}, {"segmentation": []}])
def test_where_one_annotation_has_no_mask_only_boxes_are_drawn(without: dict) -> None:
    record = {"annotations": [annotation(FIRST, segmentation=polygon(FIRST)), annotation(SECOND, **without)]}
    assert_drawn(changed(draw_ground_truth(ground(), record), ground()), masks=False)


def test_boxes_of_annotations_are_read_in_either_mode() -> None:
    corners = [{**annotation(box), "bbox": list(box), "bbox_mode": BoxMode.XYXY_ABS} for box in (FIRST, SECOND)]
    assert_drawn(changed(draw_ground_truth(ground(), {"annotations": corners}), ground()), masks=False)


def test_a_crowd_is_labelled_as_one_and_a_class_by_its_name() -> None:
    numbered, crowd, named = (
        draw_ground_truth(ground(), {"annotations": [annotation(FIRST, iscrowd=crowd)]}, metadata)
        for crowd, metadata in ((0, None), (1, None), (0, Metadata(thing_classes=["disc"])))
    )
    for other in (crowd, named):
        difference = changed(other, numbered)
        x1, _, x2, y2 = FIRST
        label = difference[y2 - 2 : y2 + LABEL, x1 - 2 : x2]
        assert label.any() and label.sum() == difference.sum()


@pytest.mark.parametrize(
    "box, rows, columns",
    [
        ((30, 60, 90, 238), slice(44, 60), slice(28, 90)),
        ((260, 100, 319, 150), slice(148, 166), slice(220, 320)),
        ((2, 1, 40, 239), slice(0, 18), slice(0, 42)),
    ],
    ids=["lower_border", "right_border", "high_as_the_picture"],
)
def test_a_label_stays_inside_the_picture(box: Box, rows: slice, columns: slice) -> None:
    """The same box with another label differs where the label is: whole, and in reach of the box."""
    pictures = [
        draw_ground_truth(ground(), {"annotations": [annotation(box)]}, Metadata(thing_classes=[name, name]))
        for name in ("iiiiiiii", "lllllllm")
    ]
    difference = changed(*pictures)
    assert difference[rows, columns].any() and difference[rows, columns].sum() == difference.sum()
    # Not cut off: the last letter is there, some columns before the border.
    assert np.nonzero(difference.any(axis=0))[0].max() < WIDE - 1


@pytest.mark.parametrize("record", [{}, {"annotations": []}])
def test_a_picture_without_annotations_stays_as_it_is(record: dict) -> None:
    image = noise()
    np.testing.assert_array_equal(draw_ground_truth(image, record), image)


# --- the grid


def plain(color: tuple[int, int, int], height: int = 40, width: int = 60) -> np.ndarray:
    return np.full((height, width, 3), color, np.uint8)


def place(grid: np.ndarray, color: tuple[int, int, int]) -> tuple[int, int, int, int]:
    """x1, y1, x2, y2 of a colour, which must fill that rectangle."""
    ys, xs = np.nonzero((grid == color).all(axis=2))
    x1, y1, x2, y2 = int(xs.min()), int(ys.min()), int(xs.max()) + 1, int(ys.max()) + 1
    assert len(xs) == (x2 - x1) * (y2 - y1)
    return x1, y1, x2, y2


COLORS = [[(250 - 40 * row, 10 + 100 * column, 90) for column in range(2)] for row in range(5)]


@pytest.mark.parametrize("rows, groups", [(1, 1), (4, 1), (4, 2), (5, 2), (3, 3), (2, 4)])
def test_a_grid_places_rows_below_each_other_and_groups_side_by_side(rows: int, groups: int) -> None:
    grid = picture_grid([[plain(color) for color in row] for row in COLORS[:rows]], ["left", "right"], groups=groups)
    places = [[place(grid, color) for color in row] for row in COLORS[:rows]]
    lines = -(-rows // groups)
    for i, row in enumerate(places):
        for x1, y1, x2, y2 in row:
            assert (x2 - x1, y2 - y1) == (60, 40)
        assert row[0][2] < row[1][0] and row[0][1] == row[1][1]
        group, line = divmod(i, lines)
        # Rows of a group share their columns; lines of all groups share their height.
        assert [x1 for x1, *_ in row] == [x1 for x1, *_ in places[group * lines]]
        assert row[0][1] == places[line][0][1]
        if line:
            assert row[0][1] > places[i - 1][0][3]
        if group:
            assert row[0][0] > places[(group - 1) * lines][1][2]
    # Titles, in every group, above the first line.
    top = places[0][0][1]
    for group in range(-(-rows // lines)):
        for x1, _, x2, _ in places[group * lines]:
            title = grid[:top, x1:x2]
            assert (title != WHITE).any() and (title[:, :10] == WHITE).all(), "a title stands in the middle"


def test_a_picture_of_another_shape_is_fitted_at_its_proportions_on_grey() -> None:
    wide, tall, small = plain((200, 0, 0), 40, 120), plain((0, 200, 0), 80, 30), plain((0, 0, 200), 20, 30)
    grid = picture_grid([[plain((9, 9, 9)), wide, tall, small]], ["", "", "", ""])
    frame = place(grid, (9, 9, 9))
    step = (place(grid, (200, 0, 0))[0] - frame[0], 0)
    assert place(grid, (200, 0, 0)) == (frame[0] + step[0], frame[1] + 10, frame[2] + step[0], frame[3] - 10)
    x1, y1, x2, y2 = place(grid, (0, 200, 0))
    assert (x2 - x1, y2 - y1) == (15, 40)
    x1, y1, x2, y2 = place(grid, (0, 0, 200))
    assert (x2 - x1, y2 - y1) == (60, 40)
    grey = (grid == GREY).all(axis=2).sum()
    assert grey == 60 * 20 + 45 * 40


@pytest.mark.parametrize("width", [30, 100])
def test_a_legend_stands_below_the_grid_in_the_middle(width: int) -> None:
    rows = [[plain((9, 9, 9)), plain((90, 9, 9))]]
    without = picture_grid(rows, ["a", "b"])
    grid = picture_grid(rows, ["a", "b"], legend=plain((0, 0, 200), 12, width))
    np.testing.assert_array_equal(grid[: len(without)], without)
    x1, y1, x2, y2 = place(grid, (0, 0, 200))
    assert (x2 - x1, y2 - y1) == (width, 12)
    assert y1 > len(without) - 1 and y2 == len(grid)
    assert abs(x1 - (grid.shape[1] - x2)) <= 1


@pytest.mark.parametrize("counts", [[], [1], [2, 3], [2, 0]])
def test_a_grid_of_no_rows_or_of_unequal_ones_is_an_error(counts: list[int]) -> None:
    with pytest.raises(ValueError, match=r"picture_grid\(rows=\) expects rows of 2 pictures each") as error:
        picture_grid([[plain(WHITE)] * count for count in counts], ["a", "b"])
    assert f"Got {counts}." in str(error.value)


def test_a_picture_is_saved_as_it_is_into_a_folder_made_for_it(tmp_path: Path) -> None:
    picture = noise()
    save_picture(tmp_path / "new" / "folder" / "picture.png", picture)
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "new" / "folder" / "picture.png")), picture)
