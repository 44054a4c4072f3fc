"""Means with their standard errors, and the paired t-test."""

import math
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Estimate:
    """
    A mean and how sure it is.

    Attributes:
        mean: over the values.
        error: standard error of the mean, sample deviation / sqrt(n); None for a single value.
        number: of values, n.
    """

    mean: float
    error: float | None
    number: int


@dataclass(frozen=True)
class PairedDifference(Estimate):
    """
    The mean of paired differences.

    Attributes:
        p: two-sided p-value of Student's paired t-test, n - 1 degrees of freedom; None for a single pair.
    """

    p: float | None


def estimate(values: Sequence[float]) -> Estimate:
    """
    Mean and standard error.

    Raises:
        ValueError: no values.
    """
    number = len(values)
    if not number:
        raise ValueError("estimate(values=) expects at least one value. Got none.")
    mean = math.fsum(values) / number
    if number == 1:
        return Estimate(mean, None, 1)
    variance = math.fsum((value - mean) ** 2 for value in values) / (number - 1)
    return Estimate(mean, math.sqrt(variance / number), number)


def paired_difference(differences: Sequence[float]) -> PairedDifference:
    """
    Test whether paired differences are zero in the mean.

    Args:
        differences: one per pair.

    Raises:
        ValueError: no differences.
    """
    found = estimate(differences)
    if found.error is None:
        p = None
    elif found.error == 0:
        p = 1.0 if found.mean == 0 else 0.0
    else:
        p = student_p_value(found.mean / found.error, found.number - 1)
    return PairedDifference(found.mean, found.error, found.number, p)


def student_p_value(t: float, freedom: int) -> float:
    """
    The probability that Student's t is at least as far from zero, on either side.

    ``I_x(freedom / 2, 1 / 2)`` at ``x = freedom / (freedom + t^2)``, where I is the regularised incomplete beta
    function (Abramowitz and Stegun, 26.7.1 with 26.5.27).

    Args:
        t: the statistic.
        freedom: degrees of freedom, at least 1.
    """
    if freedom < 1:
        raise ValueError(f"student_p_value(freedom=) expects at least 1 degree of freedom. Got {freedom}.")
    return incomplete_beta(freedom / (freedom + t * t), freedom / 2, 0.5)


def incomplete_beta(x: float, a: float, b: float) -> float:
    """
    The regularised incomplete beta function I_x(a, b), for x in [0, 1] and a, b above 0.

    By its continued fraction (Abramowitz and Stegun, 26.5.8), which converges fast for x < (a + 1) / (a + b + 2);
    beyond, by I_x(a, b) = 1 - I_{1-x}(b, a).
    """
    if not 0 <= x <= 1 or a <= 0 or b <= 0:
        raise ValueError(f"incomplete_beta(x=, a=, b=) expects x in [0, 1] and a, b > 0. Got {x}, {a}, {b}.")
    if x in (0.0, 1.0):
        return x
    if x > (a + 1) / (a + b + 2):
        return 1 - incomplete_beta(1 - x, b, a)
    log_front = math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b) + a * math.log(x) + b * math.log1p(-x)
    return math.exp(log_front) / (a * _beta_fraction(x, a, b))


def _beta_fraction(x: float, a: float, b: float, terms: int = 200) -> float:
    """1 + d_1 / (1 + d_2 / (1 + ...)), from its far end: that needs no guard against vanishing denominators."""
    value = 1.0
    for i in range(terms, 0, -1):
        m = i // 2
        if i % 2:
            d = -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1))
        else:
            d = m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m))
        value = 1 + d / value
    return value
