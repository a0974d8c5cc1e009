"""A head that writes nothing is no induction head of a profile, nor one that a later model may have instead."""

import pytest

from pytest_induction import assert_heads_preserved, load_model
from pytest_induction.comparison import profile_of
from pytest_induction.errors import ExpectationFailed, UnsupportedModel
from pytest_induction.heads import copying
from pytest_induction.heads import search as head_search
from tests.heads.mixtures import matching_heads


def induction_heads(model):
    return [(head.layer, head.head) for head in profile_of(model).heads if head.role == "induction"]


def refuse(*arguments, **options):
    raise UnsupportedModel("it cannot be told")


def test_a_head_that_matches_and_writes_nothing_is_not_kept():
    assert induction_heads(matching_heads(12.0, 0.0)) == [(1, 0)]
    assert induction_heads(matching_heads(0.0)) == []


def test_where_the_direct_path_is_not_known_ablation_tells(monkeypatch):
    """Of every head that matches: one that writes is kept, one that does not is not."""
    monkeypatch.setattr(copying, "circuits_of", refuse)
    profile = profile_of(matching_heads(12.0, 0.0))
    assert [(head.layer, head.head) for head in profile.heads if head.role == "induction"] == [(1, 0)]
    assert [note for note in profile.provenance.notes if "not known" in note] == [
        "what each head writes is not known from its weights: it cannot be told"
    ]


def test_where_ablation_cannot_tell_the_head_is_kept_and_a_note_says_so(monkeypatch):
    monkeypatch.setattr(head_search, "written_by", refuse)
    profile = profile_of(matching_heads(12.0, 0.0))
    assert [(head.layer, head.head) for head in profile.heads if head.role == "induction"] == [(1, 0), (1, 1)]
    assert [note for note in profile.provenance.notes if "not known" in note] == [
        "whether each head writes anything is not known: it cannot be told"
    ]


def test_heads_whose_direct_effect_is_clear_are_not_ablated(monkeypatch):
    """Which would be a pass for each of them."""
    asked = []
    monkeypatch.setattr(head_search, "written_by", lambda subject, heads, seed: asked.extend(heads) or [])
    profile_of(matching_heads(12.0, 6.0, -6.0))
    assert asked == []


def test_it_is_measured_once_for_all_looks(monkeypatch):
    calls, written_by = [], head_search.written_by
    monkeypatch.setattr(head_search, "written_by", lambda *given: calls.append(given) or written_by(*given))
    subject = load_model(matching_heads(12.0, 0.0))
    for _ in range(2):
        profile_of(subject)
    assert len(calls) == 1


def test_a_silent_head_takes_no_place_of_one_that_was_lost():
    """It matches as well as the one before, at the same place."""
    with pytest.raises(ExpectationFailed, match="REFUTED") as failed:
        assert_heads_preserved(matching_heads(12.0), matching_heads(0.0))
    assert failed.value.evidence.reason == "both_lost"
