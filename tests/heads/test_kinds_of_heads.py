"""Verdicts on heads of known mechanism: weak ones, shared ones, windows, silent ones, ones that follow a period, and several."""

import pytest

import pytest_induction as p
from pytest_induction import ExpectationFailed, Verdict, load_model
from pytest_induction.heads import search as head_search
from tests.heads.mixtures import matching_heads
from tests.known_heads import (
    Planted,
    behind,
    beyond,
    first,
    follows_period,
    induction,
    residues,
    several_tokens,
    share,
    where,
    within,
)

SEEDS = (0, pytest.param(5, marks=pytest.mark.exhaustive))


def verdict(model, seed, **options):
    """The evidence, whatever it says."""
    try:
        return p.assert_has_induction_head(model, seed=seed, **options)
    except ExpectationFailed as failed:
        return failed.evidence


def names(heads):
    return sorted(str(head) for head in heads)


TEN_BESIDE_ONE = (induction, *(where(induction, residues(5, part % 5, (part + 1) % 5)) for part in range(10)), first)
SPLIT = tuple(where(induction, residues(4, part)) for part in range(4))

UNDETERMINED = {
    "four of a quarter": (Planted(*[share(induction, 0.25)] * 4, copy=80.0), "weak_or_shared"),
    "eight of 0.06": (Planted(*[share(induction, 0.06)] * 8, copy=200.0), "weak_or_shared"),
    "vocabulary split": (Planted(*SPLIT, copy=80.0), "weak_or_shared"),
    "a sink": (Planted(share(induction, 0.25), first, copy=200.0), "weak_or_shared"),
    "a quarter of the tokens": (Planted(where(induction, residues(4, 0)), first, copy=40.0), "weak_or_shared"),
    "far into a row": (Planted(where(induction, beyond(200)), first, n_ctx=300), "in_longer_rows"),
    "late in a short context": (Planted(where(induction, beyond(57)), first, n_ctx=61), "late_in_rows"),
    "close by": (Planted(within(7), first), "at_short_distances"),
    "behind another token": (Planted(where(induction, behind(2)), first), "other_first_token"),
    "a silent one beside weak ones": (
        Planted(induction, *[share(induction, 0.25)] * 4, copy=80.0, silent=(0,)),
        "weak_or_shared",
    ),
}


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("name", UNDETERMINED)
def test_what_is_neither_shown_nor_refuted_is_undetermined(name, seed):
    """Under every seed, for the same reason; neither claim passes, and no head is listed."""
    model, reason = UNDETERMINED[name]
    subject = load_model(model)
    found = verdict(subject, seed)
    assert (found.verdict, found.reason) == (Verdict.UNDETERMINED, reason)
    with pytest.raises(ExpectationFailed):
        p.assert_no_induction_head(subject, seed=seed)


def test_weak_heads_come_with_what_their_layer_has_together():
    """Four heads of a quarter have all of it."""
    found = verdict(UNDETERMINED["four of a quarter"][0], 0)
    assert found.estimates["summed prefix matching of layer 0"].value == pytest.approx(1, abs=0.01)
    assert "the heads of layer 0 have 1.00 together" in found.summary


@pytest.mark.parametrize("seed", SEEDS)
def test_all_heads_are_listed_beside_a_stronger_one(seed):
    """Ten with two fifths of the tokens each, and one with all."""
    found = p.find_induction_heads(Planted(*TEN_BESIDE_ONE), seed=seed)
    assert names(found.heads) == sorted(f"L0H{head}" for head in range(11)) and not found.undecided


def test_a_yes_that_stops_early_says_at_least(monkeypatch):
    """A model too large to be told all of its heads where a yes is asked for."""
    monkeypatch.setattr(head_search, "SMALL_MODEL", 0)
    found = verdict(Planted(*TEN_BESIDE_ONE), 0)
    assert found.verdict is Verdict.SHOWN and "at least" in found.summary


def test_a_yes_ablates_nothing_where_one_head_is_known_to_write(monkeypatch):
    """Of the other, which adds nothing on the direct path, it is not told whether it is silent: the list tells."""
    monkeypatch.setattr(head_search, "SMALL_MODEL", 0)
    subject, asked = load_model(matching_heads(12.0, 0.0)), []
    tell = head_search.written_by
    monkeypatch.setattr(head_search, "written_by", lambda *given: asked.append(given) or tell(*given))
    found = verdict(subject, 0)
    assert names(found.heads) == ["L1H0"] and found.summary.startswith("at least 1 head") and not asked
    listed = p.find_induction_heads(subject)
    assert names(listed.heads) == ["L1H0"] and asked
    assert [(str(head), head.kind) for head in listed.ruled_out] == [("L1H1", "silent")]
    alone = verdict(load_model(matching_heads(0.0)), 0)
    assert alone.verdict is not Verdict.SHOWN and len(asked) == 2  # where no other writes it must be told


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("distance", [15, 17, 23])
def test_a_window_is_told_with_how_far_it_reaches(distance, seed):
    """One answer under every seed, though the mean over all periods of one is near the threshold."""
    found = verdict(Planted(within(distance), first), seed)
    assert (found.verdict, found.heads[0].reach) == (Verdict.SHOWN, distance)
    assert f"up to {distance} back, and not beyond" in found.summary


def test_a_head_without_a_window_reaches_any_distance():
    """Nothing is said then."""
    found = verdict(Planted(induction, first), 0)
    assert found.heads[0].reach is None and "back" not in found.summary


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("count", [1, 2, 3])
def test_how_many_tokens_must_match_is_told(count, seed):
    """By default any match counts; asked for one token, only heads that match on one are enough."""
    subject = load_model(Planted(several_tokens(count), first, d_vocab=128))
    found = verdict(subject, seed)
    assert found.verdict is Verdict.SHOWN and found.heads[0].match_length(0.3) == count
    assert (f"needs {count} matching tokens" in found.summary) == (count > 1)
    strict = verdict(subject, seed, match_length=1)
    expected = (Verdict.SHOWN, "formed") if count == 1 else (Verdict.REFUTED, "needs_longer_match")
    assert (strict.verdict, strict.reason) == expected


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("count", [1, 2, 4, 6])
def test_what_follows_a_period_is_no_induction_head(count, seed):
    """However few matching tokens it takes: it has nothing at irregular distances, or goes on where a match has ended."""
    subject = load_model(Planted(follows_period(count), first, d_vocab=128))
    found = p.assert_no_induction_head(subject, seed=seed)
    assert found.reason == "period_detector" and not p.find_induction_heads(subject, seed=seed).heads


@pytest.mark.parametrize("seed", SEEDS)
def test_a_silent_head_does_not_count(seed):
    """Alone it is why there is none; beside a real one only that is listed."""
    alone = p.assert_no_induction_head(Planted(induction, first, silent=(0,)), seed=seed)
    assert alone.reason == "silent" and alone.nearest[0].kind == "silent"
    found = p.find_induction_heads(Planted(induction, induction, first, silent=(0,)), seed=seed)
    assert (names(found.heads), names(found.ruled_out)) == (["L0H1"], ["L0H0"])


@pytest.mark.parametrize(("n_ctx", "d_vocab", "bos"), [(32, 60, 0), (64, 60, None), (128, 12, 0), (128, 30, None)], ids=str)
def test_short_contexts_and_small_vocabularies_have_the_same_answers(n_ctx, d_vocab, bos):
    """A head that matches is one, and one that follows a period is none."""
    sizes = {"n_ctx": n_ctx, "d_vocab": d_vocab, "bos": bos}
    assert verdict(Planted(induction, first, **sizes), 0).verdict is Verdict.SHOWN
    assert verdict(Planted(first, first, **sizes), 0).verdict is Verdict.REFUTED


def test_the_same_seed_gives_the_same_verdict():
    """With the same heads and numbers."""
    first_time, second = (verdict(Planted(*TEN_BESIDE_ONE), 3) for _ in range(2))
    assert (first_time.summary, first_time.heads) == (second.summary, second.heads)


@pytest.mark.exhaustive
def test_without_all_heads_of_the_list_nothing_is_left_and_without_the_strongest_most_of_it():
    """Which is why what ablates takes the complete list."""
    subject = load_model(Planted(*TEN_BESIDE_ONE, *[first] * 11))
    found = p.assert_ablation_removes_icl(subject, how="zero")
    assert names(found.heads) == sorted(f"L0H{head}" for head in range(11))
    assert found.estimates["share zero"].value == pytest.approx(1, abs=0.05)
    with pytest.raises(ExpectationFailed) as alone:
        p.assert_ablation_removes_icl(subject, how="zero", heads="L0H0")
    assert alone.value.evidence.reason == "removes_too_little" and alone.value.evidence.estimates["share zero"].high < 0.3
