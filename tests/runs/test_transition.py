"""Transitions against an independent least-squares search, against curves whose answer is known, and over simulated noise."""

import numpy as np
import pytest
from scipy.optimize import least_squares

from pytest_induction.runs.phase_change.transition import MOST_POINTS, find_transition, thinned
from tests.runs.curves import logistic, noise_of, ramp

SHAPES = {"ramp": ramp, "logistic": logistic}


def curve(shape, x, place, width, level=0.1, change=0.7, before=0.0, after=0.0):
    """Two plateaus with slopes and a transition between them."""
    share = SHAPES[shape](x, place, width)
    return level + change * share + (x - place) * (before * (1 - share) + after * share)


def slow_search(x, y, starts=10):
    """The lowest squared residuals that scipy finds over the whole family, from many starts."""
    rng = np.random.default_rng(0)
    lowest = (x[-1] - x[0]) / 1000
    bounds = ([x[0], lowest, *[-np.inf] * 4], [x[-1], x[-1] - x[0], *[np.inf] * 4])
    best = np.inf
    for shape in SHAPES:
        for _ in range(starts):
            first = [rng.uniform(x[0], x[-1]), rng.uniform(2, 40) * lowest * 10, y[:5].mean(), y[-5:].mean() - y[:5].mean(), 0, 0]
            first[1] = min(first[1], x[-1] - x[0])
            found = least_squares(lambda p, shape=shape: curve(shape, x, *p) - y, first, bounds=bounds, max_nfev=200)
            best = min(best, 2 * found.cost)
    return best


@pytest.mark.parametrize("seed", range(8))
def test_no_other_transition_fits_better(seed):
    """Of the whole family, as searched by scipy from many starts; all points lie in the neighbourhood that is fitted."""
    rng = np.random.default_rng(seed)
    x = np.linspace(0, 1.2, int(rng.integers(25, 60)))
    shape = ["ramp", "logistic"][seed % 2]
    slopes = rng.uniform(-0.1, 0.1, 2)
    clean = curve(shape, x, rng.uniform(0.5, 0.7), rng.choice([0.05, 0.15, 0.3]), 0.1, 0.7, *slopes)
    y = clean + noise_of(len(x), [0.01, 0.03][seed // 4], seed, [0.0, 0.5][seed % 2])
    found = find_transition(x, y)
    reference = slow_search(x, y)
    assert found.costs[2] <= 1.03 * reference
    assert found.costs[2] >= 0.9 * reference  # no cost that a transition cannot have


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("place", "width"), [(0.8, 0.1), (1.5, 0.2), (1.93, 0.4), (2.2, 0.9)])
def test_what_a_curve_without_noise_was_made_with_is_found(shape, place, width):
    x = np.linspace(0, 3, 120)
    found = find_transition(x, curve(shape, x, place, width))
    assert found.midpoint == pytest.approx(place, abs=0.005)
    assert found.width == pytest.approx(width, rel=0.06)
    assert found.onset == pytest.approx(place - width / 2, abs=0.01 + width * 0.03)
    assert found.end == pytest.approx(place + width / 2, abs=0.01 + width * 0.03)
    assert found.change == pytest.approx(0.8 * 0.7, rel=0.03)
    low, high = found.interval(1)
    assert low <= place <= high


def test_slopes_of_the_plateaus_do_not_move_the_transition():
    x = np.linspace(0, 3, 150)
    found = find_transition(x, curve("logistic", x, 1.6, 0.2, before=0.08, after=-0.05))
    assert found.midpoint == pytest.approx(1.6, abs=0.01)
    assert found.width == pytest.approx(0.2, rel=0.15)


@pytest.mark.parametrize("sign", [1, -1])
def test_a_fall_is_found_like_a_rise(sign):
    x = np.linspace(0, 3, 100)
    found = find_transition(x, sign * curve("ramp", x, 1.4, 0.3))
    assert found.change * sign == pytest.approx(0.56, rel=0.03)


@pytest.mark.parametrize("points", [20, 40, 120])
def test_a_jump_between_two_points_is_known_no_better_than_the_gap(points):
    """The interval of the midpoint spans the gap, whatever happened in it, and little more."""
    x = np.linspace(0, 3, points)
    before = int(points * 0.55)
    found = find_transition(x, np.where(np.arange(points) <= before, 0.1, 0.8))
    low, high = found.interval(1)
    assert low <= x[before] + 0.05 * found.gap
    assert high >= x[before + 1] - 0.05 * found.gap
    assert high - low <= 1.6 * found.gap
    assert found.gap == pytest.approx(x[1] - x[0])


def noisy(seed=3, shape="logistic"):
    x = np.linspace(0.5, 3.5, 80)
    return x, curve(shape, x, 2.1, 0.25) + noise_of(80, 0.02, seed, 0.3)


@pytest.mark.parametrize("scale", [1e-6, -1.0, 1e6])
@pytest.mark.parametrize("shift", [0.0, 100.0])
def test_scaling_and_shifting_the_values_changes_no_place(scale, shift):
    x, y = noisy()
    found, other = find_transition(x, y), find_transition(x, scale * (y + shift))
    for name in ("onset", "midpoint", "end"):
        assert getattr(other, name) == pytest.approx(getattr(found, name), abs=2e-3)
    assert other.change == pytest.approx(scale * found.change, rel=0.02)
    assert other.interval(1) == pytest.approx(found.interval(1), abs=5e-3)
    assert other.n_effective == pytest.approx(found.n_effective, rel=0.02)


@pytest.mark.parametrize("shift", [-3.0, 9.0])
def test_shifting_the_axis_shifts_the_places(shift):
    """As where tokens are counted instead of steps."""
    x, y = noisy()
    found, other = find_transition(x, y), find_transition(x + shift, y)
    assert other.midpoint - shift == pytest.approx(found.midpoint, abs=2e-3)
    assert other.width == pytest.approx(found.width, rel=0.02)
    assert other.costs == pytest.approx(found.costs, rel=1e-3)


def test_the_intervals_hold_what_the_curves_were_made_with():
    """Of 128 curves, a quarter for each kind of noise, nine in ten or more for places and for widths, and not by being of no use."""
    held, widths_held, half = [], [], []
    for seed in range(128):
        rng = np.random.default_rng(seed)
        likeness, size = [(0.0, 0.01), (0.0, 0.05), (0.5, 0.03), (0.8, 0.02)][seed // 32]
        x = np.linspace(0, 3, int(rng.choice([40, 60, 100])))
        place, width = rng.uniform(1, 2), rng.choice([0.1, 0.2, 0.4])
        found = find_transition(
            x, curve(["ramp", "logistic"][seed % 2], x, place, width) + noise_of(len(x), size, seed + 1000, likeness)
        )
        (low, high), (narrow, wide) = found.interval(1), found.interval(3)
        held.append(low <= place <= high)
        widths_held.append(narrow <= width <= wide)
        half.append((high - low) / 2)
    assert np.mean(held) >= 0.9
    assert np.mean(widths_held) >= 0.9
    assert np.median(half) < 0.03


def test_a_wider_interval_is_asked_for_by_a_smaller_error_rate():
    x, y = noisy()
    narrow, wide = (find_transition(x, y, rate).interval(1) for rate in (0.3, 0.01))
    assert wide[0] < narrow[0] < narrow[1] < wide[1]


def test_likeness_of_neighbours_makes_the_interval_wider():
    """The same size of noise is worth fewer values where they are alike."""
    x = np.linspace(0, 3, 100)
    clean = curve("logistic", x, 1.5, 0.3)
    alike, apart = ([find_transition(x, clean + noise_of(100, 0.03, seed, like)) for seed in range(8)] for like in (0.8, 0.0))
    assert max(found.n_effective for found in alike) < np.median([found.n_effective for found in apart])
    spans = [np.median([np.diff(found.interval(1))[0] for found in each]) for each in (alike, apart)]
    assert spans[0] > 1.2 * spans[1]


def test_averaging_many_points_changes_next_to_nothing():
    """10,000 points, of which the fit sees 200 means, give the midpoint of 200 points that lie there."""
    many = np.log10(np.arange(1, 10_001))
    few = np.linspace(0, 4, 200)
    found, other = (find_transition(x, curve("logistic", x, 3.2, 0.2)) for x in (many, few))
    assert len(thinned(many, many).x) <= MOST_POINTS
    assert found.midpoint == pytest.approx(3.2, abs=0.003)
    assert found.midpoint == pytest.approx(other.midpoint, abs=0.005)
    assert found.width == pytest.approx(0.2, rel=0.06)


def test_thinning_keeps_the_mean_of_equal_parts():
    x = np.sort(np.random.default_rng(0).uniform(0, 1, 5000))
    few = thinned(x, 3 * x, 50)
    assert len(few.x) == 50
    assert few.y == pytest.approx(3 * few.x)
    parts = (x * 50 / (x[-1] - x[0]) - x[0] * 50 / (x[-1] - x[0])).astype(int).clip(0, 49)
    assert few.x == pytest.approx([x[parts == part].mean() for part in range(50)])


def test_few_points_are_left_as_they_are():
    x = np.linspace(0, 1, MOST_POINTS)
    assert thinned(x, x).x is x


@pytest.mark.parametrize("value", [0.0, 0.3, -1e6, 1e-9])
@pytest.mark.parametrize("points", [8, 60, 500])
def test_a_constant_series_has_no_change_and_no_place_that_is_not_finite(value, points):
    x = np.linspace(0, 3, points)
    found = find_transition(x, np.full(points, value))
    assert found.change == pytest.approx(0, abs=1e-6 * max(1, abs(value)))
    assert np.isfinite([found.onset, found.midpoint, found.end, found.noise, found.n_effective, *found.costs]).all()


@pytest.mark.parametrize(
    ("name", "bends"),
    [
        ("line", lambda x: 0.2 * x),
        ("bend", lambda x: 0.4 * np.maximum(x - 1.5, 0)),
        ("transition", lambda x: 0.7 * ramp(x, 1.5, 0.4)),
    ],
)
@pytest.mark.parametrize("shift", [0.0, 9.0])
@pytest.mark.parametrize("stretch", [1.0, 1e-4])
def test_a_bend_is_told_from_a_transition(name, bends, shift, stretch):
    """Also over a short record late in a training."""
    x = np.linspace(0, 3, 80)
    found = find_transition(x * stretch + shift, bends(x) + noise_of(80, 0.01, 1))
    assert found.is_no_better_than_a_bend == (name != "transition")


def test_the_fewest_points_that_can_be_fitted_are_fitted():
    x = np.linspace(0, 2, 8)
    found = find_transition(x, np.array([0.1, 0.1, 0.1, 0.1, 0.8, 0.8, 0.8, 0.8]))
    assert x[3] <= found.midpoint <= x[4]


def test_the_inputs_are_left_as_they_were():
    x, y = noisy()
    before = x.copy(), y.copy()
    find_transition(x, y)
    assert (x == before[0]).all() and (y == before[1]).all()
