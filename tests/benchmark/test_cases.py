"""Rows of cases: ratios to the fastest peer among those that compare, in what a run does once."""

import pytest
import torch

pytest.importorskip("detectron2", reason="detectron2 is not installed")

from spt_d2.benchmark import cases as cases_module
from spt_d2.benchmark.backbone import backbone_cases, exponents
from spt_d2.benchmark.cases import Case, time_cases
from spt_d2.benchmark.record import Row
from spt_d2.benchmark.timing import Entry
from tests.benchmark.nano import NANO

CPU = torch.device("cpu")


def case(name: str, **values) -> Case:
    return Case(
        Entry(lambda: None), **{"name": name, "mode": "inference", "batch": 1, "image_size": (64, 64), **values}
    )


def test_ratios_are_to_the_peer_of_the_smallest_median_of_the_same_kind(monkeypatch):
    cases = [
        case("slow", is_peer=True),
        case("fast", is_peer=True),
        case("ours"),
        case("ours", batch=2),
        case("fast", batch=2, is_peer=True, repeats=10),
        case("alone", mode="training"),
        case("other", group="else"),
    ]
    seconds = [[3.0, 3.0, 1.0], [2.0, 2.0, 2.0], [1.0, 2.0, 4.0], [8.0] * 3, [40.0] * 3, [1.0] * 3, [1.0] * 3]
    monkeypatch.setattr(cases_module, "interleave", lambda entries, device, rounds, warmup: seconds)
    rows = time_cases(cases, CPU, rounds=3, memory=False)
    # Of the pairs 2/1, 2/2 and 2/4.
    assert [row.ratio_to_fastest_peer for row in rows] == [pytest.approx(2 / 3), 1.0, 1.0, 0.5, 1.0, None, None]
    assert rows[2].ratio_quartiles == (0.75, 1.5)
    assert (rows[2].median_ms, rows[2].spread_ms) == (2000.0, 1500.0)
    assert rows[4].median_ms == 4000.0
    assert rows[0].peak_mb is None


def test_memory_is_measured_in_a_run_of_its_own(device):
    def allocate():
        return torch.empty(3 * 2**20, dtype=torch.uint8, device=device)

    prepared = []
    given = Case(Entry(allocate, lambda: prepared.append(1)), "big", "inference", 1, (64, 64))
    (row,) = time_cases([given], device, rounds=2, warmup=1)
    assert row.peak_mb == 3.0 and row.device == device.type
    assert len(prepared) == 4


@pytest.mark.parametrize("training", (False, True))
def test_backbones_come_beside_their_peers_for_every_setting(training, device):
    sizes, batches = [(64, 64), (64, 96)], [1, 2]
    cases = backbone_cases(
        ["swin_t", "spt_t"],
        ["detectron2_swin_t"],
        keep_ratios=[0.25, {3: 0.25, 4: 0.5}],
        batches=batches,
        image_sizes=sizes,
        device=device,
        dtype="bfloat16",
        training=training,
        overrides=NANO,
    )
    assert [(c.image_size, c.batch, c.name, c.keep_ratio, c.is_peer) for c in cases] == [
        (size, batch, name, keep_ratio, name == "detectron2_swin_t")
        for size in sizes
        for batch in batches
        for name, keep_ratio in (
            ("detectron2_swin_t", None), ("swin_t", None), ("spt_t", 0.25), ("spt_t", {3: 0.25, 4: 0.5}),
        )
    ]  # fmt: skip
    rows = time_cases(cases, device, rounds=1)
    assert {(row.mode, row.dtype) for row in rows} == {("training" if training else "inference", "bfloat16")}
    assert all(row.peak_mb > 0 and row.ratio_to_fastest_peer > 0 for row in rows)
    assert rows[3].keep_ratio == {"stage3": 0.25, "stage4": 0.5}


def test_a_share_that_cannot_be_kept_is_an_error_before_anything_is_timed():
    with pytest.raises(ValueError, match="Stage 3 cannot keep 0.5"):
        backbone_cases(
            ["spt_t"], [], keep_ratios=[{3: 0.5, 4: 0.25}], batches=[1], image_sizes=[(64, 64)], device=CPU,
            overrides=NANO,
        )  # fmt: skip


def test_exponents_are_of_power_laws_in_pixels_and_in_images():
    rows = [
        Row(name, keep, "cpu", "float32", "inference", batch, (side, 2 * side), power(side * side, batch), 0.0)
        for name, keep, power in (
            ("swin_t", None, lambda pixels, batch: pixels**1.1 * batch**0.9),
            ("spt_t", 0.23, lambda pixels, batch: 5 * pixels * batch),
        )
        for side in (512, 1024, 2048)
        for batch in (1, 4)
    ]
    notes = exponents(rows)
    assert "swin_t, inference, batch 4: time grows with pixels^1.10" in notes
    assert "spt_t at keep 0.23, inference, batch 1: time grows with pixels^1.00" in notes
    assert "swin_t, inference, 512x1024: time grows with batch^0.90" in notes
    assert len(notes) == 2 * (2 + 3)
    assert exponents(rows[:1]) == []
