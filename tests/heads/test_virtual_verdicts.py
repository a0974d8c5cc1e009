"""Virtual induction heads in verdicts: two heads that do in two steps what no single head does, planted and trained."""

import json

import numpy as np
import pytest

import pytest_induction as induction
from pytest_induction import Verdict, planted
from pytest_induction.heads.virtual import PairRound, judge_virtual_head
from pytest_induction.measuring.rounds import round_size
from tests.known_heads import CopiesUnseen, uniform

LARGE = {"d_vocab": 60, "n_ctx": 102}


def evidence(check, *arguments, **options):
    """The evidence, whichever way it goes."""
    try:
        return check(*arguments, **options)
    except induction.ExpectationFailed as failure:
        return failure.evidence


@pytest.mark.parametrize(
    "distance", [pytest.param(1, marks=pytest.mark.exhaustive), 2, pytest.param(3, marks=pytest.mark.exhaustive)]
)
@pytest.mark.parametrize("seed", range(1))
def test_a_planted_virtual_head_is_named_and_counts_where_it_may(distance, seed):
    """By default no single head is there, and the pair is named; with `allow_virtual` that is enough."""
    model = induction.load_model(planted.virtual_induction_head(distance=distance, **LARGE))
    strict = evidence(induction.assert_has_induction_head, model, seed=seed)
    assert (strict.verdict, strict.reason) == (Verdict.REFUTED, "copies_through_pairs")
    assert [str(pair) for pair in strict.pairs] == ["L1H0 after L0H0"] and "L1H0 after L0H0" in strict.summary
    allowed = induction.assert_has_induction_head(model, allow_virtual=True, seed=seed)
    assert (allowed.reason, allowed.heads) == ("formed_virtual", ())
    assert allowed.pairs[0].composed.value == pytest.approx(1, abs=1e-5)
    assert induction.assert_no_induction_head(model, seed=seed).pairs == strict.pairs
    with pytest.raises(
        induction.ExpectationFailed, match="is REFUTED, expected SHOWN: no single head matches prefixes, but L1H0"
    ):
        induction.assert_no_induction_head(model, allow_virtual=True, seed=seed)


@pytest.mark.parametrize("seed", range(2))
def test_a_trained_virtual_head_is_found_whatever_the_seed(seed, shipped):
    """The GPT-2 shape that learned to copy and has no head above 0.15."""
    found = induction.assert_has_induction_head(shipped["virtual"], allow_virtual=True, seed=seed)
    assert found.reason == "formed_virtual" and str(found.pairs[0]) in ("L1H0 after L0H3", "L1H1 after L0H3")
    assert all(pair.composed.low > 0.3 and pair.excess.low > 0.15 for pair in found.pairs)


@pytest.mark.parametrize("name", ["llama", "two-layers", "one-layer"])
def test_single_heads_come_first_and_absence_stays_absence(name, shipped):
    """To allow pairs changes nothing where a single head is there, or the model does not copy."""
    strict, allowed = (
        evidence(induction.assert_has_induction_head, shipped[name], allow_virtual=allow) for allow in (False, True)
    )
    assert (strict.verdict, strict.reason) == (allowed.verdict, allowed.reason) and not allowed.pairs
    assert strict.confidence == allowed.confidence == pytest.approx(0.999)


def rounds_with(composed, chance):
    """Sequences over six periods, four of each at a time, of two heads in two layers; the scores of the one pair that may match."""
    times = 6
    shape = (24 * times, 2, 1, 2, 1)
    empty = np.full(shape, np.nan, dtype=np.float32)
    arrays = [empty.copy(), empty.copy()]
    for array, values in zip(arrays, (composed, chance), strict=True):
        array[:, 1, 0, 0, 0] = np.tile(np.broadcast_to(values, 24), times)
    return PairRound(np.tile(np.repeat(np.arange(13, 19), 4), times), arrays[0], *arrays)


@pytest.mark.parametrize(
    ("composed", "chance", "verdict"),
    [
        (0.9, 0.0, Verdict.SHOWN),
        (0.9, 0.9, Verdict.REFUTED),  # as well where nothing repeats
        (0.9, 0.6, Verdict.SHOWN),  # by a third more than chance
        (0.05, 0.0, Verdict.REFUTED),
        ([1.0] * 4 + [0.0] * 20, 0.0, Verdict.UNDETERMINED),  # at one period of six
    ],
)
def test_pairs_are_judged_by_what_is_left_of_them_without_chance(composed, chance, verdict):
    """Above the threshold, with half of the threshold left beyond wrong places and unrepeated rows, at two periods."""
    noise = np.random.default_rng(0).normal(0, 0.01, 24)
    found = rounds_with(np.clip(np.asarray(composed) + noise, 0, 1), chance)
    assert judge_virtual_head(found, min_prefix_matching=0.3, error_rate=1e-3).verdict is verdict


def test_one_period_is_not_enough_for_a_pair():
    """However far above a low threshold its mean lies."""
    found = rounds_with(np.array([0.5] * 4 + [0.08] * 20), 0.0)
    assert judge_virtual_head(found, min_prefix_matching=0.1, error_rate=0.5).verdict is not Verdict.SHOWN
    assert judge_virtual_head(found, min_prefix_matching=0.07, error_rate=0.5).verdict is Verdict.SHOWN


def test_what_copies_without_any_head_is_said_to():
    """One layer, or no pair that does it: the verdict is what it was, and `allow_virtual` does not make it SHOWN."""
    for options in ({}, {"allow_virtual": True}):
        found = evidence(induction.assert_has_induction_head, CopiesUnseen(uniform), **options)
        assert (found.verdict, found.reason) == (Verdict.REFUTED, "copies_without_a_head")
        assert "no more than chance" in found.summary


def test_a_weak_head_is_not_taken_for_a_pair():
    """A real induction head below the threshold, in a model that copies by it: neither found nor shown to be absent."""
    found = evidence(induction.assert_has_induction_head, planted.induction_head(sharpness=2.0, **LARGE))
    assert (found.verdict, found.reason) == (Verdict.UNDETERMINED, "weak_or_shared")
    assert not found.pairs and str(found.nearest[0]) == "L1H0" and "L1H0 has more than 0.100 beyond chance" in found.summary


def test_an_interval_that_holds_the_threshold_is_undetermined_and_says_how_many_more(shipped):
    """With pairs allowed; without, the verdict does not hang on them."""
    threshold = float(induction.measure_virtual_heads(shipped["virtual"], n_sequences=96).composed[1, 0, 0, 3])
    with pytest.raises(induction.ExpectationFailed, match=r"UNDETERMINED(.*\n)*.*max_sequences=\d+") as caught:
        induction.assert_has_induction_head(
            shipped["virtual"], allow_virtual=True, min_prefix_matching=threshold, max_sequences=28
        )
    assert caught.value.evidence.reason == "pairs_unclear" and "pairs: L1H0 after L0H3" in str(caught.value)


@pytest.mark.exhaustive
def test_a_virtual_head_beside_a_real_one_does_not_hide_it():
    """Its key head attends to wrong places all the time; each head is held against its own chance only."""
    model = planted.virtual_induction_head(distance=1, layer=1, head=2, value_head=2, key_head=3, **LARGE)
    real = planted.induction_head(**LARGE)
    most = 4 * round_size(induction.load_model(real).space)
    assert induction.assert_has_induction_head(real).provenance.n_sequences <= most
    found = evidence(induction.assert_has_induction_head, model)
    assert all(head.prefix_matching.value < 1e-3 for head in found.nearest)


def test_pairs_survive_their_way_through_json(shipped):
    """As everything in the evidence."""
    found = evidence(induction.assert_has_induction_head, shipped["virtual"])
    again = induction.Evidence.from_dict(json.loads(json.dumps(found.to_dict())))
    assert again == induction.Evidence.from_dict(found.to_dict()) and again.pairs == found.pairs != ()
