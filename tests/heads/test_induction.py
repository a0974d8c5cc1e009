"""Verdicts on models whose heads are known, and on the trained ones that are shipped."""

from dataclasses import replace

import numpy as np
import pytest
import torch

import pytest_induction as induction
from pytest_induction import Verdict
from pytest_induction.attention import pattern as attention
from pytest_induction.errors import ArgumentError, ModelError, UnsupportedModel
from pytest_induction.measuring.rounds import round_size
from tests import known_heads as planted
from tests.known_heads import CopiesUnseen, Planted


def verdict(model, **options):
    """The evidence, whichever way it goes."""
    try:
        return induction.assert_has_induction_head(model, **options)
    except induction.ExpectationFailed as failure:
        return failure.evidence


PERFECT = {
    "induction": (planted.induction, {"prefix_matching": 1, "duplicate_token": 0}),
    "latest match": (planted.latest_match, {"prefix_matching": 1, "duplicate_token": 0}),
    "duplicate": (planted.duplicate, {"prefix_matching": 0, "duplicate_token": 1, "previous_token": 0}),
    "previous": (planted.previous, {"prefix_matching": 0, "duplicate_token": 0, "previous_token": 1, "first_token": 0}),
    "first": (planted.first, {"prefix_matching": 0, "duplicate_token": 0, "previous_token": 0, "first_token": 1}),
}


@pytest.mark.parametrize("name", PERFECT)
def test_a_perfect_head_scores_the_top_of_its_range_and_no_other(name):
    """Each kind of perfect head has 1 in its own score, and 0 where it must."""
    head, wanted = PERFECT[name]
    found = induction.measure_heads(Planted(head))
    for score, value in wanted.items():
        assert getattr(found, score)[0, 0] == pytest.approx(value, abs=1e-6), score


@pytest.mark.parametrize(("period", "repeats"), [(25, 4), (12, 2), (7, 3)])
def test_a_uniform_head_scores_its_formula(period, repeats):
    """Evenly spread attention reaches one successor for each earlier copy, out of all positions so far."""
    found = induction.measure_heads(Planted(planted.uniform), period=period, repeats=repeats)
    queries = range(1 + period, 1 + period * repeats)
    chance = np.mean([((query - 1) // period) / (query + 1) for query in queries])
    assert found.prefix_matching[0, 0] == pytest.approx(chance, abs=1e-6)
    assert found.duplicate_token[0, 0] == pytest.approx(chance, abs=1e-6)
    assert found.previous_token[0, 0] == pytest.approx(np.mean([1 / (q + 1) for q in range(2, 1 + period * repeats)]), abs=1e-6)


@pytest.mark.parametrize(("period", "score"), [(14, 1.0), (13, 0.0), (15, 0.0)])
def test_a_head_that_counts_back_matches_at_its_own_period_only(period, score):
    """Thirteen back is the successor in a block of fourteen, and nothing in any other."""
    found = induction.measure_heads(Planted(planted.count_back(13)), period=period)
    assert found.prefix_matching[0, 0] == pytest.approx(score, abs=1e-6)


@pytest.mark.parametrize("head", [planted.induction, planted.latest_match])
def test_a_planted_induction_head_is_found(head):
    """It is found among others, and is the only one named."""
    found = verdict(Planted(planted.uniform, head, planted.previous, planted.duplicate))
    assert found.verdict is Verdict.SHOWN
    assert [str(named) for named in found.heads] == ["L0H1"]
    assert found.heads[0].prefix_matching.value == pytest.approx(1)


NOT_INDUCTION = {
    "uniform": (planted.uniform,),
    "first": (planted.first,),
    "previous": (planted.previous,),
    "duplicate": (planted.duplicate,),
    "all of them": (planted.uniform, planted.first, planted.previous, planted.duplicate),
    **{f"counts back {distance}": (planted.count_back(distance),) for distance in (12, 18, 24)},
    "counts back, many": tuple(planted.count_back(distance) for distance in range(11, 25)),
}


@pytest.mark.parametrize("name", NOT_INDUCTION)
@pytest.mark.parametrize("seed", range(1))
def test_other_heads_are_not_called_induction_heads(name, seed):
    """Not even at a low threshold: what does not match prefixes is not above chance."""
    model = induction.load_model(Planted(*NOT_INDUCTION[name]))
    assert verdict(model, seed=seed, min_prefix_matching=0.05).verdict is not Verdict.SHOWN
    assert verdict(model, seed=seed).verdict is Verdict.REFUTED


@pytest.mark.parametrize("seed", range(2))
def test_heads_that_count_back_do_not_hide_one_that_matches(seed):
    """They raise the null by chance; it is measured better then, and does not decide before."""

    def half(tokens):
        return (planted.induction(tokens) + planted.first(tokens)) / 2

    counting = [planted.count_back(distance) for distance in (12, 15, 18, 21, 24)]
    found = verdict(Planted(half, *counting, copy=60.0), seed=seed)
    assert (found.verdict, [str(head) for head in found.heads]) == (Verdict.SHOWN, ["L0H0"])


def test_a_head_that_matches_one_period_only_is_named():
    """A perfect match at one single period is counting back, however high its mean."""

    def only_at_period_five(tokens):
        matches = (tokens[:, 1:6] == tokens[:, 6:11]).all(dim=1)[:, None, None]
        return torch.where(matches, planted.induction(tokens), planted.first(tokens))

    found = verdict(Planted(only_at_period_five, d_vocab=6), max_sequences=384)  # two periods fit: four and five
    assert (found.verdict, found.reason) == (Verdict.REFUTED, "counts_back")


@pytest.mark.parametrize(
    ("copy", "expected"),
    [
        (-20.0, (Verdict.REFUTED, "suppresses_what_it_matches")),
        (0.0, (Verdict.REFUTED, "silent")),
        (0.1, (Verdict.UNDETERMINED, "matches_without_copying")),  # what little it writes is not nothing
    ],
)
def test_a_head_that_matches_but_does_not_copy_is_no_induction_head(copy, expected):
    """An induction head both matches and copies; a suppressor lowers what it finds, a silent one writes nothing."""
    found = verdict(Planted(planted.induction, copy=copy))
    assert (found.verdict, found.reason) == expected


def test_a_model_that_copies_without_a_head_is_not_called_one_that_has_it():
    """Behaviour alone is not a head; the message says what was seen."""
    with pytest.raises(
        induction.ExpectationFailed, match=r"the model copies \(top-1 accuracy 1.00 on later copies\), but not by a head"
    ):
        induction.assert_has_induction_head(CopiesUnseen(planted.uniform))
    assert induction.assert_copies_repeats(CopiesUnseen(planted.uniform)).verdict is Verdict.SHOWN


EXPECTED = {
    "one-layer": (Verdict.REFUTED, "no_head_matches"),
    "one-layer-smeared": (Verdict.SHOWN, "formed"),
    "two-layers": (Verdict.SHOWN, "formed"),
    "three-layers-text": (Verdict.SHOWN, "formed"),
    "llama": (Verdict.SHOWN, "formed"),
    "virtual": (Verdict.REFUTED, "copies_through_pairs"),
}


@pytest.mark.parametrize("name", EXPECTED)
@pytest.mark.parametrize("seed", range(2))
def test_trained_models_get_the_right_verdict_whatever_the_seed(name, seed, shipped):
    """The slice of `make study-verdicts` that every run of the tests sees."""
    found = verdict(_loaded(shipped[name]), seed=seed)
    assert (found.verdict, found.reason) == EXPECTED[name]


_LOADED = {}


def _loaded(spec):
    if spec not in _LOADED:
        _LOADED[spec] = induction.load_model(spec)
    return _LOADED[spec]


def test_random_models_have_no_induction_head():
    """Random weights of varied shape and scale are never SHOWN, and say REFUTED."""
    from tests.heads.random_models import random_models

    for model in random_models(4, seed=0):
        assert verdict(model).verdict is Verdict.REFUTED


def test_a_model_in_which_rounding_decides_is_refused_by_name(monkeypatch):
    """Its scores are so large that products computed one by one are not those that the softmax saw; in float64 they are."""
    from tests.heads.random_models import random_models

    monkeypatch.setattr(attention, "HELD_PRODUCTS", 0)
    model = list(random_models(6, seed=0))[5]
    with pytest.raises(UnsupportedModel, match="rounding decides in float32; give the model in float64"):
        verdict(model)
    assert verdict(model.double()).verdict is Verdict.REFUTED


def test_absence_is_shown_and_not_only_not_found(shipped):
    """assert_no_induction_head passes on the control, and fails on a model that has one."""
    found = induction.assert_no_induction_head(shipped["one-layer"])
    assert (found.claim, found.verdict, found.outcome) == ("no_induction_head", Verdict.SHOWN, "passed")
    positive = verdict(shipped["one-layer"])
    assert replace(positive, claim="no_induction_head", verdict=Verdict.SHOWN, is_asserted=True) == found  # the same evidence
    with pytest.raises(induction.ExpectationFailed, match="no_induction_head is REFUTED, expected SHOWN: 4 heads"):
        induction.assert_no_induction_head(shipped["two-layers"])


def test_undetermined_fails_both_ways_and_says_what_would_settle_it(shipped):
    """A threshold inside the interval gives no verdict, whatever was hoped for."""
    model = _loaded(shipped["llama"])
    threshold = float(induction.measure_heads(model, n_sequences=200).prefix_matching.max())
    for assertion in (induction.assert_has_induction_head, induction.assert_no_induction_head):
        with pytest.raises(
            induction.ExpectationFailed, match=r"UNDETERMINED.*(\n.*)*next: about \d+ more sequences: max_sequences=\d+"
        ):
            assertion(model, min_prefix_matching=threshold, max_sequences=round_size(model.space))


def test_the_same_inputs_and_seed_give_the_same_evidence(shipped):
    """Every number is the same the second time, from a fresh start."""
    one, other = (verdict(shipped["two-layers"], seed=5).to_dict() for _ in range(2))
    assert one == other
    assert verdict(shipped["two-layers"], seed=6).to_dict() != one


def test_evidence_survives_its_way_through_json(shipped):
    """What a worker sends is what the controller shows."""
    import json

    found = verdict(shipped["llama"])
    assert induction.Evidence.from_dict(json.loads(json.dumps(found.to_dict()))).to_dict() == found.to_dict()
    with pytest.raises(ValueError, match="must have schema 1, got 7"):
        induction.Evidence.from_dict({**found.to_dict(), "schema": 7})


def test_nan_attention_never_passes():
    """A head whose pattern is NaN is an error, in either assertion."""

    class Breaks(Planted):
        def forward(self, tokens):
            return super().forward(tokens) * (torch.nan if tokens.shape[1] > 20 else 1)

    for assertion in (induction.assert_has_induction_head, induction.assert_no_induction_head, induction.assert_copies_repeats):
        with pytest.raises(ModelError, match="not finite"):
            assertion(Breaks(planted.induction))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"min_prefix_matching": 0}, "`min_prefix_matching` must lie between 0 and 1, got 0"),
        ({"min_prefix_matching": float("nan")}, "`min_prefix_matching` must lie between 0 and 1, got nan"),
        ({"min_advantage": float("nan")}, "`min_advantage` must be at least 0 nats, got nan"),
        ({"error_rate": 1.5}, "`error_rate` must lie between 0 and 1, got 1.5"),
        ({"max_sequences": 5}, "`max_sequences` must be at least 21 for this model, a round of probes, got 5"),
    ],
)
def test_bad_arguments_are_one_line(options, message):
    """Which argument, what it must be, what it was."""
    with pytest.raises(ArgumentError) as caught:
        induction.assert_has_induction_head(Planted(planted.induction), **options)
    assert str(caught.value) == message


def test_no_frame_of_ours_is_in_a_failure():
    """The traceback ends in the user's own line, but for one hidden frame."""
    with pytest.raises(induction.ExpectationFailed) as caught:
        induction.assert_has_induction_head(Planted(planted.uniform))
    hidden = [entry for entry in caught.traceback if entry.frame.f_locals.get("__tracebackhide__")]
    assert len(caught.traceback) - len(hidden) == 1
    assert caught.value.__cause__ is None


def test_the_text_of_the_control_is_five_lines(shipped):
    """Verdict and threshold, heads, behaviour, where it was measured, what to do next."""
    with pytest.raises(induction.ExpectationFailed) as caught:
        induction.assert_has_induction_head(shipped["one-layer"])
    first, heads, behaviour, measured, following = str(caught.value).splitlines()
    assert first.startswith("has_induction_head is REFUTED, expected SHOWN: no head matches prefixes: the best, L0H")
    assert heads.startswith("  heads: L0H") and "(threshold 0.300; chance gives L0H" in heads
    assert behaviour.startswith("  behaviour: advantage ") and "threshold 0.50" in behaviour and "repeat accuracy 0." in behaviour
    assert (
        "1 layer x 4 heads by sdpa, float32 on cpu; " in measured
        and " sequences, periods " in measured
        and measured.endswith("--induction-seed=0")
    )
    assert following.startswith("  next: if you expect heads, train further")


def test_thresholds_are_those_that_the_documentation_states():
    """A default changes in the documentation too."""
    from pathlib import Path

    from pytest_induction import deciding
    from pytest_induction.behaviour import judging as behaviour
    from pytest_induction.heads import criteria
    from pytest_induction.measuring.rounds import MAX_SEQUENCES

    page = (Path(__file__).parents[2] / "docs" / "metrics.md").read_text()
    for name in ("MIN_PREFIX_MATCHING", "MIN_ADVANTAGE", "MIN_ACCURACY", "MAX_IN_CONTEXT_LEARNING"):
        assert f"**{next(getattr(each, name) for each in (criteria, deciding, behaviour) if hasattr(each, name))}**" in page, name
    assert f"{MAX_SEQUENCES} sequences" in page
