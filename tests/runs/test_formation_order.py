"""In which order series change: shown, refuted, or not clear."""

from pathlib import Path

import pytest

from pytest_induction.errors import ArgumentError, RunError
from pytest_induction.records import Verdict
from pytest_induction.runs.phase_change.order import assert_formation_order
from pytest_induction.runs.transience import assert_no_transience, assert_transience
from tests.runs.claims import evidence_of, refusal
from tests.runs.curves import STEPS, X, formed_series, logistic, noise_of, run_of

SHOWN, REFUTED, UNDETERMINED = Verdict.SHOWN, Verdict.REFUTED, Verdict.UNDETERMINED
RUNS = Path(__file__).parents[2] / "fixtures" / "runs"
TWO = ("previous_token", "prefix_matching")


def formed(previous=2.1, matching=2.4, copying=2.7, *, width=0.15, noise=0.01, seed=0):
    """A run in which the three parts form at these places."""
    places = {"previous_token": (previous, 0.7, 1), "prefix_matching": (matching, 0.7, 1), "advantage": (copying, 6, 8)}
    series = {
        name: 0.06 + height * logistic(X, place, width) + scale * noise_of(len(X), noise, seed + index)
        for index, (name, (place, height, scale)) in enumerate(places.items())
    }
    return run_of(STEPS, **series)


@pytest.mark.parametrize(
    ("previous", "verdict", "reason"),
    [(2.1, SHOWN, "in_order"), (2.7, REFUTED, "another_order"), (2.4, UNDETERMINED, "order_unclear")],
)
def test_two_series_are_in_order_or_not(previous, verdict, reason):
    found = evidence_of(assert_formation_order, formed(previous), order=TWO)
    assert (found.claim, found.verdict, found.reason) == ("formation_order", verdict, reason)
    assert found.estimates["lag"].value == pytest.approx(2.4 - previous, abs=0.02)
    assert found.estimates["lag previous_token to prefix_matching"] == found.estimates["lag"]
    assert [change.series for change in found.changes] == list(TWO)


def test_all_three_must_be_in_order():
    assert evidence_of(assert_formation_order, formed()).verdict is SHOWN
    found = evidence_of(assert_formation_order, formed(copying=2.2))
    assert found.verdict is REFUTED and found.estimates["lag"] == found.estimates["lag prefix_matching to advantage"]
    found = evidence_of(assert_formation_order, formed(copying=2.4))
    assert found.verdict is UNDETERMINED
    assert (
        evidence_of(assert_formation_order, formed(copying=2.2), order=("previous_token", "advantage", "prefix_matching")).verdict
        is SHOWN
    )


def test_onsets_may_have_another_order_than_midpoints():
    """A wide change begins before a narrow one whose middle comes first."""
    series = {"previous_token": 0.06 + 0.7 * logistic(X, 2.4, 0.1), "prefix_matching": 0.06 + 0.7 * logistic(X, 2.6, 0.9)}
    run = run_of(STEPS, **{name: values + noise_of(len(X), 0.003, 1) for name, values in series.items()})
    assert evidence_of(assert_formation_order, run, order=TWO).verdict is SHOWN
    assert evidence_of(assert_formation_order, run, order=TWO, at_onsets=True).verdict is REFUTED


@pytest.mark.parametrize("seed", range(8))
def test_noise_has_no_place_in_the_order(seed):
    """A previous-token score that only wavers forms neither before nor after; a change with some noise does."""
    series = formed_series(STEPS)
    wavering = noise_of(len(X), 0.05, seed, 0.5)
    assert (
        evidence_of(assert_formation_order, run_of(STEPS, previous_token=0.3 + wavering, **series), order=TWO).verdict
        is UNDETERMINED
    )
    changing = 0.1 + 0.6 * logistic(X, 1.6, 0.2) + 0.4 * wavering
    assert evidence_of(assert_formation_order, run_of(STEPS, previous_token=changing, **series), order=TWO).verdict is SHOWN


def test_what_was_not_recorded_or_does_not_change_has_no_place():
    series = formed_series(STEPS)
    found = evidence_of(assert_formation_order, run_of(STEPS, **series))
    assert (found.verdict, found.reason) == (UNDETERMINED, "not_recorded") and "previous-token" in found.summary
    found = evidence_of(assert_formation_order, run_of(STEPS, previous_token=0 * X + 0.06, **series))
    assert (found.verdict, found.reason) == (UNDETERMINED, "no_change_to_place") and "stays between" in found.summary


def test_series_that_form_together_are_seldom_put_in_an_order():
    """Both verdicts are wrong where there is no order; the error rate is 5 %."""
    found = [evidence_of(assert_formation_order, formed(2.4, noise=0.03, seed=7 * seed), order=TWO).verdict for seed in range(24)]
    assert found.count(UNDETERMINED) >= 21


@pytest.mark.parametrize("order", [["advantage"], "advantage", ["advantage", "advantage"], ["loss", "advantage"], []])
def test_an_order_that_is_none_is_refused(order):
    assert "two different series or more" in refusal(assert_formation_order, formed(), order=order)


def test_other_arguments_that_make_no_sense_are_refused():
    assert "no series 'heads'" in refusal(assert_formation_order, formed(), order=["heads", "advantage"])
    assert "'heads'" in refusal(assert_formation_order, formed(), min_change={"heads": 1})
    assert "`error_rate`" in refusal(assert_formation_order, formed(), error_rate=2)
    assert "1 snapshots" in refusal(assert_formation_order, run_of([5], loss=[1.0]), kind=RunError)
    with pytest.raises(ArgumentError):
        assert_formation_order(formed(), order=["turn", "advantage"])


def test_in_the_shipped_run_prefix_matching_is_half_done_first():
    found = evidence_of(assert_formation_order, RUNS / "two-layers", order=TWO)
    assert found.verdict is REFUTED and -0.2 < found.estimates["lag"].high < 0


LADDER = ("markov_unigram_kl", "markov_bigram_kl")


def learned(unigram, bigram, *, seed=0):
    """A run on Markov chains that comes near the unigram at one place and leaves it for the bigram at another; None for never."""
    one, two = (0 * X if place is None else logistic(X, place, 0.3) for place in (unigram, bigram))
    distances = {"markov_unigram_kl": 0.4 - 0.35 * one + 0.4 * two, "markov_bigram_kl": 0.8 - 0.25 * one - 0.45 * two}
    return run_of(STEPS, **{name: values + noise_of(len(X), 0.003, seed) for name, values in distances.items()})


@pytest.mark.parametrize(
    ("run", "order", "verdict", "reason"),
    [
        (learned(1.4, 2.8), LADDER, SHOWN, "in_order"),
        (learned(1.4, 2.8), LADDER[::-1], REFUTED, "another_order"),
        (learned(None, 2.8), LADDER, UNDETERMINED, "no_change_to_place"),  # straight to the bigram
        (learned(1.4, None), LADDER, UNDETERMINED, "order_unclear"),  # the unigram comes nearer to both
    ],
)
def test_the_ladder_of_in_context_ngrams(run, order, verdict, reason):
    found = evidence_of(assert_formation_order, run, order=order)
    assert (found.verdict, found.reason) == (verdict, reason)


def test_the_shipped_training_on_markov_chains_climbs_it():
    found = evidence_of(assert_formation_order, RUNS / "markov", order=LADDER)
    assert (found.verdict, found.reason) == (SHOWN, "in_order") and found.estimates["lag"].low > 0.5
    left = evidence_of(assert_transience, RUNS / "markov", series="markov_unigram_kl")
    assert left.verdict is SHOWN and left.estimates["drop"].low > 0.2
    assert evidence_of(assert_no_transience, RUNS / "markov", series="markov_bigram_kl").verdict is SHOWN
