"""Intervals of the mean of bounded values, whatever these are distributed like, that hold at every look.

A gambler starts with 1 and bets on every value that it lies above a threshold, a fixed fraction of what can be lost at a time. If
the mean is at most the threshold, no such bet gains on the average, so the capital passes 1 / rate at most at that rate, however
often one looks (Ville's inequality). The capital is that of several gamblers, each with a fraction and a share of the start.

Values may come from strata, here the periods of probes, in turn: of each stratum as many. Then the bets on one value of each
gain, on the average, the product of 1 + fraction * (mean of the stratum / threshold - 1), which is highest where all means are
alike (the inequality of means): the mean of the strata's means is bounded, and differences between strata only widen the
interval.

Source: Waudby-Smith and Ramdas 2024, Estimating means of bounded random variables by betting; fractions that are fixed
beforehand, and strata, are ours. docs/decisions.md compares it with other intervals.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pytest_induction.errors import ArgumentError
from pytest_induction.ranges import ROUNDING
from pytest_induction.records import Estimate

Values = NDArray[np.float64]
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
