"""Intervals hold what they promise, and refuse what has no interval."""

import numpy as np
import pytest
from scipy import stats

from pytest_induction.errors import ArgumentError
from pytest_induction.records import Estimate
from pytest_induction.statistics import (
    bootstrap_interval,
    look_sizes,
    mean_interval,
    median_interval,
    sequences_needed,
    student_quantile,
)


@pytest.mark.parametrize("freedom", [1, 2, 5, 11, 47, 191, 2000])
@pytest.mark.parametrize("tail", [0.4, 0.025, 1e-3, 1e-6, 1e-9])
def test_student_quantiles_are_those_of_scipy(freedom, tail):
    """Far tails keep their digits, where many heads and looks divide the error rate."""
    assert student_quantile(tail, freedom) == pytest.approx(stats.t.isf(tail, freedom), rel=1e-6)


@pytest.mark.parametrize(("tail", "freedom"), [(0.0, 5), (0.5, 5), (float("nan"), 5), (0.1, 0)])
def test_quantiles_outside_their_range_are_refused(tail, freedom):
    """No tail, no quantile."""
    with pytest.raises(ArgumentError):
        student_quantile(tail, freedom)


@pytest.mark.parametrize("error_rate", [0.1, 0.02])
def test_intervals_of_many_columns_miss_at_most_as_often_as_stated(error_rate):
    """The rate holds for all columns together."""
    rng = np.random.default_rng(0)
    missed = 0
    for _ in range(1000):
        values = rng.normal(0.5, 0.1, (12, 20))
        missed += any(not each.low <= 0.5 <= each.high for each in mean_interval(values, error_rate))
    assert missed / 1000 <= error_rate + 3 * np.sqrt(error_rate / 1000)
    assert missed > 0


def test_the_mean_is_inside_and_shares_stay_shares():
    """A share's interval ends at 0 and 1; nats have no end."""
    values = np.array([[1.0, 0.0], [1.0, 0.02], [1.0, 0.0]])
    for estimate in mean_interval(values, 0.001):
        assert 0 <= estimate.low <= estimate.value <= estimate.high <= 1
        assert estimate.high > estimate.low
    assert mean_interval(values, 0.001, "nats")[1].low < 0


@pytest.mark.parametrize("values", [np.zeros((1, 3)), np.array([[1.0], [np.nan]]), np.array([[1.0], [np.inf]])])
def test_no_interval_of_too_little_or_of_nan(values):
    """Undefined is an error, not a number."""
    with pytest.raises(ArgumentError, match="two rows of finite values"):
        mean_interval(values, 0.01)
    with pytest.raises(ArgumentError, match="two finite values"):
        bootstrap_interval(values[:, 0], 0.01, np.random.default_rng(0), "nats")


def test_nan_is_neither_above_nor_below():
    """A bar is passed only when that is shown."""
    nothing = Estimate(float("nan"), float("nan"), float("nan"))
    assert not nothing.is_above(0)
    assert not nothing.is_below(0)
    assert not Estimate(1, 0.5, 1.5).is_above(float("nan"))


def test_the_bootstrap_interval_is_that_of_a_normal_mean():
    """For many well-behaved rows it is the mean and its standard error."""
    values = np.random.default_rng(1).normal(-0.4, 1.0, 400)
    found = bootstrap_interval(values, 0.05, np.random.default_rng(2), "nats")
    half = 1.96 * values.std(ddof=1) / 20
    assert found.value == values.mean()
    assert found.low == pytest.approx(values.mean() - half, abs=0.01)
    assert found.high == pytest.approx(values.mean() + half, abs=0.01)


def test_rounds_double_up_to_the_budget():
    """Clear cases are cheap, and the budget is spent to the last sequence."""
    assert look_sizes(12) == [12]
    assert look_sizes(100) == [12, 24, 48, 96, 100]
    with pytest.raises(ArgumentError, match="`max_sequences` must be at least 12, got 11"):
        look_sizes(11)


def test_what_would_settle_it_settles_it():
    """With that many sequences of the same spread the interval is clear of the bar."""
    rng = np.random.default_rng(3)
    few = rng.normal(0.35, 0.2, (24, 1))
    estimate = mean_interval(few, 0.001)[0]
    assert not estimate.is_above(0.3)
    needed = sequences_needed(estimate, 0.3, 24)
    scale = few.mean() + (rng.normal(0, few.std(ddof=1), (needed, 1)))
    scale += few.mean() - scale.mean()
    assert mean_interval(scale, 0.001)[0].is_above(0.3) == (few.mean() > 0.3)


@pytest.mark.parametrize("count", [11, 15, 25, 101])
def test_the_interval_of_a_median_is_between_two_order_statistics(count):
    """The outermost pair of them whose chance to miss, by scipy's binomial, is still within the rate."""
    values = np.random.default_rng(4).permutation(count).astype(float)
    found = median_interval(values, 0.001, "ratio")
    rank = int(found.low) + 1  # of n values, the lower end is the rank-th smallest
    assert found.high == count - rank
    assert stats.binom.cdf(rank - 1, count, 0.5) <= 0.0005 < stats.binom.cdf(rank, count, 0.5)
    assert found.value == (count - 1) / 2


def test_the_interval_of_a_median_misses_at_most_as_often_as_stated():
    """Whatever the distribution: here a skewed one with a heavy tail."""
    rng = np.random.default_rng(5)
    samples = np.exp(rng.standard_normal((4000, 15)) * 2)
    missed = sum(not each.low <= 1 <= each.high for each in (median_interval(row, 0.05, "ratio") for row in samples))
    assert 0 < missed / 4000 <= 0.05 + 3 * np.sqrt(0.05 / 4000)


@pytest.mark.parametrize("values", [np.zeros(0), np.ones(10), np.full(20, np.nan)])
def test_no_interval_of_a_median_of_too_little_or_of_nan(values):
    """Ten values cannot bound a median at one in a thousand."""
    with pytest.raises(ArgumentError, match="the interval of a median"):
        median_interval(values, 0.001, "ratio")
