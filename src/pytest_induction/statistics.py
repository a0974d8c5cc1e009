"""Intervals, nulls and sampling in rounds.

A verdict may look at the data several times and at many heads; its error rate is divided among all of these looks, so the
stated rate holds for the verdict as a whole.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import cache

import numpy as np
from numpy.typing import NDArray

from pytest_induction.errors import ArgumentError
from pytest_induction.records import Estimate

Values = NDArray[np.float64]
SHARE = "share"  # the unit of whatever lies in [0, 1]
FIRST_LOOK = 12  # sequences: two for each of six periods
SMALLEST_SPREAD = 0.01  # a few equal values do not make a certainty
RESAMPLES = 10_000


def look_sizes(most: int) -> list[int]:
    """How many sequences have been drawn at each look: 12, doubling up to `most`."""
    if most < FIRST_LOOK:
        raise ArgumentError(f"`max_sequences` must be at least {FIRST_LOOK}, got {most}")
    sizes = [FIRST_LOOK]
    while sizes[-1] < most:
        sizes.append(min(2 * sizes[-1], most))
    return sizes


def mean_interval(values: Values, error_rate: float, unit: str = SHARE) -> list[Estimate]:
    """Student's interval of each column's mean over its rows (n, columns), the whole missing it at most at `error_rate`.

    The rate is divided by the number of columns (Bonferroni). The spread counts as at least 0.01, and
    the interval of a share ends at 0 and 1. Raises `ArgumentError`
    for fewer than two rows or values that are not finite.
    """
    count, columns = values.shape
    if count < 2 or not np.isfinite(values).all():
        raise ArgumentError(f"an interval needs two rows of finite values, got {count}")
    means = values.mean(axis=0)
    spread = np.maximum(values.std(axis=0, ddof=1), SMALLEST_SPREAD)
    half = student_quantile(error_rate / columns / 2, count - 1) * spread / math.sqrt(count)
    low, high = means - half, means + half
    if unit == SHARE:
        low, high = np.clip(low, 0.0, means), np.clip(high, means, 1.0)
    return [Estimate(float(m), float(a), float(b), unit) for m, a, b in zip(means, low, high, strict=True)]


def median_interval(values: Values, error_rate: float, unit: str) -> Estimate:
    """Interval of the median (n,) between two of the values, whatever they are distributed like.

    Each end is wrong at most at half of `error_rate`: the chance that so many of n coins fall on one side. Raises
    `ArgumentError` for values that are not finite, or too few to bound the median at that rate.
    """
    ordered, count = np.sort(values), len(values)
    tail, rank = 2.0**-count, 0
    while tail <= error_rate / 2:
        rank += 1
        tail += math.comb(count, rank) / 2**count
    if rank == 0 or not np.isfinite(ordered).all():
        raise ArgumentError(f"the interval of a median at error rate {error_rate} needs more finite values, got {count}")
    return Estimate(float(np.median(ordered)), float(ordered[rank - 1]), float(ordered[-rank]), unit)


def student_quantile(tail: float, freedom: int) -> float:
    """The t above which Student's distribution with `freedom` degrees of freedom has mass `tail`, for tail in (0, 0.5)."""
    if not 0 < tail < 0.5 or freedom < 1:
        raise ArgumentError(f"`tail` must lie in (0, 0.5) and `freedom` be at least 1, got {tail} and {freedom}")
    low, high = 0.0, math.pi / 2  # bisect on the angle, t = tan(angle) * sqrt(freedom)
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if _student_tail(middle, freedom) > tail else (low, middle)
    return math.tan(low) * math.sqrt(freedom)


def _student_tail(angle: float, freedom: int) -> float:
    """Mass above t = tan(angle) * sqrt(freedom): the integral of cos^(freedom - 1) from the angle to a right angle.

    Summed from the far end, where the integrand is tiny, so that small tails keep their digits.
    """
    nodes, weights = _gauss_legendre()
    half = (math.pi / 2 - angle) / 2
    points = np.sin(half * (nodes + 1))  # the cosine of an angle is the sine of its complement
    integral = half * float(weights @ points ** (freedom - 1))
    whole = math.sqrt(math.pi) * math.exp(math.lgamma(freedom / 2) - math.lgamma((freedom + 1) / 2))
    return integral / whole


@cache
def _gauss_legendre() -> tuple[Values, Values]:
    nodes, weights = np.polynomial.legendre.leggauss(100)
    return nodes, weights


def sequences_needed(estimate: Estimate, bar: float, count: int) -> int:
    """How many sequences would set this mean apart from the bar, if mean and spread stay as they are."""
    gap = abs(estimate.value - bar)
    return math.ceil(count * ((estimate.high - estimate.low) / 2 / max(gap, 1e-3)) ** 2 * 1.1)


def bootstrap_interval(values: Values, error_rate: float, rng: np.random.Generator, unit: str) -> Estimate:
    """Percentile interval of the mean over rows (n,), by resampling whole rows. Raises `ArgumentError` below two rows."""
    if len(values) < 2 or not np.isfinite(values).all():
        raise ArgumentError(f"an interval needs two finite values, got {len(values)}")
    means = np.concatenate(list(_resampled_means(values, rng)))
    low, high = np.quantile(means, [error_rate / 2, 1 - error_rate / 2])
    return Estimate(float(values.mean()), float(low), float(high), unit)


def _resampled_means(values: Values, rng: np.random.Generator, at_once: int = 500) -> Iterator[Values]:
    for _ in range(0, RESAMPLES, at_once):
        yield values[rng.integers(0, len(values), (at_once, len(values)))].mean(axis=1)
