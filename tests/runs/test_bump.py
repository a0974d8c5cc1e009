"""The bump of the loss against a brute-force hull, against planted plateaus, and where there is only noise."""

import numpy as np
import pytest

from pytest_induction.records import Verdict
from pytest_induction.runs.phase_change.bump import find_bump, scatter_of
from pytest_induction.runs.phase_change.finding import find_phase_changes
from tests.runs.curves import log_steps, logistic, noise_of, run_of


def slow_hull(amount, loss):
    """At each point, the lowest chord of any two points, or the point itself: the lower convex hull by its definition."""
    hull = loss.copy()
    for place in range(len(loss)):
        for left in range(place):
            for right in range(place + 1, len(loss)):
                share = (amount[place] - amount[left]) / (amount[right] - amount[left])
                hull[place] = min(hull[place], (1 - share) * loss[left] + share * loss[right])
    return hull


def bump_of(steps, loss, **options):
    return find_phase_changes(run_of(steps, loss=loss), **options).loss_bump


def plateau_then_drop(steps, drop=1.0):
    """A convex fall, held up by `drop` until step 1,000."""
    return 3 + 3 * np.exp(-steps / 60) + drop * (1 - logistic(np.log10(steps), 3.0, 0.1))


@pytest.mark.parametrize("seed", range(12))
def test_the_height_is_that_above_the_lowest_chord(seed):
    """Fewer points than are averaged, so that each stands for itself."""
    rng = np.random.default_rng(seed)
    amount = np.cumsum(rng.uniform(0.5, 1.5, 25))
    loss = np.sort(rng.normal(size=25))[::-1] if seed % 2 else 5 / amount + 0.01 * rng.normal(size=25)
    found = find_bump(np.arange(25.0), amount, loss)
    above = loss - slow_hull(amount, loss)
    assert found.height == pytest.approx(above.max(), abs=1e-9)
    assert found.knee == above.argmax()
    touching = np.flatnonzero(above < 1e-9)
    assert found.end == touching[touching > found.knee][0]
    assert found.first_knee <= found.knee <= found.last_knee


@pytest.mark.parametrize(
    "loss",
    [
        lambda a: 2 + 8 * a**-0.3,
        lambda a: 2 + 4 * np.exp(-a / 500),
        lambda a: 5 - 4 * a / a[-1],
        lambda a: 0 * a + 3,
        lambda a: (a / a[-1]) ** 2,
    ],
    ids=["power", "exponential", "line", "constant", "rising"],
)
def test_a_convex_loss_has_no_bump(loss):
    steps = log_steps(50, 1, 20_000)
    found = bump_of(steps, loss(steps.astype(float)))
    assert (found.verdict, found.reason) == (Verdict.REFUTED, "no_bump")
    assert found.change.value == pytest.approx(0, abs=1e-9)


def test_a_power_law_is_convex_over_tokens_and_not_over_their_logarithm():
    """A loss that bends down over the logarithm is no bump: the hull is taken over tokens."""
    steps = log_steps(50, 1, 20_000)
    loss = 10 - np.log10(1 + steps / 500)
    assert (np.diff(loss) / np.diff(np.log10(steps)))[-1] < (np.diff(loss) / np.diff(np.log10(steps)))[0] - 0.5
    assert bump_of(steps, loss).reason == "no_bump"


def test_a_planted_plateau_has_its_bump_where_it_ends():
    steps = log_steps(60)
    loss = plateau_then_drop(steps)
    found = bump_of(steps, loss)
    assert (found.verdict, found.reason) == (Verdict.SHOWN, "bump")
    assert 700 < found.onset.step.value < 1000 < found.end.step.value < 1500
    assert found.onset.step.value < found.midpoint.step.value < found.end.step.value
    assert found.change.value == pytest.approx((loss - slow_hull(steps.astype(float), loss)).max(), abs=0.03)
    assert found.change.unit == "nats"
    assert found.midpoint.tokens.value == pytest.approx(found.midpoint.step.value * 2048)


@pytest.mark.parametrize(("drop", "verdict"), [(1.0, "SHOWN"), (0.3, "SHOWN"), (0.03, "REFUTED")])
def test_only_a_bump_above_the_threshold_counts(drop, verdict):
    steps = log_steps(80)
    assert bump_of(steps, plateau_then_drop(steps, drop)).verdict == verdict


def test_the_threshold_of_the_height_is_the_users():
    steps = log_steps(80)
    loss = plateau_then_drop(steps, 0.3)
    height = bump_of(steps, loss).change.value
    assert bump_of(steps, loss, min_change={"loss": height * 1.2}).verdict is Verdict.REFUTED


@pytest.mark.parametrize("size", [0.1, 0.3])
@pytest.mark.parametrize("spacing", ["log", "linear"])
def test_noise_alone_makes_no_bump(size, spacing):
    """Whatever the shape below it; of 48 losses one at most is called SHOWN."""
    false = []
    for seed in range(48):
        count = (40, 100, 400)[seed % 3]
        steps = log_steps(count, 1, 20_000) if spacing == "log" else np.arange(count) * 50
        shape = (3.0 + 0 * steps, 2 + 8 * (steps + 1.0) ** -0.3)[seed % 2]
        false.append(bump_of(steps, shape + noise_of(len(steps), size, seed)).verdict is Verdict.SHOWN)
    assert sum(false) <= 1


def test_a_bump_is_seen_through_noise():
    """The guard of the one before: with the same noise a planted bump is called SHOWN."""
    steps = np.arange(1, 2000, 5)
    found = [bump_of(steps, plateau_then_drop(steps, 2.0) + noise_of(len(steps), 0.1, seed)) for seed in range(10)]
    assert all(each.verdict is Verdict.SHOWN for each in found)
    assert all(600 < each.midpoint.step.value < 1500 for each in found)


@pytest.mark.parametrize("seed", range(20))
def test_a_spike_is_no_bump(seed):
    """However high, however long it takes to come back, by itself or after a shift of the data."""
    rng = np.random.default_rng(seed)
    steps = np.arange(0, 20_000, 20)
    after = np.clip(np.arange(1000) - rng.integers(100, 900), 0, None)
    spike = np.where(after > 0, rng.uniform(0.3, 4) * np.exp(-after / rng.uniform(2, 200)), 0)
    loss = 2 + 8 * (steps + 30.0) ** -0.3 + spike + noise_of(1000, 0.02, seed)
    assert bump_of(steps, loss).verdict is not Verdict.SHOWN


def test_a_bump_beside_a_spike_is_found():
    """The guard of the one before."""
    steps = np.arange(1, 6000, 5)
    loss = plateau_then_drop(steps, 2.0) + noise_of(len(steps), 0.05, 0)
    loss[900:910] += 3
    found = bump_of(steps, loss)
    assert found.verdict is Verdict.SHOWN and 600 < found.midpoint.step.value < 1500


def test_a_bump_of_fewer_than_three_snapshots_is_undetermined():
    """The loss falls by 4 nats between the second snapshot and the third: twice as fast as before, and that is all that is known."""
    found = bump_of(np.arange(20) * 1000, np.r_[9, 8, np.linspace(4, 3, 18)])
    assert (found.verdict, found.reason) == (Verdict.UNDETERMINED, "few_inside")


def test_few_losses_tell_of_no_bump():
    found = bump_of(log_steps(20), np.r_[np.linspace(5, 3, 7), np.full(13, np.nan)])
    assert (found.verdict, found.reason) == (Verdict.UNDETERMINED, "few_snapshots")
    assert "7 snapshots" in found.summary


def test_losses_that_are_missing_are_left_out():
    steps = log_steps(80)
    loss = plateau_then_drop(steps)
    gaps = np.where(np.arange(len(steps)) % 7 == 3, np.nan, loss)
    assert bump_of(steps, gaps).midpoint.step.value == pytest.approx(bump_of(steps, loss).midpoint.step.value, rel=0.15)


def test_a_scheduled_change_beside_the_bump_is_named():
    steps = log_steps(60)
    run = run_of(steps, loss=plateau_then_drop(steps), schedule=[(900, "the learning rate drops"), (20, "the warm-up ends")])
    assert find_phase_changes(run).loss_bump.confounders == ("the learning rate drops (step 900)",)


@pytest.mark.parametrize("size", [0.01, 1.0])
def test_scatter_is_that_of_single_values_whatever_the_curve_does(size):
    x = np.linspace(0, 20, 2000)
    assert scatter_of(3 * np.sin(x) + noise_of(2000, size, 0)) == pytest.approx(size, rel=0.1)
    assert scatter_of(np.array([1.0, 5.0])) == 0
