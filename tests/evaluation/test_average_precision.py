"""Average precision against the devkit's loop, the 11 points in fractions, and scikit-learn's definition."""

import math
from fractions import Fraction

import numpy as np
import pytest

from spt_d2.evaluation.average_precision import FLAVOURS, average_precision


def devkit_curve(scores, labels):
    """
    Recall and precision after each image, as VOCevalcls of VOC's devkit: images in order of confidence, labels 1, -1,
    and 0 for one that shows difficult objects only, which is stepped over. In fractions; precision None while 0 / 0.
    """
    ranked = sorted(range(len(scores)), key=lambda i: -scores[i])
    total = sum(label > 0 for label in labels)
    curve, hits, misses = [], 0, 0
    for i in ranked:
        hits += labels[i] > 0
        misses += labels[i] < 0
        curve.append((Fraction(hits, total), Fraction(hits, hits + misses) if hits + misses else None))
    return curve


def slow_voc10(scores, labels):
    """Area under the envelope, recall level by recall level."""
    curve = devkit_curve(scores, labels)
    area, last = Fraction(0), Fraction(0)
    for recall in sorted({recall for recall, _ in curve}):
        best = max(precision for other, precision in curve if other >= recall and precision is not None)
        area += (recall - last) * best
        last = recall
    return float(area)


def slow_voc07(scores, labels):
    curve = devkit_curve(scores, labels)
    points = []
    for tenth in range(11):
        reached = [precision for recall, precision in curve if recall >= Fraction(tenth, 10) and precision is not None]
        points.append(max(reached, default=Fraction(0)))
    return float(sum(points) / 11)


def slow_step(scores, labels):
    """Sum of (R_n - R_{n-1}) P_n over the distinct scores as thresholds, highest first."""
    judged = [(score, label > 0) for score, label in zip(scores, labels) if label != 0]
    total = sum(label for _, label in judged)
    area, last = Fraction(0), Fraction(0)
    for threshold in sorted({score for score, _ in judged}, reverse=True):
        found = [label for score, label in judged if score >= threshold]
        recall = Fraction(sum(found), total)
        area += (recall - last) * Fraction(sum(found), len(found))
        last = recall
    return float(area)


SLOW = {"voc10": slow_voc10, "voc07": slow_voc07, "step": slow_step}


def random_ranking(seed, count=40, ties=False):
    generator = np.random.default_rng(seed)
    scores = generator.integers(0, 6, count).astype(float) if ties else generator.normal(size=count)
    labels = generator.choice([1, -1, 0], count, p=[0.25, 0.55, 0.2])
    labels[0] = 1
    return scores, labels


def without_difficult(scores, labels, flavour):
    counted = labels != 0
    return average_precision(scores[counted], labels[counted] > 0, flavour)


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("flavour", FLAVOURS)
def test_it_is_what_the_slow_loop_gives(flavour, ties):
    for seed in range(30):
        scores, labels = random_ranking(seed, count=3 + seed, ties=ties)
        expected = SLOW[flavour](scores.tolist(), labels.tolist())
        assert without_difficult(scores, labels, flavour) == pytest.approx(expected, rel=1e-12)


# Labels by falling score, then voc10, voc07, step, by hand.
WORKED = [
    ("+", 1, 1, 1),
    ("-+", 1 / 2, 1 / 2, 1 / 2),
    ("+-+", 1 / 2 + 1 / 2 * 2 / 3, (6 + 5 * 2 / 3) / 11, 1 / 2 + 1 / 2 * 2 / 3),
    # The envelope lifts the first hit from 1/2 to 2/3.
    ("-++", 2 / 3, 2 / 3, 1 / 2 * 1 / 2 + 1 / 2 * 2 / 3),
    ("??+-", 1, 1, 1),
    ("---+", 1 / 4, 1 / 4, 1 / 4),
    # Recall 3/10, reached by whole numbers, is the point 0.3.
    ("+++" + "-" * 27 + "+" * 7, 0.3 + 0.7 * 10 / 37, (4 + 7 * 10 / 37) / 11, None),
]


@pytest.mark.parametrize(("row", "voc10", "voc07", "step"), WORKED, ids=[row for row, *_ in WORKED])
def test_worked_examples(row, voc10, voc07, step):
    labels = np.array([{"+": 1, "-": -1, "?": 0}[letter] for letter in row])
    scores = -np.arange(len(row), dtype=float)
    for flavour, expected in zip(FLAVOURS, (voc10, voc07, step)):
        if expected is not None:
            assert without_difficult(scores, labels, flavour) == pytest.approx(expected, rel=1e-12), flavour


def test_step_is_scikit_learns():
    metrics = pytest.importorskip("sklearn.metrics", reason="scikit-learn is not installed (requirements/dev.txt)")
    for seed in range(30):
        scores, labels = random_ranking(seed, ties=seed % 2 == 0)
        scores, positive = scores[labels != 0], labels[labels != 0] > 0
        expected = metrics.average_precision_score(positive, scores)
        assert average_precision(scores, positive, "step") == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("flavour", FLAVOURS)
def test_only_the_order_of_scores_matters(flavour):
    scores, labels = random_ranking(3, ties=True)
    assert average_precision(scores, labels > 0, flavour) == average_precision(np.exp(scores / 2), labels > 0, flavour)


def test_equal_scores_count_together_under_step_and_in_their_order_under_the_devkits():
    scores, positive = np.zeros(4), np.array([True, False, False, True])
    assert average_precision(scores, positive, "step") == 1 / 2
    assert average_precision(scores, positive, "voc10") == 3 / 4
    assert average_precision(scores, positive[::-1].copy(), "voc10") == 3 / 4
    assert average_precision(scores, np.array([False, False, True, True]), "voc10") == 1 / 2


@pytest.mark.parametrize("flavour", FLAVOURS)
def test_a_class_that_no_image_shows_has_none(flavour):
    assert math.isnan(average_precision(np.zeros(3), np.zeros(3, dtype=bool), flavour))
    assert math.isnan(average_precision(np.zeros(0), np.zeros(0, dtype=bool), flavour))


def test_wrong_arguments_are_named():
    with pytest.raises(ValueError, match=r"flavour=\) expects one of .*'voc10'.* Got 'coco'"):
        average_precision(np.zeros(1), np.ones(1, dtype=bool), "coco")
    with pytest.raises(ValueError, match=r"scores.shape  : \(2,\)\n  positive.shape: \(3,\)"):
        average_precision(np.zeros(2), np.ones(3, dtype=bool))
    with pytest.raises(ValueError, match="expects numbers. Got NaN"):
        average_precision(np.array([0.0, np.nan]), np.ones(2, dtype=bool))
