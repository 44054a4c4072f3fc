"""What is said of a comparison under way."""

import json

from detectron2.utils.events import EventStorage

from spt_d2.compare.matrix import Matrix
from spt_d2.compare.plan import DataSet, Plan, Run, Variant
from spt_d2.compare.progress import describe_result, estimate_left, progress_of
from spt_d2.compare.recorder import ProgressFile

from .synthetic import result

SHAPES, PLATES = DataSet("shapes"), DataSet("plates")
DENSE, TOPK = Variant("dense", "a.yaml"), Variant("topk", "b.yaml", keep_ratio_of="dense")


def under_way(tmp_path, done, of, seconds):
    (tmp_path / "progress.json").write_text(json.dumps({"done": done, "max_iter": of, "seconds": seconds}))
    return str(tmp_path)


def test_time_left_goes_by_finished_runs_on_the_same_data_and_by_what_runs_under_way_still_have_to_do(tmp_path):
    """Under way 30 iterations of 2 s, waiting one run of 100 s and two of 200 s; two at a time."""
    results = [result("shapes", session_seconds=100.0), result("plates", session_seconds=200.0)]
    folder = under_way(tmp_path, 10, 40, 2.0)
    waiting = [Run(SHAPES, DENSE, 1), Run(PLATES, DENSE, 1), Run(PLATES, DENSE, 2)]
    assert estimate_left(results, {folder: 25.0}, waiting, jobs=2) == (60 + 100 + 200 + 200) / 2
    # A run that has said nothing yet is taken for one like the others.
    assert estimate_left(results, {"nowhere": 50.0}, [], jobs=1) == 100.0
    # The longest run is not divided by the number of jobs.
    assert estimate_left(results, {folder: 25.0}, [Run(PLATES, DENSE, 1)], jobs=8) == 200.0


def test_time_left_is_not_known_before_anything_is(tmp_path):
    assert estimate_left([], {}, [Run(SHAPES, DENSE, 0)], jobs=1) is None
    # From the first run under way: 5 s so far and 60 s to go, then another one.
    folder = under_way(tmp_path, 10, 40, 2.0)
    assert estimate_left([], {folder: 5.0}, [Run(SHAPES, DENSE, 0)], jobs=1) == 60 + 65


def test_a_run_says_how_far_it_is(tmp_path):
    assert progress_of(str(tmp_path)) == "starting"
    assert progress_of(under_way(tmp_path, 1, 40, None)) == "iteration 1 of 40"
    assert progress_of(under_way(tmp_path, 10, 40, 0.5)) == "iteration 10 of 40, 0.50 s each"
    assert progress_of(under_way(tmp_path, 40, 40, 0.5)) == "iteration 40 of 40, evaluating"


def test_a_finished_run_says_what_came_out():
    assert describe_result(result(box=12.34)) == "box AP 12.3, 2.00 GMACs"
    said = describe_result(result(variant="spt", box=1.0, segm=2.0))
    assert said == "box AP 1.0, mask AP 2.0, keep ratio 0.25, 1.50 GMACs"
    assert describe_result({**result(), "box": {}}) == "box AP -, 2.00 GMACs"


def test_a_run_that_needs_anothers_keep_ratio_is_not_started_before_that_one_is_done():
    plan = Plan("p", (SHAPES,), (DENSE, TOPK), (0, 1), "dense")
    matrix = Matrix(plan, "out", "res", 2, 1, lambda line: None)
    waiting = list(plan.runs())
    free = [run.key for run in waiting if not matrix._waits(run, waiting)]
    assert free == [("shapes", "dense", 0), ("shapes", "dense", 1)]
    assert not matrix._waits(waiting[2], waiting[1:])
    assert matrix._waits(waiting[3], waiting[1:])


def test_a_run_that_goes_on_does_not_say_where_an_earlier_try_of_it_was(tmp_path):
    folder = under_way(tmp_path, 30, 40, 2.0)
    with EventStorage(19) as storage:
        progress = ProgressFile(folder, 40)
        assert progress_of(folder) == "starting"
        storage.put_scalar("time", 1.5)
        progress.write()
    assert progress_of(folder) == "iteration 20 of 40, 1.50 s each"
