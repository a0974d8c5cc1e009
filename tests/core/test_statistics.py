"""Intervals hold what they promise, and refuse what has no interval."""

import numpy as np
import pytest
from scipy import stats

from pytest_induction.errors import ArgumentError
from pytest_induction.records import Estimate
from pytest_induction.statistics import (
    Mean,
    bootstrap_interval,
    equivalence,
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
    """A threshold is passed only when that is shown."""
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
    """With that many sequences of the same spread the interval is clear of the threshold."""
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


def differences(samples):
    """The differences of all pairs of samples of the same rows, as the verdict on a family takes them."""
    return {(i, j): Mean.of(samples[i] - samples[j]).interval for i in range(len(samples)) for j in range(i + 1, len(samples))}


def two_one_sided(one, other, margin, *, paired):
    """The p value of equivalence, by scipy: the larger one of two one-sided tests, against either margin."""
    test = stats.ttest_rel if paired else lambda *args, **options: stats.ttest_ind(*args, equal_var=False, **options)
    low, high = test(one + margin, other, alternative="greater"), test(one - margin, other, alternative="less")
    return max(low.pvalue, high.pvalue)


@pytest.mark.parametrize("seed", range(3))
def test_two_means_are_alike_where_both_one_sided_tests_of_scipy_say_so(seed):
    """Paired to the letter; of rows of their own the freedom is rounded down, so that no more is said than by Welch's own."""
    rng, seen = np.random.default_rng(seed), set()
    for _ in range(150):
        margin, gap = 0.5, rng.uniform(-0.6, 0.6)
        one, other = rng.normal(0, 1, 30), rng.normal(gap, rng.uniform(0.2, 2), 30)
        other[:10] += 0.8 * one[:10]
        found = equivalence(differences([one, other]), margin, 0.05)
        assert found.is_alike == (two_one_sided(one, other, margin, paired=True) < 0.05)
        fewer = other[: rng.integers(5, 30)]
        welch = equivalence({(0, 1): Mean.of(one).minus(Mean.of(fewer)).interval}, margin, 0.05)
        by_scipy = two_one_sided(one, fewer, margin, paired=False)
        assert by_scipy < 0.05 if welch.is_alike else by_scipy > 0.045
        seen |= {found.is_alike, welch.is_alike}
    assert seen == {True, False}


def test_the_interval_of_a_difference_is_that_of_scipy():
    """Welch's, with the freedom rounded down; the same numbers whichever way round."""
    rng = np.random.default_rng(3)
    one, other = rng.normal(0, 1, 12), rng.normal(0, 3, 20)
    mean = Mean.of(one).minus(Mean.of(other))
    test = stats.ttest_ind(one, other, equal_var=False)
    assert mean.freedom == pytest.approx(test.df) and mean.value / mean.error == pytest.approx(test.statistic)
    half = stats.t.isf(0.01, np.floor(test.df)) * mean.error
    found = mean.interval(0.01)
    assert (found.low, found.high) == pytest.approx((mean.value - half, mean.value + half))
    back = Mean.of(other).minus(Mean.of(one)).interval(0.01)
    assert (back.value, back.low, back.high) == pytest.approx((-found.value, -found.high, -found.low))


def rate_of(shown, gaps, *, count=25, spread=1.0, margin=1.0, error_rate=0.1, draws=1500):
    """How often `equivalence` shows something of a family whose true means are these."""
    rng, hits = np.random.default_rng(7), 0
    for _ in range(draws):
        samples = np.array(gaps)[:, None] + rng.normal(0, spread, (len(gaps), count))
        hits += getattr(equivalence(differences(samples), margin, error_rate), shown)
    return hits / draws


@pytest.mark.parametrize("gaps", [(0.0, 1.0), (0.0, 0.5, 1.0), (0.0, 0.0, 0.0, -1.0)])
def test_means_a_margin_apart_are_called_alike_at_most_as_often_as_stated(gaps):
    """No correction is due for several pairs, as all of them must be alike; of two means the rate is all but used up."""
    rate = rate_of("is_alike", gaps)
    assert rate <= 0.1 + 3 * np.sqrt(0.1 * 0.9 / 1500)
    assert rate > (0.06 if len(gaps) == 2 else 0.0)


@pytest.mark.parametrize("gaps", [(0.0, 1.0), (0.0, 1.0, 0.0, 1.0), (0.0, 0.0, 0.0)])
def test_means_within_the_margin_are_called_different_at_most_as_often_as_stated(gaps):
    """Many pairs at the very margin share the rate."""
    rate = rate_of("is_different", gaps)
    assert rate <= 0.1 + 3 * np.sqrt(0.1 * 0.9 / 1500)
    assert rate > 0 or max(gaps) == 0


def test_without_the_correction_more_pairs_are_called_different_than_stated():
    """The guard above can fail: the narrow interval of every pair alone is outside too often."""
    gaps = (0.0, 1.0, 0.0, 1.0, 0.0, 1.0)
    rng, hits = np.random.default_rng(7), 0
    for _ in range(300):
        samples = np.array(gaps)[:, None] + rng.normal(0, 1, (len(gaps), 25))
        hits += any(
            abs(interval(0.1).value) > 1 and not -1 <= interval(0.1).low <= 1 for interval in differences(samples).values()
        )
    assert hits / 300 > 0.2


def test_equal_means_are_found_alike_and_means_far_apart_different():
    """Where the answer is clear it is given."""
    assert rate_of("is_alike", (0.0, 0.0, 0.0), count=60, draws=200) > 0.95
    assert rate_of("is_different", (0.0, 0.0, 2.5), count=60, draws=200) > 0.95
    assert rate_of("is_alike", (0.0, 0.0, 2.5), count=60, draws=200) == 0


def test_too_little_data_is_no_equivalence():
    """Few noisy values, of which no test finds any difference, are not called alike: that was not shown."""
    rng, unclear = np.random.default_rng(9), 0
    for _ in range(100):
        one, other = rng.normal(0, 1, (2, 5))
        found = equivalence(differences([one, other]), 0.5, 0.05)
        no_difference = stats.ttest_rel(one, other).pvalue > 0.05
        unclear += no_difference and not found.is_alike and not found.is_different
    assert unclear > 80


def test_the_two_that_decide_are_named_the_higher_one_first():
    """Those furthest apart; where some differ clearly, of these; where not all are alike, of those that are not."""
    rng = np.random.default_rng(11)
    wave = rng.normal(0, 0.1, (3, 40))
    alike = equivalence(differences(wave + np.array([[0.0], [0.2], [0.1]])), 1.0, 0.01)
    assert alike.pair == (1, 0) and alike.is_alike and alike.difference.value > 0.1
    different = equivalence(differences(wave + np.array([[0.0], [2.0], [0.1]])), 1.0, 0.01)
    assert different.pair == (1, 0) and different.difference.low > 1 and different.is_different
    noisy = {(0, 1): Mean(0.5, 0.001, 30).interval, (0, 2): Mean(-0.2, 1.0, 30).interval}
    unclear = equivalence(noisy, 1.0, 0.01)
    assert unclear.pair == (2, 0) and (unclear.is_alike, unclear.is_different) == (False, False)
    assert unclear.difference.value == 0.2 and unclear.difference.high > 1


def test_the_interval_is_the_one_that_the_answer_rests_on():
    """The narrow one of two one-sided tests where means are alike, else the wide one, divided by ends, pairs and measures."""
    mean = Mean(0.3, 0.1, 20)
    assert equivalence({(0, 1): mean.interval}, 1.0, 0.01).difference == mean.interval(0.01)
    assert equivalence({(0, 1): mean.interval}, 0.4, 0.01, claims=3).difference == mean.interval(0.01 / 6)
    exact = Mean(0.3, 0.0, np.inf)
    assert equivalence({(0, 1): exact.interval}, 0.31, 0.01).is_alike
    assert equivalence({(0, 1): exact.interval}, 0.29, 0.01).is_different


def test_equal_values_make_no_certainty_of_a_difference():
    """The spread counts as at least 0.01; NaN and infinity are refused, or show nothing."""
    assert Mean.of(np.zeros(4)).error == 0.005
    for values in (np.zeros(1), np.array([0.0, np.nan]), np.array([0.0, np.inf])):
        with pytest.raises(ArgumentError, match="a mean with an error needs two rows of finite values"):
            Mean.of(values)
    nothing = equivalence({(0, 1): Mean(np.nan, np.nan, 5).interval}, 1.0, 0.01)
    assert (nothing.is_alike, nothing.is_different) == (False, False)


@pytest.mark.parametrize(
    ("pairs", "margin"), [({}, 1.0), ({(0, 1): Mean(0, 1, 5).interval}, 0.0), ({(0, 1): Mean(0, 1, 5).interval}, np.nan)]
)
def test_equivalence_needs_a_pair_and_a_margin(pairs, margin):
    with pytest.raises(ArgumentError, match="equivalence needs a pair at least and a margin above 0"):
        equivalence(pairs, margin, 0.01)
