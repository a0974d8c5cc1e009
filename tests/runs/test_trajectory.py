"""The path of token losses against slow references, and against paths whose turns are known."""

import math

import numpy as np
import pytest

from pytest_induction.errors import ArgumentError
from pytest_induction.runs.trajectory import (
    heading_replicates,
    headings,
    headings_without_noise,
    loss_slopes,
    principal_path,
    turning_angles,
)

TOKENS = 600
X = np.linspace(3.0, 6.0, 91)


def directions(count, seed=0, tokens=TOKENS):
    """Orthogonal directions of length sqrt(tokens): a step of 1 along one is one nat a token."""
    rng = np.random.default_rng(seed)
    return np.linalg.qr(rng.normal(size=(tokens, count)))[0].T * math.sqrt(tokens)


def cornered(x=X, corner=4.5, seed=0, tokens=TOKENS):
    """A path that goes straight, turns at a right angle and goes straight on, as far and as fast."""
    one, two = directions(2, seed, tokens)
    return 5.0 + np.clip(x - corner, None, 0)[:, None] * one + np.clip(x - corner, 0, None)[:, None] * two


def noise(size, seed=1, shape=(91, TOKENS)):
    return size * np.random.default_rng(seed).normal(size=shape)


class TestPrincipalPath:
    def test_it_is_the_eigenvectors_of_the_covariance(self):
        """By loops over pairs of tokens, and power iteration: nothing of the decomposition that is tested."""
        losses = np.random.default_rng(3).normal(size=(12, 7)) * [3, 2.2, 1.5, 1, 0.5, 0.3, 0.1]
        found = principal_path(losses, 2)
        centred = [[value - sum(column) / 12 for value, column in zip(row, losses.T, strict=True)] for row in losses]
        covariance = np.array([[sum(row[a] * row[b] for row in centred) for b in range(7)] for a in range(7)])
        total = np.trace(covariance)
        for component in range(2):
            vector = np.ones(7)
            for _ in range(3000):
                vector = covariance @ vector
                vector /= np.linalg.norm(vector)
            size = float(vector @ covariance @ vector)
            places = np.array(centred) @ vector / math.sqrt(7)
            places *= np.sign(places[-1] - places[0])
            np.testing.assert_allclose(found.places[:, component], places, atol=1e-8)
            assert found.shares[component] == pytest.approx(size / total)
            covariance = covariance - size * np.outer(vector, vector)

    def test_a_corner_lies_in_a_plane_in_nats_a_token(self):
        found = principal_path(cornered(), 3)
        assert found.shares[:2].sum() == pytest.approx(1.0) and found.shares[2] == pytest.approx(0, abs=1e-12)
        assert np.linalg.norm(found.places[-1] - found.places[0]) == pytest.approx(1.5 * math.sqrt(2))

    def test_the_sign_does_not_depend_on_that_of_the_decomposition(self):
        losses = cornered() + noise(0.01)
        one, other = principal_path(losses), principal_path(-losses)
        np.testing.assert_allclose(one.places, other.places)
        assert (one.places[-1] > one.places[0])[0]

    def test_a_path_that_comes_back_has_a_sign_too(self):
        there = np.array([0.0, 1.0, 2.0, 1.0, 0.0])[:, None] * np.array([0.2, -0.9])
        assert principal_path(there, 1).directions[0, 1] > 0 < principal_path(-there, 1).directions[0, 1]

    @pytest.mark.parametrize("count", [0, 5, 8])
    def test_more_directions_than_there_are_is_refused(self, count):
        with pytest.raises(ArgumentError, match="`n_components` must be 1 to 4 for 5 snapshots, got"):
            principal_path(noise(1, shape=(5, 8)), count)

    def test_a_path_that_does_not_move_is_refused(self):
        with pytest.raises(ArgumentError, match="does not move"):
            principal_path(np.ones((5, 8)))


class TestTurningAngles:
    def test_they_are_those_of_slopes_by_loops(self):
        losses = cornered(tokens=9) + noise(0.05, shape=(len(X), 9))
        found = turning_angles(X, losses, window=0.21)
        for index in (20, 44, 45, 46, 60):

            def slope(kept):
                middle = sum(X[k] for k in kept) / len(kept)
                weight = sum((X[k] - middle) ** 2 for k in kept)
                return [sum((X[k] - middle) * losses[k, token] for k in kept) / weight for token in range(9)]

            before = [k for k in range(len(X)) if X[index] - 0.21 <= X[k] <= X[index]]
            after = [k for k in range(len(X)) if X[index] < X[k] <= X[index] + 0.21]
            lengths = [sum(a * b for a, b in zip(slope(part[::2]), slope(part[1::2]), strict=True)) for part in (before, after)]
            product = sum(a * b for a, b in zip(slope(before), slope(after), strict=True))
            cosine = product / math.sqrt(lengths[0] * lengths[1])
            assert found[index] == pytest.approx(math.degrees(math.acos(max(-1, min(1, cosine)))), abs=1e-6)

    def test_a_corner_is_a_right_angle_and_a_straight_way_none(self):
        found = turning_angles(X, cornered())
        corner = int(np.abs(X - 4.5).argmin())
        assert found[corner] == pytest.approx(90, abs=0.01)
        assert np.nanmax(np.abs(found[:30])) < 1e-3 and np.nanargmax(found) in range(corner - 1, corner + 2)

    def test_noise_of_single_snapshots_adds_nothing(self):
        """Undebiased lengths would make it 42 degrees where the path goes straight."""
        found = turning_angles(X, np.outer(X, directions(1)[0]) + noise(0.1), window=0.3)
        assert np.nanmedian(found) < 15

    def test_a_random_walk_has_a_right_angle_everywhere(self):
        steps = np.cumsum(noise(0.1, 5), axis=0)
        found = turning_angles(X, steps)
        assert 80 < np.nanmedian(found) < 100

    def test_noise_alone_and_few_snapshots_have_none(self):
        assert np.isnan(turning_angles(X, noise(1.0), window=0.3)).mean() > 0.5
        assert np.isnan(turning_angles(X, cornered(), window=0.1)).all()
        assert np.isnan(turning_angles(X, cornered())[:3]).all()

    @pytest.mark.parametrize(("x", "window"), [(X[::-1], 0.2), (X[:-1], 0.2), (X, 0), (X, math.nan), (X, math.inf)])
    def test_an_axis_or_a_window_that_is_none_is_refused(self, x, window):
        with pytest.raises(ArgumentError, match=r"`x` must rise|`window` must be above 0"):
            turning_angles(x, cornered(), window=window)


class TestHeadings:
    def test_they_are_those_of_loops(self):
        losses = cornered(tokens=7) + noise(0.2, shape=(len(X), 7))
        found = headings(losses)
        count = len(losses)
        for index in (1, 30, 60, count - 4, count - 3, count - 2, count - 1):
            last = [k for k in (count - 3, count - 2, count - 1) if k != index]
            end = [sum(losses[k][t] - losses[0][t] for k in last) / len(last) for t in range(7)]
            way = [losses[index][t] - losses[0][t] for t in range(7)]
            length = math.sqrt(sum(a * a for a in end) * sum(b * b for b in way))
            cosine = sum(a * b for a, b in zip(end, way, strict=True)) / length
            assert found[index] == pytest.approx(math.degrees(math.acos(cosine)), abs=1e-6)
        assert math.isnan(found[0])

    def test_a_corner_has_45_degrees_before_it_and_falls_to_none(self):
        found = headings(cornered())
        before = (X[0] < X) & (X < 4.5)
        assert np.abs(found[before] - 45).max() < 1.0 and found[-1] < 1.5
        assert (np.diff(found[X >= 4.5][:-2]) < 0).all()

    def test_a_straight_way_has_none_however_fast_it_goes(self):
        assert np.nanmax(headings(np.outer(X**7, directions(1)[0]))) < 1e-3

    def test_noise_raises_it_evenly(self):
        """atan(0.2 / 1) is 11 degrees."""
        clean = np.outer(np.linspace(0, 1.0, len(X)) ** 0.01, directions(1)[0])
        found = headings(clean + noise(0.2) * (X[0] < X)[:, None])
        assert np.nanmedian(found) == pytest.approx(math.degrees(math.atan(0.2 * math.sqrt(1 + 1 / 3))), abs=2)

    def test_without_noise_a_way_is_as_long_as_it_is(self):
        clean = cornered()
        noisy = clean + noise(0.15)
        raw, found = headings(noisy), headings_without_noise(noisy)
        inside = (X > 3.3) & (X < 5.9)
        assert np.abs(found - headings(clean))[inside].mean() < np.abs(raw - headings(clean))[inside].mean() / 2
        assert (found[1:] <= raw[1:] + 1e-9).all()

    def test_without_noise_it_is_that_of_loops(self):
        losses = cornered(tokens=7) + noise(0.05, shape=(len(X), 7))
        found, raw = headings_without_noise(losses), headings(losses)
        for index in (20, 44, 45, 60):
            way = sum((losses[index][t] - losses[0][t]) ** 2 for t in range(7))
            off = max(
                sum((losses[k][t] - (losses[k - 1][t] + losses[k + 1][t]) / 2) ** 2 for t in range(7)) / 1.5
                for k in (index - 1, index, index + 1)
            )
            cosine = math.cos(math.radians(raw[index])) * math.sqrt(way / (way - off))
            assert found[index] == pytest.approx(math.degrees(math.acos(min(1, cosine))), abs=1e-6)

    def test_replicates_leave_out_whole_examples(self):
        losses = cornered(tokens=60) + noise(0.3, shape=(len(X), 60))
        found = heading_replicates(losses, per_example=3)
        assert found.shape == (20, len(X))
        kept = np.delete(np.arange(60), np.arange(9, 12))  # the fourth of twenty examples
        np.testing.assert_allclose(found[3, 1:], headings(losses[:, kept])[1:])

    def test_the_jackknife_of_replicates_is_the_spread_over_samples_of_tokens(self):
        def sample(seed):
            rng = np.random.default_rng(seed)
            one, two = rng.exponential(size=(2, 200))
            return np.clip(X - 4.5, None, 0)[:, None] * one + np.clip(X - 4.5, 0, None)[:, None] * two

        spread = np.std([headings(sample(seed))[40] for seed in range(200)])
        errors = [
            np.sqrt(19 / 20 * ((values := heading_replicates(sample(seed))[:, 40]) - values.mean()) @ (values - values.mean()))
            for seed in range(20)
        ]
        assert np.mean(errors) == pytest.approx(spread, rel=0.25)

    @pytest.mark.parametrize(
        ("losses", "words"),
        [
            (noise(1, shape=(4, 9)), "at least 5 snapshots, got 4"),
            (np.ones((9, 9)), "ends where it began"),
            (np.full((9, 9), np.nan), "must be finite"),
            (np.ones(9), "must be finite, .snapshots, tokens., of two snapshots at least, got .9,."),
        ],
    )
    def test_what_has_none_is_refused(self, losses, words):
        with pytest.raises(ArgumentError, match=words):
            headings(losses)

    @pytest.mark.parametrize("each", [0, 2, 9])
    def test_replicates_need_two_examples(self, each):
        with pytest.raises(ArgumentError, match="two examples"):
            heading_replicates(noise(1, shape=(9, 9)), per_example=each)


class TestLossSlopes:
    def test_they_are_differences_of_bins_by_loops(self):
        losses = np.random.default_rng(0).normal(size=(3, 63)) + 4
        found = loss_slopes(losses, 2)
        bins = {}
        for number in range(2, 65):
            bins.setdefault(math.floor(math.log(number) / 0.25), []).append(number)
        parts = [bins[key] for key in sorted(bins)]
        assert found.bins == pytest.approx([sum(part) / len(part) for part in parts])
        for row in range(3):
            means = [sum(losses[row, number - 2] for number in part) / len(part) for part in parts]
            assert found.means[row] == pytest.approx(means)
            for place in range(len(parts) - 1):
                away = math.log(found.bins[place + 1] / found.bins[place])
                assert found.slopes[row, place] == pytest.approx((means[place + 1] - means[place]) / away)
                assert found.tokens[place] == pytest.approx(math.sqrt(found.bins[place] * found.bins[place + 1]))

    @pytest.mark.parametrize("first", [1, 2])
    def test_a_loss_that_falls_by_the_logarithm_has_one_slope(self, first):
        numbers = np.arange(first, 513)
        found = loss_slopes(np.stack([5 - 0.3 * np.log(numbers), 5 + 0 * numbers]), first)
        np.testing.assert_allclose(found.slopes[0], -0.3, atol=0.01)
        np.testing.assert_allclose(found.slopes[1], 0, atol=1e-12)
        assert (np.diff(found.tokens) > 0).all() and found.tokens[0] > 1 and found.tokens[-1] < 512

    def test_bins_hold_the_noise_down(self):
        """From one token to the next the slope at token 400 has a noise of 17 nats per factor e."""
        numbers = np.arange(1, 513)
        found = loss_slopes(5 - 0.3 * np.log(numbers) + 0.03 * np.random.default_rng(1).normal(size=(50, 512)))
        late = found.slopes[:, found.tokens > 100]
        assert late.std() < 0.06 and late.mean() == pytest.approx(-0.3, abs=0.02)

    def test_a_row_that_is_missing_stays_missing(self):
        losses = np.ones((2, 20))
        losses[0] = np.nan
        assert np.isnan(loss_slopes(losses).slopes[0]).all() and (loss_slopes(losses).slopes[1] == 0).all()

    @pytest.mark.parametrize(("shape", "first"), [((3, 1), 1), ((9,), 1), ((3, 9), 0), ((3, 0), 1)])
    def test_what_has_no_slopes_is_refused(self, shape, first):
        with pytest.raises(ArgumentError, match=r"slopes along the context|`losses` must be"):
            loss_slopes(np.ones(shape), first)
