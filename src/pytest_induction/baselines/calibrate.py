"""How far two measurements of the same thing may be apart, from repeats. Standard library only."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import lru_cache
from statistics import NormalDist, stdev

from pytest_induction.baselines.compare import default_tolerance
from pytest_induction.errors import ArgumentError, BaselineError

FEWEST = 5
SPREAD = 2.8  # standard deviations of the difference of two repeats
DIGITS = 3  # of a tolerance


def repeats_wanted(given: str) -> int:
    """How often to measure. Raises `ArgumentError` unless it is a whole number that is large enough."""
    try:
        count = int(given)
    except ValueError:
        count = 0
    if count < FEWEST:
        raise ArgumentError(f"expected a whole number of repeats from {FEWEST} up, got {given!r}")
    return count


def calibrated(entry: str, fields: Mapping[str, float], repeats: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """The tolerance of each field. Raises `BaselineError` for one that some repeat did not measure, or that only repeats did."""
    names = dict.fromkeys(name for each in (fields, *repeats) for name in each)
    for name in names:
        count = sum(name in repeat for repeat in repeats)
        if count < len(repeats) or name not in fields:
            raise BaselineError(
                f"entry {entry!r} cannot be calibrated: {name!r} was measured in {count} of {len(repeats)} repeats; check "
                "a measurement that has the same fields whatever the seed, such as `induction.measure_heads()`"
            )
    return {name: tolerance_of([repeat[name] for repeat in repeats]) for name in names}


def tolerance_of(values: Sequence[float]) -> float:
    """2.8 standard deviations of the difference of two repeats, more where few tell what that is; at least the default tolerance.

    The difference of two repeats has sqrt(2) times the standard deviation s of one. `spread` of them are exceeded by that of two
    more repeats as often as 2.8 are where s is known: one time in 196 for normal noise.
    """
    wanted = spread(len(values)) * math.sqrt(2) * stdev(values)
    return _up(max(wanted, default_tolerance(max(map(abs, values)))))


@lru_cache
def spread(count: int) -> float:
    """How many standard deviations stand for 2.8 where they are estimated from `count` values: a quantile of Student's t."""
    within = 2 * NormalDist().cdf(SPREAD) - 1
    low, high = SPREAD, 100.0 * SPREAD
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if _student(middle, count - 1) < within else (low, middle)
    return (low + high) / 2


def _student(bound: float, freedom: int) -> float:
    """The chance that Student's t lies within `bound` either side (Abramowitz and Stegun, 26.7.3 and 26.7.4)."""
    angle = math.atan(bound / math.sqrt(freedom))
    sine, square = math.sin(angle), math.cos(angle) ** 2
    if freedom % 2 == 0:
        return sine * _series(square, [(2 * i - 1) / (2 * i) for i in range(1, freedom // 2)])
    odd = [2 * i / (2 * i + 1) for i in range(1, (freedom - 1) // 2)]
    tail = sine * math.cos(angle) * _series(square, odd) if freedom > 1 else 0.0
    return 2 / math.pi * (angle + tail)


def _series(square: float, factors: Sequence[float]) -> float:
    term = total = 1.0
    for factor in factors:
        term *= factor * square
        total += term
    return total


def _up(value: float) -> float:
    """Rounded up to a few digits."""
    unit = 10.0 ** (math.floor(math.log10(value)) - DIGITS + 1)
    return float(f"{math.ceil(value / unit) * unit:.{DIGITS}g}")
