"""Times are taken in turns, the warm-up left out, and ratios within rounds."""

import gc
import itertools

import pytest
import torch

from spt_d2.benchmark.timing import Entry, Ratio, interleave


def test_every_round_runs_every_entry_and_every_second_one_backwards():
    calls, prepared = [], []
    entries = [Entry(lambda n=n: calls.append(n), lambda n=n: prepared.append(n)) for n in "ABC"]
    interleave(entries, torch.device("cpu"), rounds=2, warmup=1)
    assert "".join(calls) == "CBA" + "ABC" + "CBA"
    assert prepared == calls


def test_only_the_run_is_timed_and_only_in_counted_rounds():
    now = itertools.count()
    time = [0.0]

    def spend(seconds):
        def run():
            time[0] += seconds

        return run

    # Every counted run takes ten seconds more than the one before; preparing takes a hundred.
    entries = [Entry(lambda: spend(10.0 * next(now))(), spend(100.0)), Entry(spend(1.0), spend(100.0))]
    seconds = interleave(entries, torch.device("cpu"), rounds=3, warmup=2, clock=lambda: time[0])
    assert seconds == [[20.0, 30.0, 40.0], [1.0, 1.0, 1.0]]


@pytest.mark.gpu
def test_a_gpu_is_waited_for():
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    x = torch.randn(8192, 8192, device="cuda")
    ended = torch.cuda.Event(enable_timing=True)
    started = torch.cuda.Event(enable_timing=True)

    def run():
        started.record()
        for _ in range(10):
            x @ x
        ended.record()

    (seconds,) = interleave([Entry(run)], torch.device("cuda"), rounds=1)
    assert 1000 * seconds[0] >= 0.95 * started.elapsed_time(ended)


def test_pythons_collector_rests_and_comes_back():
    during = []
    interleave([Entry(lambda: during.append(gc.isenabled()))], torch.device("cpu"), rounds=1)
    assert during == [False, False] and gc.isenabled()
    with pytest.raises(ZeroDivisionError):
        interleave([Entry(lambda: 1 / 0)], torch.device("cpu"), rounds=1)
    assert gc.isenabled()


def test_ratios_are_taken_within_a_round_and_then_their_median():
    # A machine that gets ten times slower leaves them alone; the ratio of the medians would be 20 / 2.
    ratio = Ratio.of_pairs([2.0, 20.0, 200.0], [1.0, 10.0, 50.0])
    assert ratio == Ratio(median=2.0, p25=2.0, p75=3.0)
    assert Ratio.of_pairs([3.0], [2.0]) == Ratio(1.5, 1.5, 1.5)
    with pytest.raises(ValueError):
        Ratio.of_pairs([1.0, 2.0], [1.0])


@pytest.mark.parametrize("entries, rounds", (([], 1), ([Entry(lambda: None)], 0)))
def test_nothing_to_time_is_an_error(entries, rounds):
    with pytest.raises(ValueError, match="at least one entry and one round"):
        interleave(entries, torch.device("cpu"), rounds=rounds)
