"""Which heads carry the meaning of words: planted answers, the decision on rows that are made up, its error rate, and bad input."""

import numpy as np
import pytest

from pytest_induction import ExpectationFailed, Verdict, assert_concept_heads, load_model
from pytest_induction.causal.concept_heads import judge_concepts
from pytest_induction.charts.heads import heads_data
from pytest_induction.errors import ArgumentError, TextError
from pytest_induction.interventions.concepts import Restored, task_of
from pytest_induction.planted import concept_head, first_token_head, induction_head, uniform_head
from pytest_induction.records import Evidence, HeadId

SIZES = {"n_heads": 3, "d_vocab": 48, "n_ctx": 64}
WORDS = concept_head().words
ENOUGH = 17  # rows that show 1 nat gained, at the default error rate, where each gains 3.9
REFUTING = {"max_sequences": 45, "error_rate": 0.05}  # shows less than 0.1 nats restored where nothing is


def evidence(model, **options):
    """The evidence, whichever way it goes."""
    try:
        return assert_concept_heads(model, **{"words": WORDS, "max_sequences": ENOUGH} | options)
    except ExpectationFailed as failure:
        return failure.evidence


def test_a_concept_head_is_shown():
    found = evidence(concept_head(**SIZES))
    assert (found.verdict, found.reason) == (Verdict.SHOWN, "carry_meaning")
    estimates = {name: estimate.value for name, estimate in found.estimates.items()}
    assert estimates["restored"] == estimates["all restored"] == 1  # for which one row counts
    assert estimates["beyond meaningless"] == estimates["beyond null"] == pytest.approx(1, abs=1e-4)
    assert estimates["gain"] == pytest.approx(np.log(48), abs=1e-3) and estimates["log p"] == pytest.approx(0, abs=1e-3)
    assert "with L1H1 patched 1.00 nats come back" in found.summary and found.provenance.n_sequences == ENOUGH
    assert Evidence.from_dict(found.to_dict()) == found


@pytest.mark.exhaustive  # all other scores of heads are measured for it too
def test_a_report_draws_what_every_head_restores():
    subject = load_model(concept_head(**SIZES))
    evidence(subject)
    (drawn,) = [score for score in heads_data(subject)["scores"] if score["name"] == "concepts"]
    assert drawn["value"][1][1] > 3.8 and abs(drawn["value"][1][0]) < 0.01 and drawn["unit"] == "nats"


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        (induction_head(**SIZES), "not_carried"),  # copies the word token by token
        pytest.param(concept_head(of_tokens=True, **SIZES), "copy_tokens", marks=pytest.mark.exhaustive),
        pytest.param(concept_head(strength=0.0, **SIZES), "not_carried", marks=pytest.mark.exhaustive),
    ],
    ids=["induction", "of tokens", "silent"],
)
def test_heads_that_copy_tokens_are_refuted(model, reason):
    found = evidence(model, **REFUTING)
    assert (found.verdict, found.reason) == (Verdict.REFUTED, reason)


@pytest.mark.parametrize(
    "model",
    [
        uniform_head(strength=16.0, **SIZES),
        pytest.param(first_token_head(strength=16.0, **SIZES), marks=pytest.mark.exhaustive),
    ],
    ids=["uniform", "first token"],
)
def test_a_model_that_does_not_do_the_task_is_never_refuted(model):
    found = evidence(model, **REFUTING)
    assert (found.verdict, found.reason, found.provenance.n_sequences) == (Verdict.UNDETERMINED, "does_not_copy", 24)
    assert "nothing is said of its heads" in found.summary


@pytest.mark.parametrize(("rows", "reason"), [(82, "restored_unclear"), (83, "not_carried")])
def test_so_many_rows_refute_at_the_default_error_rate(rows, reason):
    assert judged(made_up(3.0, 0.0, 0.0, 0.0, count=rows, spread=0.0)).reason == reason


def test_too_few_rows_say_which_effect_they_could_tell():
    found = evidence(induction_head(**SIZES), max_sequences=24)
    assert (found.verdict, found.reason) == (Verdict.UNDETERMINED, "restored_unclear")
    assert "24 rows tell effects of 0.27" in found.summary and "max_sequences=" in found.next_step


def test_heads_are_tested_on_rows_that_did_not_choose_them():
    task = task_of(concept_head(**SIZES), WORDS, None, 0)
    seen = [tuple(row) for number in ((0,), (1,), (2, 0), (2, 1)) for row in task.rows(12, *number).corrupt.tolist()]
    assert len(set(seen)) == 48


def made_up(gain, concept, meaningless, null, every=None, count=96, spread=0.2, seed=0):
    """Rows with such means of the heads, and of all heads: concept, meaningless and null."""
    rng = np.random.default_rng(seed)
    means = np.stack([(concept, meaningless, null), (concept, meaningless, null) if every is None else every], axis=1)
    values = means[:, None] + spread * rng.normal(size=(3, count, 2)) * 0.3
    scores = dict(zip(("concept", "meaningless", "null"), values, strict=True)) | {"token": values[0]}
    gains = gain + spread * rng.normal(size=count)
    return Restored(scores, gains, gains, -gains)


def judged(found, error_rate=1e-3):
    return judge_concepts(found, [HeadId(0, 0)], 0.1, error_rate=error_rate)


@pytest.mark.parametrize(
    ("given", "verdict", "reason"),
    [
        ((3.0, 0.8, 0.0, 0.0), Verdict.SHOWN, "carry_meaning"),
        ((3.0, 0.0, 0.0, 0.0), Verdict.REFUTED, "not_carried"),
        ((3.0, -0.5, -0.9, -0.9), Verdict.REFUTED, "not_carried"),  # more than the nulls, and nothing restored
        ((3.0, 0.8, 0.8, 0.0), Verdict.REFUTED, "copy_tokens"),
        ((3.0, 0.8, 0.0, 0.8), Verdict.REFUTED, "copy_tokens"),
        ((0.2, 0.0, 0.0, 0.0), Verdict.UNDETERMINED, "does_not_copy"),  # never refuted
        ((0.2, 0.8, 0.0, 0.0), Verdict.UNDETERMINED, "does_not_copy"),  # nor shown
        ((1.1, 0.8, 0.0, 0.0), Verdict.UNDETERMINED, "gain_unclear"),
        ((3.0, 0.13, 0.0, 0.0), Verdict.UNDETERMINED, "restored_unclear"),
        ((3.0, 0.8, 0.68, 0.0), Verdict.UNDETERMINED, "restored_unclear"),
        ((3.0, 0.8, 0.0, 0.68), Verdict.UNDETERMINED, "restored_unclear"),
        ((3.0, 0.0, 0.0, 0.0, (0.8, 0.0, 0.0)), Verdict.UNDETERMINED, "spread"),
        ((3.0, 0.0, 0.0, 0.0, (0.13, 0.0, 0.0)), Verdict.UNDETERMINED, "restored_unclear"),
        ((3.0, 0.8, 0.0, 0.0, (0.0, 0.0, 0.0)), Verdict.SHOWN, "carry_meaning"),  # what others cancel
    ],
)
def test_the_decision(given, verdict, reason):
    found = judged(made_up(*given))
    assert (found.verdict, found.reason) == (verdict, reason)
    assert bool(found.more_sequences) == reason.endswith("unclear")


def test_a_model_that_seems_not_to_do_the_task_is_looked_at_again():
    for count, more in ((12, 12), (24, 0)):
        found = judged(made_up(0.2, 0.0, 0.0, 0.0, count=count))
        assert (found.reason, found.more_sequences) == ("does_not_copy", more)


def test_one_row_counts_for_one_nat():
    found = made_up(3.0, 0.0, 0.0, 0.0, spread=0.0)
    found.scores["concept"][0] += 1000.0
    assert judged(found).estimates["restored"].value == pytest.approx(1 / 96)


@pytest.mark.exhaustive  # hundreds of decisions
@pytest.mark.parametrize("kind", ["concept", "meaningless", "null", "gain"])
def test_at_a_threshold_nothing_is_shown_more_often_than_is_stated(kind):
    rng, wrong, count = np.random.default_rng(1), 0, 40
    for seed in range(count):
        found = made_up(3.0, 0.8, 0.0, 0.0, count=48, seed=seed)
        rare = (rng.random((48, 1)) < 0.1).astype(float) * np.ones((1, 2))
        if kind == "gain":
            found = Restored(found.scores, 10 * rare[:, 0], found.gain, found.log_p)
        else:
            found.scores[kind][:] = rare if kind == "concept" else found.scores["concept"] - rare
        wrong += judged(found, error_rate=0.05).verdict is Verdict.SHOWN
    assert wrong <= 0.05 * count


@pytest.mark.exhaustive  # hundreds of decisions
def test_at_the_threshold_nothing_is_refuted_more_often_than_is_stated():
    """The heads restore nothing, and all heads as much as they must by every count."""
    rng, wrong, count = np.random.default_rng(2), 0, 40
    for seed in range(count):
        found = made_up(3.0, 0.0, 0.0, 0.0, count=48, seed=seed, spread=0.0)
        found.scores["concept"][:, 1] = np.where(rng.random(48) < 0.1, 1.0, 0.0)
        wrong += judged(found, error_rate=0.05).verdict is Verdict.REFUTED
    assert wrong <= 0.05 * count


@pytest.mark.parametrize(
    ("options", "error", "said"),
    [
        ({"words": None}, TextError, "there is no tokenizer: give it `tokenizer=`"),
        ({"top_share": 2}, ArgumentError, "`top_share` must"),
        ({"min_restored": -1}, ArgumentError, "`min_restored` must be a number of nats from 0 to 1, got -1"),
        ({"max_sequences": 11}, ArgumentError, "`max_sequences` must be"),
        ({"error_rate": 0}, ArgumentError, "`error_rate` must"),
    ],
)
def test_what_cannot_be_asked_is_one_line(options, error, said):
    with pytest.raises(error, match=said) as caught:
        assert_concept_heads(load_model(concept_head(**SIZES)), **{"words": WORDS} | options)
    assert "\n" not in str(caught.value)


def test_a_budget_that_ends_before_the_heads_are_known_is_undetermined():
    found = evidence(concept_head(**SIZES), budget="0.2 passes")
    assert (found.verdict, found.reason) == (Verdict.UNDETERMINED, "budget_spent")
