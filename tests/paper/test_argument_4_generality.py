"""Argument 4: heads that match prefixes of random tokens may do more: match by class, translate, follow patterns.

The paper shows it of three heads of a model with 13 billion parameters. Models of this size have none, which is said; the
assertion that finds such heads is held to heads that are planted.
"""

import pytest

from pytest_induction import Verdict, measure_heads, planted
from pytest_induction.heads.generalizing import assert_heads_generalize
from tests.runs.claims import evidence_of

SIZES = {"n_heads": 3, "d_vocab": 40, "n_ctx": 64}
HEADS = {"classes": planted.class_induction_head, "translation": planted.translation_head, "patterns": planted.pattern_head}


@pytest.mark.parametrize("family", HEADS)
def test_a_head_that_generalizes_is_found(family):
    assert assert_heads_generalize(HEADS[family](**SIZES), "L1H0", family).verdict is Verdict.SHOWN


@pytest.mark.parametrize("family", HEADS)
def test_a_head_that_matches_literally_does_not(family):
    """The control."""
    assert evidence_of(assert_heads_generalize, planted.induction_head(**SIZES), "L1H0", family).verdict is Verdict.REFUTED


def test_one_head_matches_tokens_and_classes():
    """What the paper means: by the evaluator of random tokens an induction head, and of classes too."""
    model = planted.class_induction_head(**SIZES)
    assert measure_heads(model).prefix_matching[1, 0] > 0.2
    assert assert_heads_generalize(model, "L1H0", "classes").verdict is Verdict.SHOWN


@pytest.mark.parametrize(("name", "heads"), [("two-layers", "L1H1"), ("llama", "L1H0"), ("one-layer-smeared", "L0H0")])
def test_trained_heads_of_this_size_are_literal(name, heads, shipped):
    """Where we differ: not shown here for any trained model."""
    found = evidence_of(assert_heads_generalize, shipped[name], heads)
    assert (found.verdict, found.reason) == (Verdict.REFUTED, "does_not_generalize")
