"""One snapshot: whole, lighter, and from a quick check."""

import numpy as np
import pytest
import torch

from pytest_induction.errors import ModelError, TextError
from pytest_induction.model.load import load_model
from pytest_induction.runs.measuring import Measuring, signs_of
from tests.model.plain import Plain, unreadable
from tests.runs.training import CONTEXT, D_VOCAB, Tiny

TEXT = np.random.default_rng(0).integers(0, D_VOCAB, (8, CONTEXT))


def test_where_memory_is_for_one_row_at_a_time_the_two_still_agree():
    subject = load_model(Tiny())
    whole = Measuring().snapshot(subject, 0)
    subject.memory = 1
    np.testing.assert_allclose(Measuring().snapshot(subject, 0).excess, whole.excess, atol=1e-6)


def test_lighter_ones_are_of_fewer_sequences_and_say_so():
    sizes = Measuring(text=TEXT).lighter()
    assert [(each.n_sequences, each.text is None) for each in sizes] == [(12, False), (6, False), (6, True), (3, True)]
    assert [(each.n_sequences, each.text is None) for each in Measuring().lighter()] == [(12, True), (6, True), (3, True)]
    assert [each.n_sequences for each in Measuring(n_sequences=2).lighter()] == [2, 2]
    subject = load_model(Tiny())
    for each in sizes:
        found = each.snapshot(subject, 0)
        assert found.n_sequences == each.n_sequences and found.prefix_matching is not None and found.errors["advantage"] > 0
        assert (found.icl_score is None) == (each.text is None)


def test_the_lightest_snapshot_of_a_quick_check_is_the_one_without():
    subject, measuring = load_model(Tiny()), Measuring()
    seen, lightest = measuring.quick_check(subject), measuring.lighter()[-1]
    without, found = lightest.snapshot(subject, 4), lightest.with_round(seen).snapshot(subject, 4)
    np.testing.assert_array_equal(found.prefix_matching, without.prefix_matching)
    assert found.advantage == without.advantage == signs_of(seen)["advantage"]
    assert signs_of(seen)["prefix_matching"] == pytest.approx(found.prefix_matching.max(), rel=1e-6)


def test_a_model_whose_attention_cannot_be_read_shows_its_advantage_alone():
    assert set(signs_of(Measuring().quick_check(load_model(Plain(unreadable, D_VOCAB, n_ctx=CONTEXT))))) == {"advantage"}


def test_a_model_that_has_diverged_since_cannot_be_checked():
    model = Tiny()
    subject = load_model(model)
    with torch.no_grad():
        model.embed.weight.fill_(torch.nan)
    with pytest.raises(ModelError, match="not finite"):
        Measuring().quick_check(subject)


def test_a_text_that_cannot_be_encoded_is_found_before_it_is_measured():
    subject = load_model(Tiny())
    Measuring(text=TEXT).check_text(subject)
    with pytest.raises(TextError, match="has no tokenizer"):
        Measuring(text="words").check_text(subject)
