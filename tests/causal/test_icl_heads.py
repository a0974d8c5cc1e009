"""Which heads carry few-shot tasks: planted answers in both directions, the decision on rows that are made up, and bad input."""

from dataclasses import replace

import numpy as np
import pytest

from pytest_induction import ExpectationFailed, Verdict, assert_icl_heads, load_model
from pytest_induction.causal.dealing import RANKED
from pytest_induction.causal.few_shot import FUNCTION_VECTORS, INDUCTION, KINDS, Effects
from pytest_induction.causal.icl_heads import judge_kinds, kinds_of_heads
from pytest_induction.errors import ArgumentError, TextError
from pytest_induction.planted import few_shot_head, induction_head
from pytest_induction.records import Evidence, HeadId

SIZES = {"d_vocab": 33, "n_ctx": 32, "n_heads": 10}
TASKS = few_shot_head(**SIZES).tasks
GIVEN = {"tasks": TASKS, "n_shots": 3, "max_sequences": 12}


def evidence(model, **options):
    """The evidence, whichever way it goes."""
    try:
        return assert_icl_heads(model, **GIVEN | options)
    except ExpectationFailed as failure:
        return failure.evidence


def test_a_function_vector_head_that_carries_the_tasks_is_shown():
    """And the induction head beside it carries repeats: each is worth nothing for the other."""
    found = evidence(few_shot_head(**SIZES))
    assert (found.verdict, found.reason) == (Verdict.SHOWN, "function_vectors")
    estimates = {name: estimate.value for name, estimate in found.estimates.items()}
    assert estimates["lost function vectors"] > 1 and 1 < estimates["difference"] <= 2  # for which one prompt counts
    assert estimates["lost induction"] == estimates["lost controls"] == pytest.approx(0, abs=1e-6)
    assert estimates["accuracy"] == estimates["accuracy without induction"] == 1
    assert estimates["repeats share induction"] > 0.9 and abs(estimates["repeats share function vectors"]) < 0.1
    assert estimates["rank"] == 0.1  # of the nine other heads of its layer none does as much
    assert "function vector heads L2H0, 0.00 nats" in found.summary and found.provenance.n_sequences == 12
    assert Evidence.from_dict(found.to_dict()) == found


def test_an_induction_head_that_all_of_many_others_need_is_refuted():
    found = evidence(few_shot_head(count=3, through_induction=True, **SIZES))
    assert (found.verdict, found.reason) == (Verdict.REFUTED, "induction")
    assert found.estimates["difference"].high < -0.1 and found.estimates["lost function vectors"].value == pytest.approx(
        0, abs=0.01
    )


def test_where_none_of_either_is_needed_nothing_is_shown():
    """Any of three heads is enough, and none of them is an induction head."""
    found = evidence(few_shot_head(count=3, **SIZES))
    assert (found.verdict, found.reason) == (Verdict.UNDETERMINED, "difference_unclear")
    assert found.estimates["difference"].value == pytest.approx(0, abs=1e-3) and "max_sequences=" in found.next_step


def test_a_model_that_does_no_task_is_undetermined_and_the_tasks_are_named():
    found = evidence(induction_head(**SIZES))
    assert (found.verdict, found.reason) == (Verdict.UNDETERMINED, "no_task")
    assert found.summary.startswith("the model does none of the tasks: task 1 (accuracy 0.") and "task 3" in found.summary
    assert not found.estimates


def made_up(lost, other, controls, rng, count=48, spread=0.5):
    """Effects with such means, of `count` draws, and six controls in each of the first dozen draws."""
    noise = rng.normal(0, 1, (count, 1))

    def values(mean):
        return mean + spread * (rng.normal(0, 1, count) + noise[:, 0])

    dealt = np.full((72, count), np.nan)
    for number in range(72):
        dealt[number, number // 6] = values(controls)[0] if number // 6 < count else np.nan
    return Effects(
        own=rng.normal(-0.5, 0.1, count),
        shuffled=rng.normal(-3, 0.1, count),
        lost={FUNCTION_VECTORS: values(lost), INDUCTION: values(other)},
        controls=dealt,
        usual=values(controls),
        right=dict.fromkeys(("", *KINDS), np.ones(count)),
        n_tasks=1,
    )


SETS = {FUNCTION_VECTORS: (HeadId(2, 0),), INDUCTION: (HeadId(1, 0),)}


@pytest.mark.parametrize(
    ("means", "lead", "verdict", "reason"),
    [
        ((3.0, 0.5, 0.0), FUNCTION_VECTORS, Verdict.SHOWN, "function_vectors"),
        ((0.5, 3.0, 0.0), INDUCTION, Verdict.REFUTED, "induction"),
        ((0.5, 3.0, 0.0), FUNCTION_VECTORS, Verdict.UNDETERMINED, "alike"),  # what leads elsewhere decides what is asked
        ((3.0, 0.5, 2.9), FUNCTION_VECTORS, Verdict.UNDETERMINED, "difference_unclear"),
        ((3.0, 0.5, 4.0), FUNCTION_VECTORS, Verdict.UNDETERMINED, "no_more_than_controls"),
        ((0.5, 0.35, 0.0), FUNCTION_VECTORS, Verdict.UNDETERMINED, "difference_unclear"),
    ],
)
def test_the_decision(means, lead, verdict, reason):
    found = judge_kinds(made_up(*means, np.random.default_rng(0)), SETS, lead, min_difference=0.1, error_rate=1e-3)
    assert (found.verdict, found.reason) == (verdict, reason)
    assert bool(found.more_sequences) == (reason == "difference_unclear")


def test_one_random_set_of_72_that_does_as_much_is_too_many():
    effects = made_up(3.0, 0.5, 0.0, np.random.default_rng(0))
    effects.controls[7, 1] = effects.lost[FUNCTION_VECTORS][1] + 0.01
    found = judge_kinds(effects, SETS, FUNCTION_VECTORS, min_difference=0.1, error_rate=1e-3)
    assert (found.verdict, found.reason) == (Verdict.UNDETERMINED, "rank_unclear")
    assert found.estimates["rank"].value == pytest.approx(2 / 73) and min(RANKED) == 72


@pytest.mark.parametrize(
    "ahead", [lambda rng: 1.1 - rng.exponential(size=48), lambda rng: np.where(rng.random(48) < 0.95, 0.2, -1.8)]
)
def test_at_the_threshold_a_kind_is_shown_at_most_as_often_as_is_stated(ahead):
    """Also where few prompts say the opposite, and say it strongly."""
    rng, wrong = np.random.default_rng(0), 0
    for _ in range(40):
        effects = made_up(1.0, 1.0, -9.0, rng)
        effects.lost[FUNCTION_VECTORS][:] = effects.lost[INDUCTION] + ahead(rng)
        found = judge_kinds(effects, SETS, FUNCTION_VECTORS, min_difference=0.1, error_rate=0.05)
        wrong += found.verdict is Verdict.SHOWN
    assert wrong <= 0.05 * 40


def test_of_fewer_than_nine_random_sets_nothing_follows():
    """Where layers have few heads: more prompts would not change that."""
    effects = made_up(3.0, 0.5, 0.0, np.random.default_rng(0))
    for count, reason in ((9, "function_vectors"), (8, "few_controls")):
        few = replace(effects, controls=effects.controls[:count])
        found = judge_kinds(few, SETS, FUNCTION_VECTORS, min_difference=0.1, error_rate=1e-3)
        assert (found.reason, found.more_sequences) == (reason, 0)


def test_one_prompt_counts_for_two_nats():
    """One of 48 that loses a thousand shows nothing."""
    effects = made_up(0.0, 0.0, 0.0, np.random.default_rng(0), spread=0.0)
    effects.lost[FUNCTION_VECTORS][0] = 1000.0
    found = judge_kinds(effects, SETS, FUNCTION_VECTORS, min_difference=0.1, error_rate=1e-3)
    assert found.verdict is Verdict.UNDETERMINED and found.estimates["difference"].value == pytest.approx(2 / 48)


def test_kinds_have_no_head_of_the_top_of_the_other():
    """Two of twenty heads: the best of both rankings is in neither set, and what comes next is."""
    score, matching = np.zeros((2, 10)), np.zeros((2, 10))
    score[0, [0, 1, 2, 3]] = 0.9, 0.8, 0.7, 0.1
    matching[0, 0], matching[1, [4, 5, 6]] = 0.9, (0.8, 0.7, 0.1)
    found = kinds_of_heads(score, matching, 0.1, 20)
    assert [str(head) for head in found[FUNCTION_VECTORS]] == ["L0H1", "L0H2"]
    assert [str(head) for head in found[INDUCTION]] == ["L1H4", "L1H5"]
    assert len(kinds_of_heads(score, matching, 0.02, 20)[INDUCTION]) == 1
    with pytest.raises(ArgumentError, match=r"`top_share` of 0.6 is 12 of 20 heads, which leaves too few for both kinds"):
        kinds_of_heads(score, matching, 0.6, 20)


@pytest.mark.parametrize(
    ("options", "error", "said"),
    [
        ({"tasks": None}, TextError, "there is no tokenizer: give it `tokenizer=`"),
        ({"n_shots": 1}, ArgumentError, "`n_shots` must be"),
        ({"top_share": 2}, ArgumentError, "`top_share` must"),
        ({"min_difference": -1}, ArgumentError, "`min_difference` must be a number of nats from 0 up, got -1"),
        ({"max_sequences": 11}, ArgumentError, "`max_sequences` must be"),
        ({"error_rate": 0}, ArgumentError, "`error_rate` must"),
    ],
)
def test_what_cannot_be_asked_is_one_line(options, error, said):
    with pytest.raises(error, match=said) as caught:
        assert_icl_heads(load_model(induction_head(**SIZES)), **GIVEN | options)
    assert "\n" not in str(caught.value)


def test_a_budget_that_ends_before_the_heads_are_known_is_undetermined():
    found = evidence(few_shot_head(**SIZES), budget="0.2 passes")
    assert (found.verdict, found.reason) == (Verdict.UNDETERMINED, "budget_spent")
