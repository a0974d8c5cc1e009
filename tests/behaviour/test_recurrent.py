"""Shipped models without attention, or with little: what they do, what carries it, and the same classes untrained."""

import numpy as np
import pytest
import torch

from pytest_induction import (
    Verdict,
    assert_copies_repeats,
    assert_follows_rule,
    assert_has_induction_head,
    assert_learns_in_context,
    assert_recall_carried_by,
    assert_recalls,
    load_model,
)
from pytest_induction.errors import ExpectationFailed, UnsupportedModel
from tests.conftest import FIXTURES

pytest.importorskip("transformers")
MODELS = ("mamba2-2l", "bamba-2l")


@pytest.fixture(scope="module", params=MODELS)
def shipped(request):
    return load_model(str(FIXTURES / "models" / request.param))


@pytest.fixture(scope="module")
def mamba2():
    return load_model(str(FIXTURES / "models" / "mamba2-2l"))


@pytest.fixture(scope="module")
def bamba():
    return load_model(str(FIXTURES / "models" / "bamba-2l"))


def verdict_of(check, *given, **options):
    try:
        return check(*given, **options).verdict, ""
    except ExpectationFailed as failed:
        return failed.evidence.verdict, failed.evidence.reason


def test_they_copy_and_recall(shipped):
    assert verdict_of(assert_copies_repeats, shipped)[0] is Verdict.SHOWN
    assert verdict_of(assert_recalls, shipped, pairs=8)[0] is Verdict.SHOWN


def test_they_follow_no_rule_that_they_were_not_taught(shipped):
    assert verdict_of(assert_follows_rule, shipped, examples=4)[0] is not Verdict.SHOWN


def test_the_hybrid_learns_in_the_context_of_rows_that_repeat(bamba):
    """A text whose tokens cannot be foretold but by an earlier copy, and one in which there is none."""
    rng = np.random.default_rng(0)
    assert verdict_of(assert_learns_in_context, bamba, repeating(rng), paired=True)[0] is Verdict.SHOWN
    assert verdict_of(assert_learns_in_context, bamba, rng.integers(1, 64, 9000), paired=True)[0] is not Verdict.SHOWN


def test_what_a_state_was_not_trained_for_is_no_learning_in_context(mamba2):
    """Trained on 64 positions: later in longer rows it predicts no better, and that is said."""
    assert verdict_of(assert_learns_in_context, mamba2, repeating(np.random.default_rng(0)), paired=True)[0] is Verdict.REFUTED


def repeating(rng):
    return np.concatenate([np.tile(rng.integers(1, 64, 20), 3) for _ in range(150)])


def test_heads_of_a_model_without_attention_are_refused_with_what_to_do(mamba2):
    with pytest.raises(UnsupportedModel, match=r"the attention of .* cannot be read") as refused:
        assert_has_induction_head(mamba2)
    assert "behaviour" in str(refused.value)


def test_a_convolution_binds_and_a_state_keeps_what_mamba_recalls(mamba2):
    assert verdict_of(assert_recall_carried_by, mamba2, "convolutions")[0] is Verdict.SHOWN
    assert verdict_of(assert_recall_carried_by, mamba2, "states")[0] is Verdict.SHOWN


def test_attention_has_the_pairs_of_a_hybrid_and_a_convolution_bound_them(bamba):
    assert verdict_of(assert_recall_carried_by, bamba, "attention")[0] is Verdict.SHOWN
    assert verdict_of(assert_recall_carried_by, bamba, "convolutions")[0] is Verdict.SHOWN
    assert verdict_of(assert_recall_carried_by, bamba, "states") == (Verdict.REFUTED, "carries_too_little")


def test_the_same_classes_untrained_recall_nothing_and_nothing_carries_it(shipped):
    torch.manual_seed(0)
    module = type(shipped.module)(shipped.module.config)
    assert verdict_of(assert_recalls, module, pairs=8)[0] is not Verdict.SHOWN
    assert verdict_of(assert_recall_carried_by, module, "convolutions") == (Verdict.UNDETERMINED, "does_not_recall")
