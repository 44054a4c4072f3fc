"""The course of a training, read as Detectron2 writes it and drawn with and without selection figures."""

import json
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("detectron2", reason="detectron2 is not installed")

from detectron2.utils.events import EventStorage, JSONWriter
from matplotlib import pyplot as plt

from spt_d2.curves import Curve, draw_curves, read_metrics


def write_session(path: Path, start: int, stop: int, offset: float, period: int = 2) -> None:
    """Metrics of one session of a training, as its writer appends them: value = iteration + offset."""
    writer = JSONWriter(str(path))
    with EventStorage(start) as storage:
        for iteration in range(start, stop):
            storage.iter = iteration
            storage.put_scalar("total_loss", iteration + offset, smoothing_hint=False)
            if iteration % period == period - 1:
                storage.put_scalar("selection/stage3/keep_ratio", 0.5, smoothing_hint=False)
                writer.write()
    writer.close()


def write_lines(path: Path, *lines: str) -> Path:
    path.write_text("".join(f"{line}\n" for line in lines))
    return path


def test_metrics_are_read_by_name(tmp_path: Path) -> None:
    write_session(tmp_path / "metrics.json", 0, 6, 0.25)
    assert read_metrics(tmp_path / "metrics.json") == {
        "total_loss": ([1, 3, 5], [1.25, 3.25, 5.25]),
        "selection/stage3/keep_ratio": ([1, 3, 5], [0.5, 0.5, 0.5]),
    }


def test_of_iterations_that_a_resumed_training_repeated_the_later_record_counts(tmp_path: Path) -> None:
    path = tmp_path / "metrics.json"
    # Stopped after iteration 7, resumed from 4; a session with another period in between.
    write_session(path, 0, 8, 0.25)
    write_session(path, 4, 6, 0.5, period=1)
    write_session(path, 4, 10, 0.75)
    iterations, values = read_metrics(path)["total_loss"]
    assert iterations == [1, 3, 4, 5, 7, 9]
    assert values == [1.25, 3.25, 4.5, 5.75, 7.75, 9.75]
    assert all(type(value) is float for value in values)


@pytest.mark.parametrize("left", [1, 20, -2])
def test_a_last_line_cut_short_is_passed_over(tmp_path: Path, left: int) -> None:
    path = tmp_path / "metrics.json"
    write_session(path, 0, 6, 0.25)
    first, second, last = path.read_text().splitlines(keepends=True)
    path.write_text(first + second + last[:left])
    assert read_metrics(path)["total_loss"] == ([1, 3], [1.25, 3.25])


def test_values_that_are_no_finite_numbers_are_passed_over(tmp_path: Path) -> None:
    path = write_lines(
        tmp_path / "metrics.json",
        '{"iteration": 1, "total_loss": NaN, "loss_cls": 1.5, "bbox/APl": NaN}',
        '{"iteration": 2, "total_loss": 2, "loss_cls": Infinity, "note": "text", "list": [1]}',
        '{"iteration": 3, "total_loss": -Infinity, "loss_cls": null}',
        '{"total_loss": 9.0}',
    )
    assert read_metrics(path) == {"loss_cls": ([1], [1.5]), "total_loss": ([2], [2.0])}


def test_an_empty_file_has_no_curves_and_a_missing_one_is_an_error(tmp_path: Path) -> None:
    assert read_metrics(write_lines(tmp_path / "metrics.json")) == {}
    with pytest.raises(FileNotFoundError):
        read_metrics(tmp_path / "missing.json")


LOSSES: dict[str, Curve] = {
    "total_loss": ([0, 20, 40], [3.0, 2.0, 1.0]),
    "loss_cls": ([0, 20, 40], [1.0, 0.5, 0.25]),
    "loss_mask": ([0, 20, 40], [0.5, 0.25, 0.0]),
    "lr": ([0, 20, 40], [0.1, 0.1, 0.1]),
    "bbox/AP": ([40], [0.5]),
}


def selection(*figures: str) -> dict[str, Curve]:
    return {
        f"selection/{stage}/{figure}": ([0, 20, 40], [1.0, 0.5, value])
        for stage, value in (("stage3", 0.25), ("stage4", 0.75))
        for figure in figures
    }


def colors(picture: np.ndarray) -> int:
    """Pixels that are neither white nor grey nor black: lines, and their samples in the legend."""
    assert picture.ndim == 3 and picture.shape[2] == 3 and picture.dtype == np.uint8
    return int((np.ptp(picture.astype(int), axis=2) > 40).sum())


def panels(picture: np.ndarray) -> list[np.ndarray]:
    """Losses, then the three figures."""
    height, width = picture.shape[0] // 2, picture.shape[1] // 2
    return [picture[y : y + height, x : x + width] for y in (0, height) for x in (0, width)]


def test_a_dense_run_has_one_panel_with_its_losses() -> None:
    picture = draw_curves(LOSSES)
    whole = draw_curves({**LOSSES, **selection("keep_ratio", "retention", "density")})
    assert colors(picture) > 500
    assert whole.shape == (2 * picture.shape[0], 2 * picture.shape[1], 3)


def test_every_figure_has_a_panel_and_every_stage_a_line_in_it() -> None:
    figures = ("keep_ratio", "retention", "density")
    pictures = panels(draw_curves({**LOSSES, **selection(*figures)}))
    assert all(colors(picture) > 500 for picture in pictures)
    alone = {name: curve for name, curve in selection(*figures).items() if "stage3" in name}
    for one, both in zip(panels(draw_curves({**LOSSES, **alone}))[1:], pictures[1:]):
        assert 0 < colors(one) < colors(both)


def test_a_figure_that_is_not_known_leaves_its_place_white() -> None:
    # Without labels there is neither retention nor density.
    losses, keep_ratio, *others = panels(draw_curves({**LOSSES, **selection("keep_ratio")}))
    assert colors(losses) > 500 and colors(keep_ratio) > 500
    # But for the label of the axis above.
    assert all((picture[40:] == 255).all() for picture in others)


def test_every_loss_of_training_is_drawn_and_nothing_else() -> None:
    whole = colors(draw_curves(LOSSES))
    for name in ("total_loss", "loss_cls", "loss_mask"):
        fewer = {key: curve for key, curve in LOSSES.items() if key != name}
        assert colors(draw_curves(fewer)) < whole, name
    others = {**LOSSES, "validation_loss": ([0, 20], [1.0, 2.0]), "time": ([0, 20], [1.0, 2.0])}
    np.testing.assert_array_equal(draw_curves(others), draw_curves(LOSSES))


def test_a_run_of_one_record_can_be_seen() -> None:
    one = draw_curves({"total_loss": ([20], [1.5])})
    nothing = draw_curves({})
    assert colors(nothing) == 0
    # The point itself, in the middle and well below its sample in the legend.
    height, width = one.shape[:2]
    assert colors(one[height // 3 :, width // 3 : 2 * width // 3]) > 5


def test_a_title_stands_above_the_curves() -> None:
    titled, plain = draw_curves(LOSSES, "nano, seed 0"), draw_curves(LOSSES)
    assert titled.shape == plain.shape
    # The upper edge of the axes gives way to it.
    titled_edge, plain_edge = (int(((picture < 100).mean(axis=(1, 2)) > 0.8).argmax()) for picture in (titled, plain))
    assert titled_edge > plain_edge + 10 > 10


def test_pictures_leave_no_figure_open_and_are_the_callers_to_change() -> None:
    picture = draw_curves(LOSSES)
    picture[:] = 0
    assert colors(draw_curves(LOSSES)) > 500
    assert plt.get_fignums() == []


def test_curves_of_a_file_can_be_drawn(tmp_path: Path) -> None:
    write_session(tmp_path / "metrics.json", 0, 6, 0.25)
    record = json.loads((tmp_path / "metrics.json").read_text().splitlines()[-1])
    assert record["iteration"] == 5
    losses, keep_ratio, *_ = panels(draw_curves(read_metrics(tmp_path / "metrics.json")))
    assert colors(losses) > 100 and colors(keep_ratio) > 100
