"""Which heads retrieve: planted answers, the decision on rows that are made up, its error rate, and bad input."""

from dataclasses import replace

import numpy as np
import pytest

from pytest_induction import ExpectationFailed, Verdict, assert_retrieval_heads, load_model
from pytest_induction.causal.needles import Effects, Facts, Retrieving
from pytest_induction.causal.retrieval import judge_retrieval, named
from pytest_induction.charts.heads import heads_data
from pytest_induction.errors import ArgumentError, TextError
from pytest_induction.planted import first_token_head, induction_head, retrieval_head, uniform_head
from pytest_induction.probes.needles import form_of
from pytest_induction.records import Evidence, HeadId

FACTS = retrieval_head().facts
SIZES = {"d_vocab": 64, "n_ctx": 48, "n_heads": 12}
FEW = {**SIZES, "n_heads": 2}
GIVEN = {"facts": FACTS, "max_sequences": 12, "n_facts": 3}
ENOUGH = 13  # rows that show 0.1 nats written, at the default error rate, where each writes a nat or more
THRESHOLDS = {"min_written": 0.1, "min_lost": 0.1, "min_accuracy": 0.25}


def evidence(model, **options):
    """The evidence, whichever way it goes."""
    try:
        return assert_retrieval_heads(model, **GIVEN | options)
    except ExpectationFailed as failure:
        return failure.evidence


def test_a_retrieval_head_that_the_model_needs_is_shown():
    """And it is no induction head: it matches names alone."""
    found = evidence(retrieval_head(**SIZES), max_sequences=ENOUGH)
    assert (found.verdict, found.reason) == (Verdict.SHOWN, "retrieves")
    estimates = {name: estimate.value for name, estimate in found.estimates.items()}
    assert estimates["accuracy"] == 1 and estimates["log odds"] > 10 and estimates["accuracy without heads"] < 0.8
    assert estimates["lost"] == 2 and estimates["written L1H1"] == 1  # for which one row counts
    assert (
        estimates["lost controls"] == pytest.approx(0, abs=0.01) and estimates["rank"] == 1 / 12
    )  # none of the eleven other heads of its layer
    assert estimates["attention L1H1"] == estimates["argmax L1H1"] == 1 and estimates["match prefixes"] == 0
    assert "without L1H1" in found.summary and found.provenance.n_sequences == ENOUGH
    assert Evidence.from_dict(found.to_dict()) == found


def test_a_report_draws_what_every_head_writes():
    """Once a verdict has measured it, and not before."""
    subject = load_model(retrieval_head(**FEW))
    assert "retrieval" not in [score["name"] for score in heads_data(subject)["scores"]]
    evidence(subject)
    (drawn,) = [score for score in heads_data(subject)["scores"] if score["name"] == "retrieval"]
    assert drawn["value"][1][1] > 15 and abs(drawn["value"][1][0]) < 0.1 and drawn["unit"] == "nats"


@pytest.mark.parametrize(
    "model",
    [
        retrieval_head(strength=0.0, **FEW),  # it attends as it should, and writes nothing
        pytest.param(retrieval_head(distractors=True, **FEW), marks=pytest.mark.exhaustive),
        pytest.param(induction_head(**FEW), marks=pytest.mark.exhaustive),
        pytest.param(uniform_head(strength=16.0, **FEW), marks=pytest.mark.exhaustive),
        pytest.param(first_token_head(strength=16.0, **FEW), marks=pytest.mark.exhaustive),
    ],
    ids=["silent", "distractors", "induction", "uniform", "first token"],
)
def test_a_model_that_does_not_do_the_task_is_never_refuted(model):
    found = evidence(model)
    assert (found.verdict, found.reason) == (Verdict.UNDETERMINED, "does_not_retrieve")
    assert "nothing is said of its heads" in found.summary


def test_with_too_few_other_heads_nothing_follows():
    found = evidence(retrieval_head(**SIZES | {"n_heads": 4}), max_sequences=ENOUGH)
    assert (found.verdict, found.reason) == (Verdict.UNDETERMINED, "few_controls")


def test_a_dozen_rows_are_one_too_few_and_the_next_step_says_so():
    """Where every row has the most that counts, the interval of what is written still reaches below a tenth of a nat."""
    found = evidence(retrieval_head(**FEW))
    assert (found.reason, found.estimates["written L1H1"].value) == ("score_unclear", 1)
    assert found.estimates["written L1H1"].low < 0.1 and f"max_sequences={ENOUGH}" in found.next_step


def test_heads_are_tested_on_rows_that_did_not_choose_them():
    """No row that decides is one of those by which heads are chosen, nor of another round."""
    subject = load_model(retrieval_head(**SIZES))
    facts = Facts(subject, form_of(subject.space, None, FACTS), 40, 3, 0)
    rows = [facts.rows(24, 0), facts.rows(12, 1, 0), facts.rows(12, 1, 1)]
    seen = [tuple(row) for each in rows for row in each.tokens.tolist()]
    assert len(set(seen)) == 48


def test_what_is_read_of_rows_with_values_behind_them_is_what_the_question_gives():
    """The values that are read stand behind the question, where nothing before can attend to them."""
    subject = load_model(retrieval_head(sharpness=4.0, **SIZES))
    facts = Facts(subject, form_of(subject.space, None, FACTS), 40, 3, 0)
    before = facts.rows(4, 0)
    found = Retrieving(facts, [HeadId(1, 1)], before).drawn(3, 0)
    rows = facts.rows(3, 1, 0)
    for number in range(3):
        own, *others = [
            float(subject.logits(_tensor(rows.tokens[number : number + 1]))[0, -1, value].exp()) for value in rows.values[number]
        ]
        assert found.behaviour["log_odds"][number] == pytest.approx(np.log(own / sum(others)), abs=1e-4)
    assert found.lost.min() > 1 and np.isfinite(found.controls).any()


def _tensor(values):
    import torch

    return torch.from_numpy(values)


def made_up(accuracy, written, lost, controls, rng, count=96, spread=0.3):
    """Effects with such means, of two heads, the first of which writes; six controls in each of the first dozen rows."""
    dealt = np.full((72, count), np.nan)
    for number in range(72):
        dealt[number, number // 6] = controls
    right = (rng.random(count) < accuracy).astype(float)
    zero = np.zeros((count, 1, 2))
    excess = zero.copy()
    excess[:, 0, 0] = written + spread * rng.normal(size=count)
    behaviour = {"accuracy": right, "log_odds": rng.normal(2, spread, count)}
    without = {"accuracy": right, "log_odds": behaviour["log_odds"] - lost - spread * rng.normal(size=count)}
    scores = {"written": excess, "written_null": zero, "attention": zero, "argmax": zero, "argmax_null": zero}
    return Effects(scores, behaviour, without, dealt, controls + spread * rng.normal(size=count))


def judged(effects, error_rate=1e-3):
    return judge_retrieval(effects, [HeadId(0, 0)], THRESHOLDS, error_rate=error_rate)


@pytest.mark.parametrize(
    ("means", "verdict", "reason"),
    [
        ((1.0, 1.0, 1.0, 0.0), Verdict.SHOWN, "retrieves"),
        ((1.0, -1.0, 1.0, 0.0), Verdict.REFUTED, "no_head_retrieves"),
        ((0.1, 1.0, 1.0, 0.0), Verdict.UNDETERMINED, "does_not_retrieve"),
        ((0.1, -1.0, 1.0, 0.0), Verdict.UNDETERMINED, "does_not_retrieve"),  # never refuted
        ((0.32, 1.0, 1.0, 0.0), Verdict.UNDETERMINED, "accuracy_unclear"),
        ((1.0, 0.12, 1.0, 0.0), Verdict.UNDETERMINED, "score_unclear"),
        ((1.0, 1.0, 1.0, 1.0), Verdict.UNDETERMINED, "effect_unclear"),
        ((1.0, 1.0, -0.5, -0.5), Verdict.UNDETERMINED, "no_more_than_controls"),
        ((1.0, 1.0, 0.15, 0.0), Verdict.UNDETERMINED, "effect_unclear"),
    ],
)
def test_the_decision(means, verdict, reason):
    found = judged(made_up(*means, np.random.default_rng(0)))
    assert (found.verdict, found.reason) == (verdict, reason)
    assert bool(found.more_sequences) == reason.endswith("unclear")


@pytest.mark.parametrize(("controls", "said"), [(0.0, ": what is lost is too"), (1.0, "lost beyond random heads is too")])
def test_what_is_too_close_to_its_threshold_is_named(controls, said):
    found = judged(made_up(1.0, 1.0, 0.15 if controls == 0 else 1.0, controls, np.random.default_rng(0)))
    assert found.reason == "effect_unclear" and said in found.summary


def test_a_guess_is_looked_at_again_before_it_is_taken_for_one():
    """Twelve rows of a model that finds the value in half of them may all be wrong."""
    for count, more in ((12, 12), (24, 0)):
        found = judged(made_up(0.0, 1.0, 1.0, 0.0, np.random.default_rng(0), count=count))
        assert (found.reason, found.more_sequences) == ("does_not_retrieve", more)


def test_no_head_is_said_of_all_heads_and_not_of_those_that_were_chosen():
    effects = made_up(1.0, -1.0, 1.0, 0.0, np.random.default_rng(0))
    effects.scores["written"][:, 0, 1] = 0.2  # another than the one in question
    assert judged(effects).reason == "score_unclear"


def test_one_random_set_of_72_that_does_as_much_is_too_many():
    effects = made_up(1.0, 1.0, 1.0, 0.0, np.random.default_rng(0))
    effects.controls[7, 1] = effects.lost[1] + 0.01
    found = judged(effects)
    assert found.reason == "rank_unclear" and found.estimates["rank"].value == pytest.approx(2 / 73)
    few = replace(effects, controls=effects.controls[8:16])
    assert judged(few).reason == "few_controls"
    unclear = made_up(1.0, 1.0, 0.15, 0.0, np.random.default_rng(0))
    found = judged(replace(unclear, controls=unclear.controls[8:16]))
    assert (found.reason, found.more_sequences) == ("few_controls", 0)  # no further row mends that


@pytest.mark.exhaustive  # a hundred decisions, two hundredths of a second each and more
@pytest.mark.parametrize(
    "at", [(0.25, 1.0, 1.0, 0.0), (1.0, 0.1, 1.0, 0.0), (1.0, 1.0, 0.1, 0.0), (1.0, 1.0, 1.0, 0.9), (1.0, 0.0, 1.0, 0.0)]
)
def test_at_a_threshold_nothing_is_shown_more_often_than_is_stated(at):
    """Whichever of the conditions just fails, and for REFUTED with a head at the threshold."""
    rng, wrong, count = np.random.default_rng(1), 0, 20
    for _ in range(count):
        effects = made_up(*at, rng, count=48)
        if at[1] == 0.0:
            effects.scores["written"][:, 0, 1] = np.where(rng.random(48) < 0.1, 1.0, 0.0)
        verdict = judged(effects, error_rate=0.05).verdict
        wrong += verdict is (Verdict.REFUTED if at[1] == 0.0 else Verdict.SHOWN)
    assert wrong <= 0.05 * count


def test_one_row_counts_for_two_nats():
    effects = made_up(1.0, 0.0, 0.0, 0.0, np.random.default_rng(0), spread=0.0)
    effects.without["log_odds"][0] -= 1000.0
    assert judged(effects).estimates["lost"].value == pytest.approx(2 / 96)


@pytest.mark.parametrize(
    ("options", "error", "said"),
    [
        ({"facts": None}, TextError, "there is no tokenizer: give it `tokenizer=`"),
        ({"n_facts": 1}, ArgumentError, "`n_facts` must be at least 2"),
        ({"top_share": 2}, ArgumentError, "`top_share` must"),
        ({"min_written": -1}, ArgumentError, "`min_written` must be a number of nats from 0 to 1, got -1"),
        ({"min_lost": 3}, ArgumentError, "`min_lost` must be a number of nats from 0 to 2, got 3"),
        ({"max_sequences": 11}, ArgumentError, "`max_sequences` must be"),
        ({"error_rate": 0}, ArgumentError, "`error_rate` must"),
    ],
)
def test_what_cannot_be_asked_is_one_line(options, error, said):
    with pytest.raises(error, match=said) as caught:
        assert_retrieval_heads(load_model(retrieval_head(**SIZES)), **GIVEN | options)
    assert "\n" not in str(caught.value)


def test_a_budget_that_ends_before_the_heads_are_known_is_undetermined():
    found = evidence(retrieval_head(**SIZES), budget="0.2 passes")
    assert (found.verdict, found.reason) == (Verdict.UNDETERMINED, "budget_spent")


def test_many_heads_are_named_in_short():
    heads = [HeadId(0, number) for number in range(6)]
    assert named(heads) == "L0H0, L0H1, L0H2 and 3 more" and named(heads[:2]) == "L0H0 and L0H1" and named(heads[:1]) == "L0H0"
