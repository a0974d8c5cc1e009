"""Ready properties and the search for counterexamples, on planted models of which every right answer is known."""

import math
from functools import cache

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import pytest_induction as induction
from pytest_induction import behaviour, check_property, find_counterexample, load_model, planted, probes, properties
from pytest_induction.behaviour import evaluate_probes
from pytest_induction.errors import ArgumentError, PropertyFailed
from pytest_induction.probes import ProbeSequence, strategies
from pytest_induction.properties import attends_to_successor, completes_repeats, is_relabelling_invariant, prefers_longer_match
from pytest_induction.properties.ready import PROPERTIES
from pytest_induction.records import HeadId

HOLDS, FAILS = True, False
MODELS = {
    "induction": planted.induction_head,
    "latest only": lambda: planted.induction_head(latest_only=True),
    "redundant": planted.redundant_induction_heads,
    "pointer": planted.pointer_induction_head,
    "virtual": planted.virtual_induction_head,
    "matching": planted.matching_head,
    "suppression": planted.copy_suppression_head,
    "counts back": lambda: planted.count_back_head(distance=5),
    "uniform": planted.uniform_head,
}
MATCHES = {"heads": ["L1H0"]}
KNOWN = {  # the property holds on everything hypothesis comes up with, or it finds where it does not
    ("completes_repeats", "induction"): HOLDS,
    ("completes_repeats", "latest only"): HOLDS,
    ("completes_repeats", "redundant"): HOLDS,
    ("completes_repeats", "pointer"): HOLDS,
    ("completes_repeats", "virtual"): HOLDS,
    ("completes_repeats", "matching"): FAILS,
    ("completes_repeats", "suppression"): FAILS,
    ("completes_repeats", "counts back"): FAILS,
    ("completes_repeats", "uniform"): FAILS,
    ("attends_to_successor", "induction"): HOLDS,
    ("attends_to_successor", "pointer"): HOLDS,
    ("attends_to_successor", "matching"): HOLDS,
    ("attends_to_successor", "suppression"): HOLDS,
    ("attends_to_successor", "virtual"): FAILS,
    ("is_period_invariant", "induction"): HOLDS,
    ("is_period_invariant", "virtual"): HOLDS,
    ("is_period_invariant", "uniform"): HOLDS,
    ("is_period_invariant", "counts back"): FAILS,
    ("survives_distractors", "induction"): HOLDS,
    ("survives_distractors", "virtual"): HOLDS,
    ("survives_distractors", "counts back"): FAILS,
    ("is_relabelling_invariant", "induction"): HOLDS,
    ("is_relabelling_invariant", "uniform"): HOLDS,
    ("prefers_longer_match", "induction"): FAILS,
    ("prefers_longer_match", "latest only"): FAILS,
    ("prefers_longer_match", "uniform"): FAILS,
}


@cache
def loaded(name):
    return load_model(MODELS[name]())


@pytest.mark.parametrize(("name", "model"), KNOWN)
def test_a_ready_property_holds_where_it_must_and_only_there(name, model):
    """On every planted model, by name and as the function, and the hunt agrees with the check."""
    options = MATCHES if name == "attends_to_successor" else {}
    subject = loaded(model)
    found = find_counterexample(subject, name, budget=150, seed=1, **options)
    if KNOWN[name, model] is HOLDS:
        assert found is None
        held = check_property(subject, PROPERTIES[name], max_examples=150, seed=2, **options)
        assert held.n_examples >= 100 and held.name == name and held.margin >= 0
        return
    with pytest.raises(PropertyFailed) as caught:
        check_property(subject, name, max_examples=150, seed=2, **options)
    for probe in (found, caught.value.probe):
        outcome = evaluate_probes(subject, probe if isinstance(probe, tuple) else [probe])
        with pytest.raises(PropertyFailed):
            PROPERTIES[name](tuple(outcome) if isinstance(probe, tuple) else outcome[0], **options)


def test_a_matcher_is_not_lured_and_a_ruler_is():
    """On near misses: the induction head looks nowhere in particular, the head that counts back looks by place."""
    subject = loaded("induction")
    check_property(subject, "attends_to_successor", probes=strategies.near_misses, max_examples=80, seed=0, **MATCHES)
    ruler = load_model(planted.count_back_head(distance=5))
    found = find_counterexample(
        ruler,
        "attends_to_successor",
        probes=strategies.near_misses(ruler, period=6),
        budget=50,
        seed=0,
        heads=["L0H0"],
        min_mass=0.01,
    )
    assert found.period == 6 and evaluate_probes(ruler, [found])[0].lured[0, 0] == pytest.approx(1.0)


def breaks_above(period):
    """A property that depends on the sequence alone, and fails above a period."""

    def short(outcome):
        assert outcome.probe.period <= period, f"period {outcome.probe.period}"

    return short


@pytest.mark.exhaustive
def test_the_smallest_counterexample_is_that_of_a_plain_hypothesis_test():
    """Same property, one forward pass for each example under `given`: the same smallest sequence."""
    subject = loaded("counts back")
    strategy = strategies.repeated_sequences(subject, period=(2, 12), repeats=(2, 4), gap=(0, 3))
    for fails in (breaks_above(7), lambda outcome: completes_repeats(outcome, min_accuracy=0.5)):
        plain = smallest_by_given(strategy, lambda probe, fails=fails: fails(evaluate_probes(subject, [probe])[0]))
        found = [find_counterexample(subject, fails, probes=strategy, budget=200, seed=seed) for seed in (0, 1)]
        assert found == [plain] * 2


def smallest_by_given(strategy, look):
    """What a plain hypothesis test says fails."""
    last = []

    @settings(max_examples=200, database=None, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
    @given(strategy)
    def plain(probe):
        try:
            look(probe)
        except AssertionError:
            last[:] = [probe]
            raise

    with pytest.raises(AssertionError):
        plain()
    return last[0]


def test_few_forward_passes_serve_many_examples(monkeypatch):
    """Two hundred sequences in a fifth as many passes."""
    subject, passes = loaded("induction"), []
    original = type(subject).logits

    def counted(self, *tokens, **options):
        passes.append(1)
        return original(self, *tokens, **options)

    monkeypatch.setattr(type(subject), "logits", counted)
    assert check_property(subject, "completes_repeats", max_examples=200, seed=0).n_examples == 200
    assert len(passes) <= 40


def test_the_same_seed_makes_the_same_search():
    """And what was seen first differs with the seed."""
    subject, seen = loaded("induction"), {}
    for run, seed in (("a", 5), ("b", 5), ("c", 6)):
        check_property(
            subject,
            lambda outcome, run=run: seen.setdefault(run, []).append(outcome.probe),
            seed=seed,
            probes=strategies.repeated_sequences,
        )
    assert seen["a"] == seen["b"] != seen["c"]


@pytest.mark.exhaustive
def test_the_hunt_climbs_towards_failure():
    """A property that fails on few sequences, and says how near each is to that: found where chance would rarely do."""
    subject = loaded("uniform")

    def three_ids_are_not_all_high(outcome):
        return 182.0 - sum(outcome.probe.tokens[1:4])

    for seed in range(3):  # one sequence in several thousand fails
        found = find_counterexample(
            subject, three_ids_are_not_all_high, probes=strategies.repeated_sequences, budget=1500, seed=seed
        )
        assert found is not None and sum(found.tokens[1:4]) == 183


@pytest.mark.parametrize("said", [False, -0.5, math.nan, np.bool_(False), np.float32(-1)])
def test_a_property_of_ones_own_may_say_it_in_any_way(said):
    """False, a negative number, or no number at all fails."""

    def mine(outcome):
        return said

    with pytest.raises(PropertyFailed, match="mine does not hold: `mine` returned") as caught:
        check_property(loaded("uniform"), mine, probes=strategies.repeated_sequences, max_examples=5, seed=0)
    assert repr(caught.value.probe) == "BOS | 1 2 3 4 | 1 2 3 4"
    assert (
        check_property(loaded("uniform"), lambda outcome: True, probes=strategies.repeated_sequences, max_examples=5).margin
        is None
    )


def test_the_failure_says_what_where_and_how_to_look_at_it_alone():
    """And what it says to do does it."""
    subject = loaded("uniform")
    with pytest.raises(PropertyFailed) as caught:
        check_property(subject, "completes_repeats", seed=0)
    first, measured, following = str(caught.value).splitlines()
    assert first.startswith("completes_repeats does not hold: after position 5 comes 2, expected the likeliest")
    assert first.endswith("on BOS | 1 2 3 4 | 1 2 3 4")
    assert "PlantedModel, 2 layers x 4 heads by sdpa, float32 on cpu" in measured
    line = following[following.index("check_property(") : following.rindex(")") + 1]
    with pytest.raises(PropertyFailed) as again:
        eval(
            line,
            {
                **vars(induction),
                **{name: getattr(each, name) for each in (induction, properties, behaviour, probes) for name in each.__all__},
                "model": subject,
            },
        )
    assert again.value.probe == caught.value.probe


@pytest.mark.parametrize(
    ("arguments", "options", "said"),
    [
        (("completes_repeat",), {}, "`property` must be a function or one of completes_repeats, attends_to_successor"),
        ((3,), {}, "`property` must be a function or a name, got `int`"),
        (("completes_repeats",), {"min_acuracy": 1}, "`completes_repeats`: got an unexpected keyword argument 'min_acuracy'"),
        (("attends_to_successor",), {}, "`attends_to_successor`: missing a required argument: 'heads'"),
        (("attends_to_successor",), {"heads": ["1.0"]}, "`heads` must be named like 'L5H1', HeadId(5, 1) or (5, 1), got '1.0'"),
        (("attends_to_successor",), {"heads": ["L2H0"]}, "the model has no head L2H0: it has 2 layers of 4 heads"),
        (("completes_repeats",), {"probes": "repeated"}, "`probes` must be a strategy or a function that gives one"),
        (("completes_repeats",), {"probes": []}, "`probes` must be a strategy, a function"),
        (("completes_repeats",), {"probes": lambda model: 3}, "`<lambda>` must return a strategy, it returned `int`"),
        (("completes_repeats",), {"max_examples": 0}, "`max_examples` must be a whole number from 1 up, got 0"),
        (("completes_repeats",), {"seed": -1}, "`seed` must be a whole number from 0 up, got -1"),
        ((lambda outcome: None,), {}, "`<lambda>` is no ready property: give `probes=`"),
        (("completes_repeats",), {"probes": [ProbeSequence((0, 99))]}, "token ids must lie from 0 to 63, got 0 to 99"),
    ],
)
def test_what_makes_no_sense_is_refused_in_one_line(arguments, options, said):
    """Before the search where it can be seen, and never as a failure of the model."""
    with pytest.raises(ArgumentError) as caught:
        check_property(loaded("induction"), *arguments, **options)
    message = str(caught.value).replace("keyword-only ", "")  # Python 3.13 is more exact
    assert said in message and "\n" not in message


@settings(max_examples=10)
@given(st.sampled_from(["L1H0", (1, 0), HeadId(1, 0)]))
def test_heads_are_named_in_three_ways(head):
    """As they print, as a pair, as a record."""
    outcome = evaluate_probes(loaded("induction"), [ProbeSequence((0, 1, 2, 3, 1, 2, 3))])[0]
    assert attends_to_successor(outcome, heads=[head]) == pytest.approx(0.7, abs=1e-4)


def test_margins_are_what_they_say():
    """Of a planted head that is sharp to a known degree: by how much it holds, in nats or as a share."""
    probe = ProbeSequence((0, 1, 2, 3, 4, 1, 2, 3, 4), period=4, repeats=2)
    outcome = evaluate_probes(planted.induction_head(), [probe])[0]
    assert completes_repeats(outcome) == pytest.approx(16, abs=1e-3)
    assert completes_repeats(outcome, max_loss=0.5) == pytest.approx(0.5, abs=1e-3)
    assert completes_repeats(outcome, min_accuracy=0.75) == pytest.approx(0.25)
    assert prefers_longer_match(outcome) == math.inf
    assert (
        attends_to_successor(evaluate_probes(planted.uniform_head(), [ProbeSequence((0, 1, 2))])[0], heads=["L0H0"]) == math.inf
    )
    with pytest.raises(ArgumentError, match="foretold at as many positions"):
        is_relabelling_invariant((outcome, evaluate_probes(outcome.subject, [ProbeSequence((0, 1, 2, 1, 2))])[0]))
