"""Means, standard errors and the paired t-test, against worked examples and published tables."""

import math

import pytest

from spt_d2.compare.statistics import estimate, incomplete_beta, paired_difference, student_p_value


def test_mean_and_standard_error_of_a_worked_example():
    """2, 4, 9: mean 5, squares 9 + 1 + 16 = 26, variance 13, error sqrt(13 / 3)."""
    found = estimate([2.0, 4.0, 9.0])
    assert (found.mean, found.number) == (5.0, 3)
    assert found.error == pytest.approx(math.sqrt(13 / 3), rel=1e-14)


def test_one_value_has_no_standard_error_and_none_is_an_error():
    assert estimate([3.0]) == type(estimate([3.0]))(3.0, None, 1)
    with pytest.raises(ValueError, match="at least one value"):
        estimate([])


# Two-sided probabilities of 0.5, 0.1, 0.05, 0.01, 0.001 in tables of Student's distribution, to three decimals of t.
TABLE = {
    1: (1.000, 6.314, 12.706, 63.657, 636.619),
    2: (0.816, 2.920, 4.303, 9.925, 31.599),
    4: (0.741, 2.132, 2.776, 4.604, 8.610),
    8: (0.706, 1.860, 2.306, 3.355, 5.041),
    30: (0.683, 1.697, 2.042, 2.750, 3.646),
    120: (0.677, 1.658, 1.980, 2.617, 3.373),
}


@pytest.mark.parametrize("freedom", TABLE)
def test_p_values_are_those_of_published_tables(freedom):
    for t, p in zip(TABLE[freedom], (0.5, 0.1, 0.05, 0.01, 0.001)):
        # Half a unit in the last place of t moves the probability by this much at most.
        slack = abs(student_p_value(t - 0.0005, freedom) - student_p_value(t + 0.0005, freedom))
        assert abs(student_p_value(t, freedom) - p) <= slack
        assert student_p_value(-t, freedom) == student_p_value(t, freedom)


@pytest.mark.parametrize("t", [0.0, 1e-3, 0.5, 1.0, 3.0, 50.0])
def test_p_values_with_one_and_two_degrees_of_freedom_are_those_of_the_closed_forms(t):
    assert student_p_value(t, 1) == pytest.approx(1 - 2 / math.pi * math.atan(t), rel=1e-9)
    assert student_p_value(t, 2) == pytest.approx(1 - t / math.sqrt(2 + t * t), rel=1e-9)


@pytest.mark.parametrize("x", [0.0, 0.01, 0.3, 0.5, 0.9, 1.0])
def test_the_incomplete_beta_function_is_the_binomial_tail_for_whole_numbers(x):
    """I_x(a, b) is the probability of at least a successes in a + b - 1 trials."""
    for a, b in ((1, 1), (2, 3), (5, 2), (10, 10)):
        n = a + b - 1
        tail = sum(math.comb(n, k) * x**k * (1 - x) ** (n - k) for k in range(a, n + 1))
        assert incomplete_beta(x, a, b) == pytest.approx(tail, rel=1e-12, abs=1e-15)


def test_what_is_no_probability_and_no_degree_of_freedom_is_refused():
    with pytest.raises(ValueError, match="degree of freedom"):
        student_p_value(1.0, 0)
    with pytest.raises(ValueError, match=r"x in \[0, 1\]"):
        incomplete_beta(1.5, 1, 1)


def test_the_paired_t_test_of_a_worked_example():
    """1, 2, 3: mean 2, deviation 1, error 1 / sqrt(3), t = 2 sqrt(3), p = 1 - t / sqrt(2 + t^2) = 1 - sqrt(6 / 7)."""
    found = paired_difference([1.0, 2.0, 3.0])
    assert found.mean == 2.0
    assert found.error == pytest.approx(1 / math.sqrt(3), rel=1e-14)
    assert found.p == pytest.approx(1 - math.sqrt(6 / 7), rel=1e-10)


def test_a_single_pair_and_pairs_that_do_not_differ_among_each_other_have_no_t():
    assert (paired_difference([1.0]).error, paired_difference([1.0]).p) == (None, None)
    assert paired_difference([0.0, 0.0]).p == 1.0
    assert paired_difference([0.5, 0.5]).p == 0.0
