"""Intervals, nulls and sampling in rounds.

Bounded values have intervals that hold whatever the values are distributed like, at every look.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pytest_induction.errors import ArgumentError
from pytest_induction.ranges import ROUNDING
from pytest_induction.records import Estimate

Values = NDArray[np.float64]
Pair = tuple[int, int]
Interval = Callable[[float], Estimate]  # of a difference, given the rate at which each of its ends may miss
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


def mean_in_nats(values: Values, error_rate: float) -> Estimate:
    """`mean_interval` of one mean, over rows (n,), in nats."""
    return mean_interval(values[:, None], error_rate, "nats")[0]


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


@lru_cache(maxsize=1024)
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


def sequences_needed(estimate: Estimate, threshold: float, count: int) -> int:
    """How many sequences would set this mean apart from the threshold, if mean and spread stay as they are."""
    gap = abs(estimate.value - threshold)
    return math.ceil(count * (towards(estimate, threshold) / max(gap, 1e-3)) ** 2 * 1.1)


def towards(estimate: Estimate, threshold: float) -> float:
    """How far the interval reaches from the mean on the side of the threshold."""
    return estimate.value - estimate.low if estimate.value > threshold else estimate.high - estimate.value


def with_ends(interval: Callable[[float], Estimate], below: float, above: float) -> Estimate:
    """An interval whose lower end misses at most at one rate, and whose upper end at another.

    `interval` gives the one that misses at a rate, half of it at each end.
    """
    low, high = interval(2 * below), interval(2 * above)
    return Estimate(low.value, low.low, high.high, low.unit)


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


@dataclass(frozen=True)
class Mean:
    """A mean, or a difference of two, with its standard error and the degrees of freedom of that; exact where the error is 0."""

    value: float
    error: float
    freedom: float
    unit: str = ""

    @classmethod
    def of(cls, values: Values, unit: str = "") -> Mean:
        """Of rows (n,); their spread counts as at least 0.01. Raises `ArgumentError` below two rows, or if not finite."""
        count = len(values)
        if count < 2 or not np.isfinite(values).all():
            raise ArgumentError(f"a mean with an error needs two rows of finite values, got {count}")
        spread = max(float(values.std(ddof=1)), SMALLEST_SPREAD)
        return cls(float(values.mean()), spread / math.sqrt(count), count - 1, unit)

    def minus(self, other: Mean) -> Mean:
        """The difference to a mean over other rows, whatever their spreads (Welch). Of the same rows take the mean difference."""
        mine, others = self.error**2, other.error**2
        weight = mine**2 / self.freedom + others**2 / other.freedom
        freedom = (mine + others) ** 2 / weight if weight > 0 else math.inf
        return Mean(self.value - other.value, math.hypot(self.error, other.error), freedom, self.unit)

    def interval(self, tail: float) -> Estimate:
        """Student's interval, each end of which misses at most at `tail`; freedom is rounded down."""
        half = student_quantile(tail, max(1, math.floor(self.freedom))) * self.error if self.error > 0 else 0.0
        return Estimate(self.value, self.value - half, self.value + half, self.unit)


@dataclass(frozen=True)
class Equivalence:
    """What is shown of how far several means lie apart: all by less than a margin, some two by more, or neither.

    `pair` are the two that decide, the higher one first, and `difference` by how much: those furthest apart, of all where they
    are alike, of those that are shown to differ where some are, else of those not shown to be alike. The interval is the one
    that the answer rests on; where there is none, the wider one, that of a difference.
    """

    pair: Pair
    difference: Estimate
    is_alike: bool
    is_different: bool


def equivalence(differences: Mapping[Pair, Interval], margin: float, error_rate: float, claims: int = 1) -> Equivalence:
    """Whether several means are alike, by two one-sided tests of each pair, or whether some two differ by more than `margin`.

    `differences` has for every pair (i, j) the interval of mean i minus mean j. *Alike*: of each pair the interval of level
    1 - 2 `error_rate` lies within (-margin, margin). All of them must, so that no correction is due (intersection-union): where
    two means are a margin or more apart, this is said at most at `error_rate`, however many pairs there are. It is never said
    because no difference was found. *Different*: the interval of some pair lies wholly outside; one is enough, so
    `error_rate` is divided by two ends, the pairs, and `claims`, the measures of which one that differs is enough.

    Only one of the two can be wrong, as means are a margin apart or they are not: each may use all of `error_rate`, below 0.5.
    Raises `ArgumentError` for no pairs, or a margin that is not above 0.
    """
    if not differences or not margin > 0:
        raise ArgumentError(f"equivalence needs a pair at least and a margin above 0, got {len(differences)} and {margin}")
    narrow = {pair: interval(error_rate) for pair, interval in differences.items()}
    apart = {pair: found for pair, found in narrow.items() if not (found.is_above(-margin) and found.is_below(margin))}
    if not apart:
        return _furthest(narrow, is_alike=True)
    tail = error_rate / (2 * claims * len(differences))
    wide = {pair: differences[pair](tail) for pair in apart}  # a pair within by the narrower interval is not outside by this one
    outside = {pair: found for pair, found in wide.items() if found.is_above(margin) or found.is_below(-margin)}
    return _furthest(outside or wide, is_different=bool(outside))


def _furthest(found: Mapping[Pair, Estimate], *, is_alike: bool = False, is_different: bool = False) -> Equivalence:
    pair, estimate = max(found.items(), key=lambda each: abs(each[1].value))
    if estimate.value < 0:
        pair, estimate = pair[::-1], Estimate(-estimate.value, -estimate.high, -estimate.low, estimate.unit)
    return Equivalence(pair, estimate, is_alike, is_different)


FRACTIONS = np.array([1.0, 0.7, 0.4, 0.2, 0.08, 0.03])  # of what can be lost with one value
SHARES = np.array([0.5, 0.1, 0.1, 0.1, 0.1, 0.1])  # of the capital at the start: all in decides where all values are alike
STEPS = 15  # of the bisection for an end of an interval
AT_ONCE = 2**20  # numbers in memory at a time


def log_capital(values: Values, threshold: float | Values) -> Values:
    """What has been won, as a logarithm, on each column of `values` (n, columns) in [0, 1] lying above its threshold in (0, 1].

    Above log(1 / rate) it shows, at that rate, that the mean is higher. The empty sum is 0: nothing won, nothing lost. Nor is
    anything bet on NaN, a value that was not taken.
    """
    ratios = np.nan_to_num(values / threshold - 1, nan=0.0)
    with np.errstate(divide="ignore"):  # all in, and a 0: everything is lost
        bets = np.stack([np.log1p(fraction * ratios).sum(axis=0) for fraction in FRACTIONS])
    return np.asarray(np.logaddexp.reduce(bets + np.log(SHARES)[:, None], axis=0))


def is_above(values: Values, threshold: float, rate: float) -> NDArray[np.bool_]:
    """Of which columns of `values` (n, columns) in [0, 1] the mean is shown to be above the threshold, at `rate` each."""
    return log_capital(values, threshold) > -np.log(rate)


def lower_ends(values: Values, rate: float) -> Values:
    """Of each column of `values` (n, columns) in [0, 1] the highest threshold that its mean is shown to be above, 0 if none."""
    low, high = np.zeros(values.shape[1]), known_mean(values)
    needed = -np.log(rate)
    for _ in range(STEPS):
        middle = (low + high) / 2
        shown = log_capital(values, np.maximum(middle, 1e-12)) > needed
        low, high = np.where(shown, middle, low), np.where(shown, high, middle)
    return low


def bounded_intervals(
    values: Values, below: float, above: float, *, lowest: float = 0.0, highest: float = 1.0, unit: str = ""
) -> list[Estimate]:
    """The interval of each column's mean over `values` (n, columns), all of which lie from `lowest` to `highest`.

    The mean is below the interval at most at the rate `below`, and above it at most at the rate `above`, for each column by
    itself. NaN is a value that was not taken. Raises `ArgumentError` for a column without values, values that are infinite or out
    of their range, or a rate out of (0, 1).
    """
    if np.isnan(values).all(axis=0).any() or np.isinf(values).any():
        raise ArgumentError(f"an interval needs finite values, got {len(values)} rows")
    if not (0 < below < 1 and 0 < above < 1):
        raise ArgumentError(f"rates must lie between 0 and 1, got {below} and {above}")
    width = highest - lowest
    slack = ROUNDING * width
    least, most = np.nanmin(values, initial=highest), np.nanmax(values, initial=lowest)
    if least < lowest - slack or most > highest + slack:
        raise ArgumentError(f"values must lie from {lowest} to {highest}, got {least} to {most}")
    found: list[Estimate] = []
    for part in _in_parts(np.clip((values - lowest) / width, 0.0, 1.0)):
        means = known_mean(part)
        lows, highs = lower_ends(part, below), 1 - lower_ends(1 - part, above)
        for mean, low, high in zip(means.tolist(), lows.tolist(), highs.tolist(), strict=True):
            value, least, most = (lowest + width * end for end in (mean, min(low, mean), max(high, mean)))
            found.append(Estimate(value, least, most, unit))
    return found


def clipped_intervals(values: Values, most: float, below: float, above: float, unit: str = "nats") -> list[Estimate]:
    """`bounded_intervals` of values (n, columns) of any size, each of which counts as `most` either way at most."""
    return bounded_intervals(np.clip(values, -most, most), below, above, lowest=-most, highest=most, unit=unit)


def mean_of_shares(values: Values, error_rate: float) -> Estimate:
    """`bounded_intervals` of one mean, over rows (n,) of shares, each end missing it at most at half of the rate."""
    return bounded_intervals(values[:, None], error_rate / 2, error_rate / 2, unit=SHARE)[0]


def more_rows(estimate: Estimate, threshold: float, count: int) -> int:
    """How many rows after these `count` would set the mean apart from the threshold, if mean and spread stay as they are.

    What has been won grows evenly with the rows, so the way from the mean to an end of the interval shrinks about as 1 / rows.
    """
    end = estimate.low if estimate.value > threshold else estimate.high
    gap = max(abs(estimate.value - threshold), 1e-3)
    return max(1, math.ceil(1.1 * count * (abs(estimate.value - end) / gap - 1)))


def known_mean(values: NDArray[np.floating[Any]]) -> Values:
    """The mean over the first axis of those values that were taken, NaN where none was."""
    taken = (~np.isnan(values)).sum(axis=0)
    return np.where(taken > 0, np.nansum(values, axis=0) / np.maximum(taken, 1), np.nan)


def _in_parts(values: Values) -> Iterator[Values]:
    """Columns, so many at a time that what is made of them stays small."""
    most = max(1, AT_ONCE // (len(values) * len(FRACTIONS)))
    for start in range(0, values.shape[1], most):
        yield values[:, start : start + most]
