"""Heads that match prefixes and copy, and heads that match and suppress, in one model: which of them count."""

import numpy as np
import pytest

import pytest_induction as induction
from pytest_induction import ExpectationFailed, Verdict, assert_has_induction_head, assert_no_induction_head, planted
from pytest_induction.errors import UnsupportedModel
from pytest_induction.heads import copying
from pytest_induction.heads.copying import circuits_of, direct_effects, named_ruled_out, of_heads
from pytest_induction.measuring.observing import probes_of
from pytest_induction.records import Estimate, Evidence, HeadEvidence
from tests.heads.mixtures import SIZES, matching_heads, pair_beside


def evidence_of(model, **options):
    """The evidence, whichever way it goes."""
    try:
        return assert_has_induction_head(model, **options)
    except ExpectationFailed as failure:
        return failure.evidence


def test_a_suppressor_beside_an_induction_head_is_named_and_does_not_count():
    """Both match; what they add to the logit tells them apart, exactly."""
    found = assert_has_induction_head(matching_heads(16.0, -6.0))
    assert [str(head) for head in found.heads] == ["L1H0"]
    suppressor = found.nearest[0]
    assert (str(suppressor), suppressor.kind) == ("L1H1", "suppresses")
    assert found.heads[0].copy_effect.value == pytest.approx(16, abs=1e-4)
    assert suppressor.copy_effect.value == pytest.approx(-6, abs=1e-4)
    assert "L1H1 lowers what it matches by 6.00 nats, and does not count" in found.summary
    assert Evidence.from_dict(found.to_dict()) == found


@pytest.mark.parametrize("allow_virtual", [False, True])
def test_a_model_that_copies_past_its_suppressor_has_no_single_head(allow_virtual):
    """Prefix matching and copying are both there, in different heads: the pair that copies is found all the same."""
    found = evidence_of(pair_beside(-4.0), allow_virtual=allow_virtual)
    assert found.verdict is (Verdict.SHOWN if allow_virtual else Verdict.REFUTED)
    assert found.reason == ("formed_virtual" if allow_virtual else "copies_through_pairs")
    assert not found.heads and str(found.pairs[0]) == "L1H0 after L0H0"
    assert found.nearest[0].kind == "suppresses" and str(found.nearest[0]) == "L1H1"
    if allow_virtual:
        assert found.summary.startswith("no single head matches prefixes and copies, but L1H0 after L0H0 match")
    else:
        assert "not by a head that matches prefixes: L1H1 lowers what it matches by 4.00 nats" in found.summary
        assert "L1H0 after L0H0 match prefixes in two steps" in found.summary


def test_the_same_head_counts_where_it_copies():
    """Only its sign differs: the guard above is not passed by chance."""
    found = assert_has_induction_head(pair_beside(4.0))
    assert [str(head) for head in found.heads] == ["L1H1"] and found.heads[0].copy_effect.low > 3


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (UnsupportedModel("no weights", details="at all"), "no weights"),
        (RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB"), "RuntimeError: CUDA out of memory"),
        (NotImplementedError("no transpose of packed weights"), "NotImplementedError: no transpose of packed weights"),
    ],
)
def test_where_weights_are_not_known_behaviour_alone_says_whether_it_copies(error, said, monkeypatch):
    """No effect, a note that says why, and the verdict as it was: what was measured is not lost."""

    def unknown(subject):
        raise error

    monkeypatch.setattr(copying, "circuits_of", unknown)
    found = assert_has_induction_head(matching_heads(16.0, -6.0))
    assert len(found.heads) == 2 and all(head.copy_effect is None and head.kind == "matches" for head in found.heads)
    note = found.provenance.notes[-1]
    assert note.startswith(f"what each head writes is not known from its weights: {said}") and "\n" not in note


@pytest.mark.parametrize("name", ["llama", "two-layers", "three-layers-text", "one-layer-smeared"])
def test_the_heads_of_trained_models_copy(name, shipped):
    """Each adds to the logit of what it matches, by an interval above 0; and about as much on other rows."""
    found = assert_has_induction_head(shipped[name])
    assert found.heads
    for head in found.heads:
        assert head.copy_effect is not None and head.copy_effect.low > 0, (head, head.copy_effect)
    model = induction.load_model(shipped[name])
    probes = probes_of(model, 28, np.random.default_rng(1), 2, None)  # two copies, as in the evidence, of other rows
    measured = np.concatenate([direct_effects(model, circuits_of(model), probe)["copy_effect"] for probe in probes]).mean(axis=0)
    for head in found.heads:
        assert measured[head.layer, head.head] == pytest.approx(head.copy_effect.value, rel=0.25)


def test_a_suppressor_is_named_where_nothing_copies():
    """The verdict was no already; now the head says why."""
    with pytest.raises(ExpectationFailed) as caught:
        assert_has_induction_head(planted.copy_suppression_head(**SIZES))
    assert not caught.value.evidence.heads
    head = caught.value.evidence.nearest[0]
    assert head.kind == "suppresses" and head.copy_effect.value == pytest.approx(-16, abs=1e-4)
    assert_no_induction_head(planted.copy_suppression_head(**SIZES))


def told(*means, spread=1.0, count=24, error_rate=2e-4):
    """The kinds of heads that match, with copy effects of these means."""
    rng = np.random.default_rng(0)
    noise = rng.standard_normal((count, 1, len(means)))
    noise = (noise - noise.mean(0)) / noise.std(0, ddof=1)
    score = Estimate(0.9, 0.8, 1.0, "share")
    heads = [HeadEvidence(0, head, score, score, 0, 0, 0, 0, 0, kind="matches") for head in range(len(means))]
    found = of_heads(heads, np.array(means) + spread * noise, error_rate)
    assert [head.copy_effect.value for head in found] == pytest.approx(means)
    assert [str(head) for head in found] == [str(head) for head in heads]
    return [head.kind for head in found]


@pytest.mark.parametrize(
    ("means", "kinds"),
    [
        ((5.0, 5.0), ["matches", "matches"]),
        ((5.0, -5.0), ["matches", "suppresses"]),
        ((-5.0, -5.0), ["suppresses", "suppresses"]),
        ((0.0, 0.0), ["matches", "matches"]),  # what it writes may be read by a later layer
        ((-1.0, -5.0), ["matches", "suppresses"]),  # 24 sequences of spread 1 do not show that the first lowers it by a quarter
        ((-1.5, -5.0), ["suppresses", "suppresses"]),  # but this they do
    ],
)
def test_only_what_is_shown_to_suppress_does_not_count(means, kinds):
    """An interval that holds -0.25 leaves a head as it is."""
    assert told(*means) == kinds


@pytest.mark.parametrize(("mean", "kind"), [(-0.2, "matches"), (-0.3, "suppresses")])
def test_a_little_below_nothing_is_no_suppression(mean, kind):
    """However sure it is: a head that a later one reads from may lower the logit a little itself."""
    assert told(mean, spread=0.01) == [kind]


def test_many_heads_share_the_error_rate():
    """What one head may be shown to do alone, it may not among thirty."""
    assert told(-1.2) == ["suppresses"]
    assert told(-1.2, *[0.0] * 29)[0] == "matches"


def test_heads_that_do_not_count_are_named_by_what_they_do():
    """Those that suppress with how much they lower, those that write nothing beside them; one or several of each."""
    score, effect = Estimate(0.9, 0.8, 1.0, "share"), Estimate(-4.0, -4.5, -3.5, "nats")
    heads = [HeadEvidence(0, head, score, score, 0, 0, 0, 0, 0, kind="suppresses", copy_effect=effect) for head in range(2)]
    silent = HeadEvidence(1, 0, score, score, 0, 0, 0, 0, 0, kind="silent")
    assert named_ruled_out(heads) == "L0H0 and 1 more lower what they match by 4.00 nats"
    assert named_ruled_out([heads[0], silent]) == "L0H0 lowers what it matches by 4.00 nats, L1H0 writes nothing"
    assert named_ruled_out([]) == ""
