"""Properties over the snapshots of a training, on mappings from steps to models of which every right answer is known."""

import random
from itertools import pairwise

import pytest
from hypothesis import settings
from hypothesis.database import InMemoryExampleDatabase
from torch import nn

import pytest_induction as induction
from pytest_induction import (
    ExpectationFailed,
    Verdict,
    assert_property_holds,
    assert_property_holds_from,
    check_property,
    find_counterexample,
    load_model,
    planted,
    probes,
    properties,
)
from pytest_induction.behaviour import evaluate_probes
from pytest_induction.errors import ArgumentError, ModelError, PropertyFailed, RunError
from pytest_induction.model.protocol import ModelUnderTest
from pytest_induction.observers import collecting, tracking_subjects
from pytest_induction.probes import ProbeSequence, strategies
from pytest_induction.runs.hunting import CONFIRMED
from pytest_induction.runs.properties import PropertyOverTraining
from pytest_induction.runs.record import Hunted, Snapshot, TrainingRun

REPEATS = "completes_repeats"
SIZES = {"n_heads": 1, "d_vocab": 40, "n_ctx": 48}
SMALLEST = ProbeSequence((0, 1, 2, 3, 4, 1, 2, 3, 4), period=4, repeats=2, breaks=(1, 5), first=True)


@pytest.fixture(scope="module")
def models():
    """A model that completes every repeat, and one that completes none."""
    return {True: load_model(planted.induction_head(**SIZES)), False: load_model(planted.uniform_head(**SIZES))}


def training_of(models, pattern):
    """Snapshots ten steps apart that hold where the pattern says so."""
    return {10 * place: models[holds] for place, holds in enumerate(pattern)}


class Limited(nn.Module):
    """Completes all repeats; a property of the tests asks it for the longest period that it is said to manage."""

    def __init__(self, longest, fewest=0):
        super().__init__()
        self.model = planted.induction_head(**SIZES)
        self.longest, self.fewest = longest, fewest
        self.vocab_size, self.n_ctx, self.bos_token_id = 40, 48, 0

    def forward(self, tokens):
        return self.model(tokens)


def within_the_limit(outcome):
    """Fails above a period that is known, but for sequences of many copies."""
    model = outcome.subject.given
    assert outcome.probe.period <= model.longest or outcome.probe.repeats < model.fewest, f"period {outcome.probe.period}"


@pytest.fixture
def passes(monkeypatch):
    """Counts forward passes."""
    seen = []
    original = ModelUnderTest.logits

    def counted(self, *tokens, **options):
        seen.append(len(tokens[0]))
        return original(self, *tokens, **options)

    monkeypatch.setattr(ModelUnderTest, "logits", counted)
    return seen


@pytest.fixture
def profile():
    """Runs a block under hypothesis settings of a test's own."""
    before = settings.get_current_profile_name()

    def load(**given):
        settings.register_profile("of-this-test", settings(**given))
        settings.load_profile("of-this-test")

    yield load
    settings.load_profile(before)


class TestWhatHoldsFromWhere:
    @pytest.mark.parametrize("onset", [0, 1, 7, 19])
    def test_the_snapshot_from_which_on_it_holds_is_found(self, models, onset):
        """Wherever it is, and what is said of each snapshot is right."""
        pattern = [place >= onset for place in range(20)]
        found = check_property(training_of(models, pattern), REPEATS, seed=0, max_examples=40)
        assert found.holds_from == 10 * onset and found.fails_until == (10 * onset - 10 if onset else None)
        assert list(found.holds.values()) == pattern
        assert [each is None for each in found.counterexamples.values()] == pattern

    @pytest.mark.parametrize("seed", range(3))
    def test_halving_says_what_a_hunt_at_every_snapshot_says(self, models, seed):
        """Also where it holds and fails by turns."""
        draw = random.Random(seed)
        training = training_of(models, [*(draw.random() < 0.7 for _ in range(15)), True])
        quick, slow = (check_property(training, REPEATS, seed=1, max_examples=40, bisect=bisect) for bisect in (True, False))
        assert quick.holds == slow.holds and quick.holds_from == slow.holds_from
        assert quick.counterexamples == slow.counterexamples

    def test_every_snapshot_after_it_is_looked_at_and_the_next_ones_have_a_hunt_of_their_own(self, models):
        found = check_property(training_of(models, [False] * 3 + [True] * 17), REPEATS, seed=0, max_examples=40)
        after = [hunted for step, hunted in found.hunts.items() if step >= found.holds_from]
        assert len(after) == 17 and all(each.n_examples for each in after)
        assert not any(each.is_replayed for each in after[: 1 + CONFIRMED]) and after[-2].is_replayed

    def test_a_lapse_that_halving_steps_over_is_seen(self, models):
        """One snapshot of thirty, and the verdict is about what comes after it."""
        pattern = [False] * 4 + [True] * 26
        pattern[21] = False
        training = training_of(models, pattern)
        assert check_property(training, REPEATS, seed=0, max_examples=40).holds_from == 220
        with pytest.raises(PropertyFailed) as caught:
            check_property(training, REPEATS, holds_from=40, seed=0, max_examples=40)
        assert "fails at 1 of 26 snapshots from step 40 on, the last step 210: BOS | 1 2 3 4 | 1 2 3 4" in str(caught.value)

    def test_one_snapshot_is_a_training_too(self, models):
        assert check_property({7: models[True]}, REPEATS, seed=0, max_examples=20).holds_from == 7

    def test_sequences_that_are_listed_are_all_looked_at_everywhere(self, models):
        """Just these; the smallest of them that fails is named."""
        long = ProbeSequence((0, *range(1, 7), *range(1, 7)), period=6, repeats=2, breaks=(1, 7), first=True)
        found = find_counterexample(training_of(models, [False, False, True, True, True, True]), REPEATS, probes=[long, SMALLEST])
        assert list(found.values()) == [SMALLEST, SMALLEST, None, None, None, None]
        assert {each.n_examples for each in found.hunts.values()} == {2}
        assert found.fewest_copies == {0: 2, 10: 2} and found.shortest_periods == {0: 4, 10: 4}


class TestTheCurve:
    def test_the_smallest_failure_grows_as_the_model_learns(self):
        """At each snapshot the shortest period that fails is the first above what the model manages."""
        longest = [0, 4, 5, 5, 7, 9, 12, 12]
        training = {step: load_model(Limited(each)) for step, each in enumerate(longest)}
        found = check_property(training, within_the_limit, probes=strategies.repeated_sequences, seed=0, max_examples=100)
        expected = {step: max(4, each + 1) for step, each in enumerate(longest) if each < 10}
        assert found.shortest_periods == expected and found.holds_from == 6
        assert {step: each.period for step, each in found.counterexamples.items() if each is not None} == expected
        assert set(found.fewest_copies.values()) == {2}

    def test_the_fewest_copies_are_those_of_all_that_fail(self):
        """Where two copies never fail, three do."""
        training = {0: load_model(Limited(4, fewest=3)), 1: load_model(Limited(12))}
        found = find_counterexample(training, within_the_limit, probes=strategies.repeated_sequences, seed=0, budget=200)
        assert (found[0].period, found[0].repeats) == (5, 3) and found[1] is None

    def test_the_hunt_returns_the_smallest_at_each_step(self, models):
        found = find_counterexample(training_of(models, [False, False, True]), REPEATS, budget=60, seed=0)
        assert found == {0: SMALLEST, 10: SMALLEST, 20: None} == found.counterexamples and len(found) == 3
        assert str(found) == (
            "completes_repeats over models: holds from step 20 on, as far as was looked at; fails at 2 of 3 snapshots, "
            "the last step 10: BOS | 1 2 3 4 | 1 2 3 4"
        )

    def test_the_hunt_says_what_fails_where_nothing_holds_in_the_end(self, models):
        """It asserts nothing."""
        found = find_counterexample(training_of(models, [True, False]), REPEATS, budget=60, seed=0)
        assert found.holds_from is None and found.fails_until == 10 and found[0] is None and found[10] == SMALLEST

    def test_pairs_are_shrunk_to_the_smallest_pair(self):
        training = {0: planted.count_back_head(distance=5), 1: planted.induction_head()}
        found = find_counterexample(training, "is_period_invariant", budget=100, seed=0)
        assert len(found[0]) == 2 and found[1] is None
        with pytest.raises(PropertyFailed):
            properties.is_period_invariant(tuple(evaluate_probes(training[0], found[0])))


class TestFewPasses:
    def test_halving_and_replays_save_most_passes(self, models, passes):
        """Of forty snapshots, the last thirty of which hold: measured, and the verdict is the same."""
        training = training_of(models, [False] * 10 + [True] * 30)
        counts = {}
        for bisect in (True, False):
            passes.clear()
            found = check_property(training, REPEATS, seed=0, bisect=bisect, max_examples=100)
            counts[bisect] = (len(passes), found.n_examples)
            assert found.holds_from == 100
        assert counts[True][0] * 2 < counts[False][0], counts
        assert counts[True][1] * 2 < counts[False][1], counts

    def test_what_failed_at_one_snapshot_is_tried_first_at_the_next(self, models, passes):
        """A snapshot that fails costs a pass or two, once a failing sequence is known."""
        few, many = ({**training_of(models, [False] * count), 1000: models[True]} for count in (2, 12))
        counts = []
        for training in (few, many):
            passes.clear()
            check_property(training, REPEATS, seed=0, max_examples=40)
            counts.append(len(passes))
        assert (counts[1] - counts[0]) / 10 <= 4

    def test_a_snapshot_is_loaded_once_or_twice(self, models, monkeypatch):
        loaded = []
        from pytest_induction.runs.checkpoints.trainings import TrainingModels

        load = TrainingModels.load
        monkeypatch.setattr(TrainingModels, "load", lambda self, place: loaded.append(place) or load(self, place))
        check_property(training_of(models, [False] * 10 + [True] * 30), REPEATS, seed=0, max_examples=40)
        assert set(loaded) == set(range(40)) and len(loaded) <= 44


class TestVerdicts:
    def test_it_fails_at_the_end(self, models):
        """With the smallest sequence, and with what to do, which does it."""
        with pytest.raises(PropertyFailed) as caught:
            check_property(training_of(models, [False, True, True, False]), REPEATS, seed=0, max_examples=40)
        first, why, measured, following = str(caught.value).splitlines()
        assert first == ("completes_repeats does not hold: fails at the last snapshot, step 30: BOS | 1 2 3 4 | 1 2 3 4")
        assert "after position 5 comes 2" in why and "4 snapshots, steps 0 to 30" in measured
        line = following[following.index("check_property(") : following.index(" of the model at step 30")]
        names = {
            **vars(induction),
            **{name: getattr(each, name) for each in (induction, properties, probes) for name in each.__all__},
        }
        with pytest.raises(PropertyFailed) as again:
            eval(line, {**names, "model": models[False]})
        assert again.value.probe == caught.value.probe == SMALLEST

    def test_it_holds_from_a_step_on(self, models):
        training = training_of(models, [False, False, True, True])
        for step in (20, 25, 30, 15):
            assert check_property(training, REPEATS, holds_from=step, seed=0, max_examples=40).holds_from == 20
        with pytest.raises(PropertyFailed, match="fails at 1 of 3 snapshots from step 10 on, the last step 10"):
            check_property(training, REPEATS, holds_from=10, seed=0, max_examples=40)

    def test_what_holds_says_on_what(self, models):
        """Nobody has seen all sequences, and no confidence is stated."""
        with collecting() as heard:
            check_property(training_of(models, [False] * 5 + [True] * 8), REPEATS, seed=0, max_examples=40)
        (evidence,) = heard
        assert evidence.claim == "property_holds_from" and evidence.confidence is None
        assert evidence.summary == (
            "completes_repeats holds from step 50 on: on all of 40 sequences generated at each of 4 snapshots, at the 4 others on "
            "what failed before or held by the least; at step 40 this fails: BOS | 1 2 3 4 | 1 2 3 4"
        )
        assert evidence.estimates["holds_from_steps"].low == 40 and evidence.estimates["holds_from_steps"].high == 50

    @pytest.mark.parametrize(
        ("bound", "verdict", "reason"),
        [
            (60, Verdict.SHOWN, "holds"),
            (50, Verdict.SHOWN, "holds"),
            (45, Verdict.UNDETERMINED, "holds_from_unclear"),
            (40, Verdict.REFUTED, "too_late"),
            (5, Verdict.REFUTED, "too_late"),
        ],
    )
    def test_the_bound_is_held_against_both_ends_of_the_onset(self, models, bound, verdict, reason):
        """It begins to hold somewhere between the last snapshot that fails and the next."""
        training = training_of(models, [False] * 5 + [True] * 4)
        options = {"property": REPEATS, "before_step": bound, "seed": 0, "max_examples": 40}
        if verdict is Verdict.SHOWN:
            assert assert_property_holds_from(training, **options).reason == reason
            return
        with pytest.raises(ExpectationFailed) as caught:
            assert_property_holds_from(training, **options)
        assert (caught.value.evidence.verdict, caught.value.evidence.reason) == (verdict, reason)
        assert "next: see docs" not in str(caught.value)

    def test_tokens_that_are_not_known_leave_it_open(self, models):
        with pytest.raises(ExpectationFailed) as caught:
            assert_property_holds_from({0: models[True]}, property=REPEATS, before_tokens=1e6, seed=0, max_examples=20)
        assert caught.value.evidence.reason == "tokens_not_known"

    def test_no_snapshot_after_the_step_leaves_it_open(self, models):
        with pytest.raises(ExpectationFailed) as caught:
            check_property({0: models[True], 10: models[True]}, REPEATS, holds_from=11, seed=0, max_examples=20)
        assert caught.value.evidence.reason == "no_snapshots" and "the last snapshot is of step 10" in str(caught.value)

    @pytest.mark.parametrize("place", [5, 9])
    def test_a_model_that_cannot_be_had_leaves_it_open(self, models, place):
        """Whether in the middle of what holds or at the end; the others are looked at."""
        training = training_of(models, [False] * 3 + [True] * 7)
        training[10 * place] = "no/such/model"
        with pytest.raises(ExpectationFailed) as caught:
            check_property(training, REPEATS, seed=0, max_examples=40)
        evidence = caught.value.evidence
        assert evidence.verdict is Verdict.UNDETERMINED and evidence.reason == "not_looked_at"
        assert f"could not be looked at at step {10 * place}" in evidence.summary

    def test_one_that_cannot_be_had_before_it_holds_is_passed_over(self, models):
        training = {**training_of(models, [False] * 3 + [True] * 7), 10: "no/such/model"}
        found = check_property(training, REPEATS, seed=0, max_examples=40)
        assert found.holds_from == 30 and found.hunts[10].problem and 10 not in found.holds

    def test_a_module_that_raises_costs_its_snapshot_alone(self, models):
        class Broken(nn.Module):
            def forward(self, tokens):
                raise RuntimeError("out of luck")

        found = check_property({0: Broken(), 10: models[False], 20: models[True]}, REPEATS, seed=0, max_examples=20)
        assert found.holds == {10: False, 20: True} and found.hunts[0].problem

    def test_a_mistake_in_a_property_of_ones_own_is_raised(self, models):
        with pytest.raises(ZeroDivisionError):
            check_property({0: models[True]}, lambda outcome: 1 / 0, probes=strategies.repeated_sequences, seed=0, max_examples=5)

    def test_no_model_at_all_leaves_it_open(self):
        with pytest.raises(ExpectationFailed) as caught:
            check_property({0: "no/such/model", 1: "no/such/model"}, REPEATS, seed=0)
        assert caught.value.evidence.reason == "not_looked_at"

    def test_a_property_that_asks_nothing_is_refused(self, models):
        with pytest.raises(ArgumentError, match="asked nothing"):
            check_property({0: models[True]}, REPEATS, probes=strategies.unrepeated_sequences, seed=0, max_examples=20)


def recorded(*hunts, tokens_per_step=100):
    """A run whose recorder hunted at some of its snapshots; True holds, False fails, None was not looked at."""
    looked = {True: Hunted(64, margin=1.0), False: Hunted(3, counterexample=(SMALLEST,), shortest_period=4, fewest_copies=2)}
    snapshots = [Snapshot(10 * place, hunts={} if each is None else {REPEATS: looked[each]}) for place, each in enumerate(hunts)]
    return TrainingRun("recorded", tuple(snapshots), tokens_per_step=tokens_per_step)


class TestRecordedRuns:
    def test_what_the_recorder_hunted_is_judged(self):
        run = recorded(False, None, False, None, True, None, True)
        assert check_property(run, REPEATS).holds_from == 40
        found = assert_property_holds_from(run, property=REPEATS, before_tokens=4000)
        assert found.estimates["holds_from_tokens"].low == 2000 and found.estimates["holds_from_tokens"].value == 4000
        with pytest.raises(ExpectationFailed, match="begins to hold after 2000 tokens and by 4000, and must by 3000"):
            assert_property_holds_from(run, property=REPEATS, before_tokens=3000)

    @pytest.mark.parametrize(
        ("hunts", "reason"),
        [((False, True, None), "end_not_looked_at"), ((True, False, None), "end_not_looked_at"), ((False,), "fails_at_the_end")],
    )
    def test_the_end_decides(self, hunts, reason):
        with pytest.raises(ExpectationFailed) as caught:
            assert_property_holds_from(recorded(*hunts), property=REPEATS)
        assert caught.value.evidence.reason == reason

    def test_what_was_not_looked_at_before_the_step_leaves_it_open(self):
        """Nobody knows of the snapshots between the one that fails and the one that holds."""
        run = recorded(False, None, None, True, True)
        check_property(run, REPEATS, holds_from=30)
        with pytest.raises(ExpectationFailed, match="was not looked at between step 0, where it fails, and step 30"):
            check_property(run, REPEATS, holds_from=10)

    def test_what_was_not_hunted_says_what_to_do(self):
        with pytest.raises(RunError, match=r"has no weights, and `prefers_longer_match` was not hunted .*only completes_repeats"):
            check_property(recorded(True), "prefers_longer_match")
        with pytest.raises(RunError, match="name its checkpoints, or record it with hunt="):
            check_property(TrainingRun("bare", (Snapshot(0), Snapshot(1))), REPEATS)


class TestTheSameAgain:
    def test_the_same_seed_finds_the_same(self, models):
        training = training_of(models, [False] * 3 + [True] * 5)
        one, other = (check_property(training, REPEATS, seed=3, max_examples=40) for _ in range(2))
        assert one.hunts == other.hunts

    def test_in_ci_the_profile_makes_it_the_same(self, models, profile):
        profile(derandomize=True, max_examples=30)
        training = {step: load_model(Limited(each)) for step, each in enumerate([0, 5, 12])}
        one, other = (
            check_property(training, within_the_limit, probes=strategies.repeated_sequences, max_examples=40) for _ in range(2)
        )
        assert one.hunts == other.hunts

    def test_failures_are_replayed_from_the_database(self, models, profile):
        """A failure of one session is the first thing that the next one looks at, and one that fails no more is forgotten."""
        database = InMemoryExampleDatabase()
        profile(database=database, derandomize=False)
        training = {0: load_model(Limited(7)), 1: load_model(Limited(12))}
        probes = strategies.repeated_sequences
        check_property(training, within_the_limit, probes=probes, max_examples=60)
        assert sum(map(len, database.data.values()))
        seen = []

        def watched(outcome):
            seen.append(outcome.probe.period)
            within_the_limit(outcome)

        watched.__name__ = "within_the_limit"
        check_property(training, watched, probes=probes, max_examples=60)
        assert seen[0] == 8
        check_property({1: training[1]}, within_the_limit, probes=probes, max_examples=60)
        assert not sum(map(len, database.data.values()))


class TestArguments:
    @pytest.mark.parametrize(
        ("training", "options", "said"),
        [
            ({}, {}, "a training must have a model at one step at least"),
            ({-1: "x"}, {}, "`a step` must be a whole number from 0 up"),
            ({0: "x"}, {"holds_from": -1}, "`holds_from` must be a whole number from 0 up"),
            ({0: "x"}, {"max_examples": 0}, "`max_examples` must be a whole number from 1 up"),
            ({0: "x"}, {"min_acuracy": 1}, "got an unexpected keyword argument 'min_acuracy'"),
        ],
    )
    def test_mistakes_are_told_in_one_line(self, training, options, said):
        with pytest.raises(ArgumentError) as caught:
            check_property(training, REPEATS, **options)
        assert said in str(caught.value) and "\n" not in str(caught.value)

    def test_a_property_that_is_wrong_at_the_first_snapshot_is_wrong_at_all(self, models):
        """Its mistake is raised at once, and is no problem of a snapshot."""
        with pytest.raises(ArgumentError, match="the model has no head L9H0"):
            check_property({0: models[True]}, "attends_to_successor", heads=["L9H0"], seed=0, max_examples=5)

    def test_what_is_for_trainings_is_refused_of_a_model(self, models):
        for options in ({"factory": "a.py:make"}, {"steps": [1]}, {"holds_from": 3}):
            with pytest.raises(ArgumentError, match="is for a training, and this is one model"):
                check_property(models[True], REPEATS, **options)

    def test_no_single_model_of_a_training_is_named_to_the_report(self, models):
        with tracking_subjects() as named:
            check_property(training_of(models, [False, True]), REPEATS, seed=0, max_examples=20)
        assert [type(subject) for subject, _ in named] == [TrainingRun]
        assert all(each.hunts for each in named[0][0].snapshots)


def test_a_model_that_holds_as_a_claim(models):
    """`assert_property_holds` says the same as `check_property`, with evidence."""
    found = assert_property_holds(models[True], property=REPEATS, options={"max_loss": 1.0}, seed=0, max_examples=50)
    assert found.claim == "property_holds" and found.reason == "holds" and found.confidence is None
    assert found.summary.startswith("completes_repeats(max_loss=1.0) holds on all of 50 generated sequences, by ")
    with pytest.raises(ExpectationFailed, match=r"fails: after position .* on BOS \| 1 2 3 4 \| 1 2 3 4"):
        assert_property_holds(models[False], property=REPEATS, seed=0, max_examples=50)
    with pytest.raises(ModelError, match="cannot be imported"):
        assert_property_holds(models[False], property="no.such.module:mine")
    with pytest.raises(ArgumentError, match="asked nothing"):
        assert_property_holds(models[True], property=REPEATS, probes="unrepeated_sequences", seed=0, max_examples=20)


def test_the_history_says_nothing_that_was_not_found():
    """Of an empty one."""
    empty = PropertyOverTraining(REPEATS, TrainingRun("empty", ()))
    assert str(empty) == "completes_repeats over empty: not looked at" and not len(empty)
    assert empty.holds == {} and empty.holds_from is None and empty.fails_until is None
    assert all(one < other for one, other in pairwise(empty.hunts))
