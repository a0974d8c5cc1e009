"""What calls run is within the price that they state, and within the budget that they are given: tokens are counted in the model."""

import math

import numpy as np
import pytest

from pytest_induction import fixture
from pytest_induction.comparison import continuity
from pytest_induction.deciding import Judgement, until_clear
from pytest_induction.errors import ArgumentError, ExpectationFailed
from pytest_induction.fixture import Induction
from pytest_induction.model.load import load_model
from pytest_induction.planted import (
    class_induction_head,
    concept_head,
    few_shot_head,
    induction_head,
    retrieval_head,
    uniform_head,
)
from pytest_induction.progress import showing_on
from pytest_induction.records import Verdict
from pytest_induction.spending import BARE_PASS, PRICES, Budget, Call, Price, calling, charge, price_in, usual_prices
from tests.behaviour.test_matches import repeating_rows


def small(**sizes):
    """An induction head among few others, in a short context."""
    return induction_head(**{"n_heads": 2, "n_ctx": 64, **sizes})


FEW_SHOT = {"tasks": few_shot_head(d_vocab=33, n_ctx=32).tasks, "n_shots": 3}
WORDS = {"words": concept_head().words}
NEEDLES = {"facts": retrieval_head().facts, "length": 40, "max_sequences": 24}
TEXT = np.random.default_rng(0).integers(1, 40, size=8000)
REPEATING = repeating_rows(40)
ARGUMENTS = {
    "assert_ablation_removes_icl": ((), {"how": "zero", "n_controls": 72, "max_sequences": 24}),
    "assert_follows_rule": ((), {"examples": 4}),
    "assert_recall_carried_by": (("attention",), {}),
    "measure_rules": ((), {"examples": 4}),
    "assert_heads_generalize": (("L1H0",), {"probes": "classes"}),
    "assert_continuity": (([small(), small(n_layers=3)],), {}),
    "assert_heads_preserved": ((small(),), {}),
    "assert_copy_suppression": ((REPEATING,), {}),
    "measure_copy_suppression": ((TEXT,), {}),
    "assert_icl_heads": ((), FEW_SHOT),
    "assert_concept_heads": ((), {**WORDS, "max_sequences": 12}),
    "measure_concept_copying": ((), {**WORDS, "n_sequences": 4}),
    "assert_retrieval_heads": ((), NEEDLES),
    "assert_retrieval_preserved": ((small(),), NEEDLES),
    "measure_retrieval": ((), {"facts": NEEDLES["facts"], "lengths": [32, 48], "n_sequences": 8}),
    "assert_icl_is_induction": ((REPEATING,), {}),
    "assert_learns_in_context": ((TEXT,), {"paired": True}),
    "measure_attributions": ((TEXT,), {"max_rows": 4}),
    "measure_loss_by_match": ((TEXT,), {}),
    "measure_function_vectors": ((), FEW_SHOT),
}
CALLS = sorted(PRICES.keys() - {"assert_head_score"})  # its claim is the user's
OF_FAMILIES = (continuity.assert_continuity.__name__,)  # which bring their own models
WITH_BUDGET = (
    "assert_ablation_removes_icl",
    "assert_concept_heads",
    "assert_continuity",
    "assert_copies_repeats",
    "assert_copy_suppression",
    "assert_follows_rule",
    "assert_has_induction_head",
    "assert_heads_generalize",
    "assert_icl_is_induction",
    "assert_icl_heads",
    "assert_induction_circuit",
    "assert_retrieval_heads",
    "assert_retrieval_preserved",
    "assert_match_length",
    "assert_no_induction_head",
    "assert_recall_carried_by",
    "assert_recalls",
    "assert_prefers_longer_match",
    "find_induction_heads",
    "measure_ablations",
)


def seen(subject):
    """The tokens of every forward pass of the module, as a hook on it sees them."""
    counts = []
    subject.module.register_forward_pre_hook(lambda module, args: counts.append(args[0].numel()))
    return counts


def called(name, subject, **options):
    """What a call gives, or the evidence of an assertion that fails; and all that was run in it."""
    args, given = ARGUMENTS.get(name, ((), {}))
    function, _ = PRICES[name]
    with calling("a test", lambda _: None) as spent:
        try:
            found = function(*([] if name in OF_FAMILIES else [subject]), *args, **given, **options)
        except ExpectationFailed as failed:
            found = failed.evidence
    return found, spent


def stated(name, subject):
    args, given = ARGUMENTS.get(name, ((), {}))
    return price_in(*PRICES[name], subject, args if name in OF_FAMILIES else (subject, *args), given)


@pytest.mark.parametrize("name", CALLS)
def test_a_call_runs_no_more_than_its_price_at_most_and_no_less_than_at_least(name):
    subject = load_model(small())
    price = stated(name, subject)
    _, spent = called(name, subject)
    assert price.least <= spent.tokens <= price.most


@pytest.mark.parametrize("name", ["assert_no_induction_head", "find_induction_heads"])
def test_the_same_where_no_head_is_one(name):
    """Which takes looks at other rows."""
    subject = load_model(uniform_head(n_ctx=64))
    price = stated(name, subject)
    _, spent = called(name, subject)
    assert price.least <= spent.tokens <= price.most


@pytest.mark.parametrize("name", ["assert_icl_heads", "measure_function_vectors"])
def test_the_same_where_few_shot_tasks_are_done(name):
    """Which takes the scores of every head, and ablations."""
    subject = load_model(few_shot_head(d_vocab=33, n_ctx=32, n_heads=2))
    price = stated(name, subject)
    _, spent = called(name, subject)
    assert 3 * price.least < spent.tokens <= price.most


def test_the_same_where_heads_are_explained():
    subject = load_model(small())
    given = {"explain": ["L1H0", "L1H1"], "max_rows": 4}
    price = price_in(*PRICES["measure_copy_suppression"], subject, (subject, TEXT), given)
    _, spent = called("measure_copy_suppression", subject, **given)
    alone = stated("measure_copy_suppression", subject)
    assert price.least <= spent.tokens <= price.most and price.least > 8 * alone.least


@pytest.mark.parametrize("name", ["assert_has_induction_head", "measure_ablations", "measure_copying", "measure_virtual_heads"])
def test_what_is_counted_is_what_goes_through_the_model(name):
    """By a hook that counts for itself; in how the weights of heads are found the model is run a second time, on 18 tokens."""
    subject = load_model(small())
    counts = seen(subject)
    _, spent = called(name, subject)
    assert 0 < spent.tokens <= sum(counts) <= spent.tokens + 18


def test_a_backward_pass_counts_as_two():
    subject = load_model(small())
    counts = seen(subject)
    with_gradients, spent = called("measure_ablations", subject, screen=True)
    assert with_gradients.attribution is not None
    assert sum(counts) < spent.tokens <= 3 * sum(counts)


def test_what_is_remembered_costs_nothing():
    subject = load_model(small())
    called("find_induction_heads", subject)
    assert called("find_induction_heads", subject)[1].tokens == 0


def test_every_call_has_a_price_with_the_arguments_that_it_has_by_default():
    prices = usual_prices(load_model(small()))
    assert prices.keys() == PRICES.keys()
    assert all(0 < price.least <= price.most for price in prices.values())


def test_every_measure_and_assertion_of_a_model_states_one():
    """All that the fixture has, but for properties, of which each draws what it needs."""
    names = {name for name in vars(Induction) if name.startswith(("measure_", "find_induction", "assert_"))}
    assert names - PRICES.keys() == {"assert_property_holds"}
    assert fixture.rounds.measure_heads.__name__ in PRICES


@pytest.mark.parametrize("name", WITH_BUDGET)
def test_a_budget_of_passes_is_never_exceeded(name):
    """Whatever it ends in: nothing known, something, or all."""
    model = small() if name != "assert_heads_generalize" else class_induction_head()
    refused = []
    for passes in (0.1, 4):
        try:
            found, spent = called(name, load_model(model), budget=passes)
        except ArgumentError as error:  # of a measure, which gives nothing then
            refused.append(str(error))
            continue
        assert spent.tokens <= passes * BARE_PASS
        assert any(note.startswith("budget ") for note in found.provenance.notes)
    wanted = '`budget` of 0.1 bare passes is spent before anything is known: give it "1 passes" or more'
    assert refused == ([] if name.startswith("assert_") else [wanted])


def test_a_budget_that_is_spent_before_anything_is_known_is_undetermined():
    found, spent = called("assert_has_induction_head", load_model(small()), budget="0.1 passes")
    assert (found.claim, found.verdict, found.reason) == ("has_induction_head", Verdict.UNDETERMINED, "budget_spent")
    assert spent.tokens <= 0.1 * BARE_PASS
    assert found.next_step == 'budget spent: 0.1 bare passes; give it "1 passes" or more'


def test_a_budget_that_ends_a_verdict_says_what_more_would_take():
    """The round that was drawn is judged: what its heads write is not known yet."""
    found, _ = called("assert_has_induction_head", load_model(small()), budget=2)
    assert (found.verdict, found.reason) == (Verdict.UNDETERMINED, "budget_spent")
    assert "L1H0 has prefix matching 1.000" in found.summary
    assert found.next_step.startswith("budget spent: 2 bare passes; about ")
    assert "budget spent: 2 bare passes" in found.provenance.notes


def test_a_head_that_is_known_when_the_budget_ends_is_shown():
    """Though other heads are still to be told."""
    found, spent = called("assert_has_induction_head", load_model(small()), budget=4)
    assert (found.verdict, [str(head) for head in found.heads]) == (Verdict.SHOWN, ["L1H0"])
    assert spent.tokens < called("assert_has_induction_head", load_model(small()))[1].tokens


def test_the_list_goes_as_far_as_the_budget_and_is_not_remembered():
    subject = load_model(small())
    found, _ = called("find_induction_heads", subject, budget=2)
    assert not found.heads and "L1H0" in map(str, found.undecided)
    whole, spent = called("find_induction_heads", subject)
    assert [str(head) for head in whole.heads] == ["L1H0"] and spent.tokens > 0


def test_enough_of_a_budget_changes_no_verdict():
    with_budget, _ = called("assert_has_induction_head", load_model(small()), budget="400 passes")
    without, _ = called("assert_has_induction_head", load_model(small()))
    assert (with_budget.verdict, with_budget.summary, with_budget.estimates) == (
        without.verdict,
        without.summary,
        without.estimates,
    )


def test_ablations_are_measured_best_first_for_as_long_as_the_budget_lasts():
    subject = load_model(small(n_heads=10))
    whole, _ = called("measure_ablations", subject, n_sequences=2)
    some, spent = called("measure_ablations", subject, n_sequences=2, budget=2)
    measured = ~np.isnan(some.effect)
    assert spent.tokens <= 2 * BARE_PASS
    assert 0 < measured.sum() < whole.effect.size
    assert np.allclose(some.effect[measured], whole.effect[measured], atol=1e-5)
    assert np.abs(some.attribution[measured]).min() >= np.abs(some.attribution[~measured]).max()
    assert any("heads are measured, the largest estimates first" in note for note in some.provenance.notes)


def undetermined(rounds, error_rate):
    return Judgement(Verdict.UNDETERMINED, "unclear", "", more_sequences=100)


class Module:
    """Stands for the module of a model; rates are kept by it."""


@pytest.mark.parametrize(("budget", "sizes"), [(None, [12, 12, 24, 48, 96]), (30, [12, 12, 6]), (24, [12, 12]), (12.5, [12])])
def test_looks_follow_what_is_left(budget, sizes):
    """A sequence is a bare pass here."""
    subject = type("Subject", (), {"module": Module(), "name": "model"})()
    drawn = []

    def draw(count, number):
        for _ in range(count):
            charge(subject, BARE_PASS)
        drawn.append(count)

    with calling("a test", lambda _: None) as call:
        call.budget = None if budget is None else Budget.of(budget)
        _, _, settle = until_clear(draw, undetermined, 192, 1e-3)
    assert drawn == sizes
    spent = sum(sizes)
    wanted = f'budget spent: {budget} bare passes; about 100 more sequences: budget="{spent + 100} passes"'
    assert settle == ("about 100 more sequences: max_sequences=292" if budget is None else wanted)


def test_seconds_end_it_between_two_passes(monkeypatch):
    now = [0.0]
    monkeypatch.setattr("pytest_induction.progress.clock", lambda: now[0])
    subject = type("Subject", (), {"module": Module(), "name": "model"})()

    def draw(count, number):
        for _ in range(count):
            charge(subject, BARE_PASS)
            now[0] += 1.0

    with showing_on(lambda: None), calling("a test", lambda _: None) as call:
        call.budget = Budget.of("30 s")
        rounds, _, settle = until_clear(draw, undetermined, 192, 1e-3)
    assert 24 <= call.tokens / BARE_PASS <= 30 and now[0] <= 30.0
    assert settle.startswith("budget spent: 30 s; about 100 more sequences")
    assert len(rounds) >= 2


@pytest.mark.parametrize(
    ("given", "amount", "unit"),
    [
        ("60 passes", 60, "passes"),
        (60, 60, "passes"),
        ("1 pass", 1, "passes"),
        ("2.5", 2.5, "passes"),
        ("30 s", 30, "s"),
        ("30s", 30, "s"),
    ],
)
def test_budgets_are_passes_or_seconds(given, amount, unit):
    assert Budget.of(given) == Budget(amount, unit)


@pytest.mark.parametrize("given", ["", "many", "60 tokens", "-3 s", 0, -1, math.nan, math.inf, True, "inf passes", [60], "5 s s"])
@pytest.mark.parametrize("name", ["assert_has_induction_head", "measure_ablations"])
def test_what_is_no_budget_is_refused_in_one_line(name, given):
    function, _ = PRICES[name]
    with pytest.raises(ArgumentError, match="`budget` must be bare passes such as") as caught:
        function("no model of that name", budget=given)
    assert "\n" not in str(caught.value) and str(caught.value).endswith(f"got {given!r}")


def test_the_fixture_gives_its_budget_to_every_call_that_takes_one():
    induction = Induction(load_model(small()), defaults={"budget": "0.1 passes"})
    with pytest.raises(ExpectationFailed) as caught:
        induction.assert_has_induction_head()
    assert caught.value.evidence.reason == "budget_spent"
    assert induction.measure_heads(n_sequences=1).prefix_matching.shape == (2, 2)


def test_prices_are_read_in_bare_passes():
    assert str(Price(BARE_PASS, 12 * BARE_PASS)) == "1.0 to 12 bare passes"
    assert str(Price(BARE_PASS, BARE_PASS)) == "1.0 bare passes"
    assert Call("a call", lambda _: None).so_far() == "about 0.0 bare passes"
