"""Intervals by betting: they hold at every look, whatever values are distributed like, and are what the formula says."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_induction.errors import ArgumentError
from pytest_induction.records import Estimate
from pytest_induction.statistics import (
    FRACTIONS,
    SHARES,
    bounded_intervals,
    is_above,
    known_mean,
    log_capital,
    lower_ends,
    mean_interval,
    more_rows,
)

ROUND, LOOKS, COLUMNS, RATE = 28, 8, 600, 0.02
PERIODS = ROUND // 4  # four rows of each
UNLIKE = np.array([0.0, 0.0, 0.02, 0.05, 0.6, 0.98, 1.0])  # what a head has at each of seven periods


def drawn(values, chances, shape):
    return np.random.default_rng(0).choice(values, shape, p=chances)


def by_period(shape):
    """One or nothing, at each period as often as its mean says."""
    means = np.resize(np.repeat(UNLIKE, ROUND // PERIODS), shape[0])
    return (np.random.default_rng(0).random(shape) < means[:, None]).astype(float)


SHAPES = {  # name -> rows of the shape asked for, their mean
    "one in 35 %": (lambda shape: drawn([0.0, 1.0], [0.65, 0.35], shape), 0.35),
    "one in 5 %": (lambda shape: drawn([0.0, 1.0], [0.95, 0.05], shape), 0.05),
    "0.33 in 90 %": (lambda shape: drawn([0.0, 0.33], [0.1, 0.9], shape), 0.297),
    "near one, and nothing in 2 %": (lambda shape: drawn([0.0, 0.97], [0.02, 0.98], shape), 0.9506),
    "periods unlike each other": (by_period, float(UNLIKE.mean())),
    "even": (lambda shape: np.random.default_rng(0).random(shape), 0.5),
}


def missed(intervals, rows, low, high):
    """How often, of all columns, an interval lies above `low` at any look, and how often one lies below `high`."""
    looks = [intervals(rows[: ROUND * (look + 1)]) for look in range(LOOKS)]
    above = np.array([[each.low > low for each in estimates] for estimates in looks]).any(axis=0)
    below = np.array([[each.high < high for each in estimates] for estimates in looks]).any(axis=0)
    return above.mean(), below.mean()


def most(rate, count):
    """What a rate may come to in so many draws."""
    return rate + 3 * math.sqrt(rate / count)


def by_betting(rows):
    return bounded_intervals(rows, RATE, RATE)


def by_student(rows):
    """Student's interval, which has to share its rate among the looks."""
    each = 2 * RATE / LOOKS * rows.shape[1]  # both ends, and every column by itself
    return mean_interval(rows, each)


@pytest.mark.parametrize("name", SHAPES)
def test_either_end_misses_at_most_at_its_rate_over_all_looks(name):
    """On skewed shapes too, looked at after every round."""
    draw, mean = SHAPES[name]
    above, below = missed(by_betting, draw((ROUND * LOOKS, COLUMNS)), mean, mean)
    assert above <= most(RATE, COLUMNS) and below <= most(RATE, COLUMNS), (above, below)


@pytest.mark.parametrize("name", SHAPES)
def test_the_rate_of_a_verdict_holds_in_thousands_of_draws(name):
    """Neither end passes the mean more often than once in a thousand, whatever the look."""
    (draw, mean), rate, count = SHAPES[name], 1e-3, 5000
    rows = draw((ROUND * LOOKS, count))
    for values, threshold in ((rows, mean), (1 - rows, 1 - mean)):
        ever = np.zeros(count, dtype=bool)
        for look in range(LOOKS):
            ever |= is_above(values[: ROUND * (look + 1)], threshold, rate)
        assert ever.mean() <= most(rate, count), ever.mean()


def test_a_head_just_below_the_threshold_is_not_called_above_it():
    """0.33 in nine rows of ten, which is 0.297 on the mean: Student's interval says so of every twentieth, this one does not."""
    rows = SHAPES["0.33 in 90 %"][0]((ROUND * LOOKS, COLUMNS))
    assert missed(by_betting, rows, 0.3, 0.297)[0] <= most(RATE, COLUMNS)
    assert missed(by_student, rows, 0.3, 0.297)[0] > 1.5 * most(RATE, COLUMNS)


@pytest.mark.parametrize("name", ["0.33 in 90 %", "one in 5 %", "near one, and nothing in 2 %"])
def test_students_interval_fails_the_same_simulation(name):
    """The guard above can fail: these shapes are too skewed for it, even with its rate shared among the looks."""
    draw, mean = SHAPES[name]
    assert max(missed(by_student, draw((ROUND * LOOKS, COLUMNS)), mean, mean)) > 2 * most(RATE, COLUMNS)


def test_intervals_get_narrow():
    """What covers is not worth much if it covers everything: of 224 rows a tenth to each side, of a clear head less."""
    draw, _ = SHAPES["one in 35 %"]
    wide = by_betting(draw((ROUND * LOOKS, 50)))
    assert max(each.high - each.low for each in wide) < 0.3
    [clear] = bounded_intervals(np.full((ROUND, 1), 0.9), 1e-3 / 300, 1e-3 / 300)
    assert clear.low > 0.5 and clear.value == pytest.approx(0.9)
    [none] = bounded_intervals(np.full((ROUND, 1), 0.01), 1e-3 / 300, 1e-3)
    assert none.high < 0.3 and none.low < 0.01


values_of_rows = st.lists(st.floats(0, 1), min_size=1, max_size=28)
thresholds = st.floats(0.01, 1.0)


@given(values_of_rows, thresholds)
def test_strata_only_widen(values, threshold):
    """Rows that differ win less than as many that are all at their mean, so differences between periods never help."""
    rows = np.array(values)[:, None]
    alike = np.full_like(rows, rows.mean())
    assert log_capital(rows, threshold)[0] <= log_capital(alike, threshold)[0] + 1e-9


@given(values_of_rows, thresholds, thresholds)
def test_a_higher_threshold_wins_less(values, one, other):
    """So an interval is an interval: whatever is shown to be above a threshold is above every lower one."""
    rows = np.array(values)[:, None]
    low, high = sorted((one, other))
    assert log_capital(rows, high)[0] <= log_capital(rows, low)[0] + 1e-9


def capital(values, threshold):
    """The capital of all gamblers, bet by bet."""
    total = 0.0
    for fraction, share in zip(FRACTIONS.tolist(), SHARES.tolist(), strict=True):
        own = share
        for value in values:
            stake = fraction * own
            own = own - stake + stake * value / threshold
        total += own
    return total


@given(values_of_rows, thresholds)
def test_the_capital_is_that_of_a_loop_over_bets(values, threshold):
    """Each stakes a fraction of what is left, and gets it back times value / threshold."""
    slow = capital(values, threshold)
    found = math.exp(log_capital(np.array(values)[:, None], threshold)[0])
    assert found == pytest.approx(slow, rel=1e-9, abs=1e-300)


@pytest.mark.parametrize("seed", range(3))
def test_the_ends_are_where_the_capital_passes_one_over_the_rate(seed):
    """From outside in thousandths of the range; the rates of both ends are their own."""
    rows = np.random.default_rng(seed).beta(0.4, 0.9, (40, 1)) * 3 - 1  # from -1 to 2
    [found] = bounded_intervals(rows, 0.01, 0.1, lowest=-1.0, highest=2.0, unit="nats")
    shares = ((rows[:, 0] + 1) / 3).tolist()
    grid = [step / 1000 for step in range(1, 1001)]
    low = max((each for each in grid if capital(shares, each) > 1 / 0.01), default=0.0)
    high = 1 - max((each for each in grid if capital([1 - share for share in shares], each) > 1 / 0.1), default=0.0)
    assert found.low == pytest.approx(3 * low - 1, abs=0.0031)
    assert found.high == pytest.approx(3 * high - 1, abs=0.0031)
    assert found.value == pytest.approx(rows.mean()) and found.unit == "nats"


@given(st.lists(st.floats(0, 1), min_size=2, max_size=20), st.sampled_from([1e-6, 1e-3, 0.05]))
def test_the_mean_is_inside_and_a_smaller_rate_widens(values, rate):
    rows = np.array(values)[:, None]
    [found], [wider] = bounded_intervals(rows, rate, rate), bounded_intervals(rows, rate / 10, rate / 10)
    assert 0 <= found.low <= found.value <= found.high <= 1
    assert wider.low <= found.low and wider.high >= found.high


def test_columns_have_nothing_to_do_with_each_other():
    """Many columns, measured in several parts, have the intervals that each has alone."""
    rows = np.random.default_rng(3).random((56, 4000))
    together = bounded_intervals(rows, 1e-3, 1e-3)
    for column in (0, 1999, 3120, 3121, 3999):
        [alone] = bounded_intervals(rows[:, [column]], 1e-3, 1e-3)
        for end in ("low", "value", "high"):
            assert getattr(alone, end) == pytest.approx(getattr(together[column], end), abs=1e-9)


def test_is_above_is_what_the_lower_end_says():
    rows = np.random.default_rng(4).random((60, 200)) ** 2
    ends = lower_ends(rows, 0.01)
    assert np.array_equal(is_above(rows, 0.2, 0.01), ends > 0.2)
    assert 0 < (ends > 0.2).mean() < 1


def test_as_many_rows_more_as_it_says_tell_the_mean_from_the_threshold():
    """If they are like those before, and not too unlike each other: with half as many it is not told, with twice as many it is."""
    rows = np.random.default_rng(5).permuted(np.linspace(0.5, 0.7, 560))[:, None]
    [found] = bounded_intervals(rows[:56], 1e-6, 1e-6)
    assert found.low < 0.57 < found.value
    more = more_rows(found, 0.57, 56)
    half, twice = (bounded_intervals(rows[: 56 + count], 1e-6, 1e-6)[0] for count in (more // 2, 2 * more))
    assert half.low < 0.57 < twice.low
    assert more_rows(Estimate(0.5, 0.4, 0.6), 0.3, 60) == 1


@pytest.mark.parametrize(
    ("values", "options", "said"),
    [
        (np.zeros((0, 2)), {}, "an interval needs finite values, got 0 rows"),
        (np.array([[0.5, np.nan], [0.5, np.nan]]), {}, "an interval needs finite values, got 2 rows"),
        (np.array([[0.5], [np.inf]]), {}, "an interval needs finite values, got 2 rows"),
        (np.array([[0.5], [1.2]]), {}, "values must lie from 0.0 to 1.0, got 0.5 to 1.2"),
        (np.array([[0.5], [-1.5]]), {"lowest": -1.0}, "values must lie from -1.0 to 1.0, got -1.5 to 0.5"),
        (np.array([[0.5]]), {"below": 0.0}, "rates must lie between 0 and 1, got 0.0 and 0.01"),
        (np.array([[0.5]]), {"above": 1.0}, "rates must lie between 0 and 1, got 0.01 and 1.0"),
    ],
)
def test_what_has_no_interval_is_refused_in_one_line(values, options, said):
    with pytest.raises(ArgumentError) as caught:
        bounded_intervals(values, **{"below": 0.01, "above": 0.01, **options})
    assert str(caught.value) == said


@pytest.mark.parametrize("most", [1.004, 1.06])
def test_rounding_is_no_error(most):
    """A sum of masses may pass 1 by what its precision leaves, and by more where attention scores are large: it counts as 1."""
    [found] = bounded_intervals(np.full((28, 1), most), 0.01, 0.01)
    assert (found.value, found.high) == (1.0, 1.0)


def test_a_value_that_was_not_taken_counts_for_nothing():
    """Columns of which some rows are NaN have the intervals, and the means, of the others alone."""
    rows = np.random.default_rng(6).random((56, 3))
    rows[20:, 1] = rows[::2, 2] = np.nan
    found = bounded_intervals(rows, 1e-3, 1e-3)
    for column, each in enumerate(found):
        values = rows[:, [column]]
        [alone] = bounded_intervals(values[~np.isnan(values[:, 0])], 1e-3, 1e-3)
        for end in ("low", "value", "high"):
            assert getattr(each, end) == pytest.approx(getattr(alone, end), abs=1e-9)
    assert known_mean(rows).tolist() == [each.value for each in found]
    assert np.isnan(known_mean(np.full((2, 1), np.nan))).all()
