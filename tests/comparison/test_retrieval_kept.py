"""A later model that kept its induction heads, and lost or kept what finds one fact among others."""

import numpy as np
import pytest

from pytest_induction import ExpectationFailed, Verdict, assert_heads_preserved, assert_retrieval_preserved
from pytest_induction.comparison.retrieval import AFTER, BEFORE, judge_kept
from pytest_induction.errors import ArgumentError, ModelError
from pytest_induction.planted import induction_head, retrieval_head
from pytest_induction.records import Evidence

FACTS = retrieval_head().facts


def evidence(before, after, **options):
    """The evidence, whichever way it goes."""
    try:
        return assert_retrieval_preserved(before, after, **{"facts": FACTS, "length": 40, **options})
    except ExpectationFailed as failure:
        return failure.evidence


def test_a_model_that_kept_its_induction_heads_and_lost_retrieval_is_caught():
    """Which what is asked of its heads, and of repeated tokens, does not see."""
    before, after = retrieval_head(), induction_head()
    assert assert_heads_preserved(before, after).reason == "preserved"
    found = evidence(before, after)
    assert (found.verdict, found.reason) == (Verdict.REFUTED, "retrieval_lost")
    assert found.estimates["accuracy before"].value == 1 and found.estimates["lost"].low > 0.25
    assert found.estimates["log odds after"].value == pytest.approx(-np.log(3), abs=1e-4)
    assert Evidence.from_dict(found.to_dict()) == found and found.before is not None


def test_a_head_that_attends_as_before_and_writes_nothing_is_caught():
    assert evidence(retrieval_head(), retrieval_head(strength=0.0)).reason == "retrieval_lost"


def test_a_head_that_moved_is_kept():
    found = evidence(retrieval_head(head=1), retrieval_head(head=3))
    assert (found.verdict, found.reason) == (Verdict.SHOWN, "preserved") and found.provenance.n_sequences == 96


@pytest.mark.exhaustive
def test_what_improves_passes():
    assert evidence(retrieval_head(sharpness=4.0), retrieval_head()).reason == "preserved"


def test_where_nothing_can_be_lost_nothing_is_shown():
    found = evidence(induction_head(), retrieval_head())
    assert (found.verdict, found.reason) == (Verdict.UNDETERMINED, "nothing_to_preserve")


def made_up(accuracy, lost, rng, count=96):
    right = (rng.random(count) < accuracy).astype(float)
    log_odds = rng.normal(1, 0.5, count)
    return {BEFORE: {"accuracy": right, "log_odds": log_odds}, AFTER: {"accuracy": right, "log_odds": log_odds - lost}}


@pytest.mark.parametrize(
    ("accuracy", "lost", "verdict", "reason"),
    [
        (1.0, 0.0, Verdict.SHOWN, "preserved"),
        (1.0, -1.0, Verdict.SHOWN, "preserved"),
        (1.0, 1.0, Verdict.REFUTED, "retrieval_lost"),
        (1.0, 0.2, Verdict.UNDETERMINED, "difference_unclear"),
        (0.1, 1.0, Verdict.UNDETERMINED, "nothing_to_preserve"),
        (0.32, 1.0, Verdict.UNDETERMINED, "accuracy_unclear"),
    ],
)
def test_the_decision(accuracy, lost, verdict, reason):
    found = judge_kept(made_up(accuracy, lost, np.random.default_rng(0)), 0.25, 0.25, error_rate=1e-3)
    assert (found.verdict, found.reason) == (verdict, reason)
    assert bool(found.more_sequences) == reason.endswith("unclear")


@pytest.mark.parametrize("rare", [2.0, -2.0])
def test_at_the_margin_neither_is_said_more_often_than_is_stated(rare):
    """Also where a few rows lose, or gain, most of it."""
    rng, wrong = np.random.default_rng(0), 0
    for _ in range(20):
        share = 0.1
        usual = (0.25 - share * rare) / (1 - share)
        found = made_up(1.0, np.where(rng.random(96) < share, rare, usual), rng)
        wrong += judge_kept(found, 0.25, 0.25, error_rate=0.025).verdict is not Verdict.UNDETERMINED
    assert wrong <= 0.05 * 20


@pytest.mark.parametrize(
    ("after", "options", "error", "said"),
    [
        (retrieval_head(), {"max_lost": 0}, ArgumentError, "`max_lost` must be a number of nats from 0.01 to 1.99, got 0"),
        (retrieval_head(), {"max_sequences": 5}, ArgumentError, "`max_sequences` must be"),
        (induction_head(d_vocab=12), {}, ModelError, "has token ids 0 to 11, the facts go up to 63"),
        (retrieval_head(n_ctx=32), {}, ModelError, "has a context of 32, rows have 40 positions: give it `length=`"),
    ],
)
def test_what_cannot_be_compared_is_one_line(after, options, error, said):
    with pytest.raises(error, match=said) as caught:
        assert_retrieval_preserved(retrieval_head(), after, **{"facts": FACTS, "length": 40, **options})
    assert "\n" not in str(caught.value)
