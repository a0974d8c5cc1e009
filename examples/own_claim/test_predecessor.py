"""What the claim in conftest.py gives you without further code."""

from __future__ import annotations

import pytest

from conftest import PREDECESSOR, Perfect
from pytest_induction import ExpectationFailed, measure_heads
from pytest_induction.planted import induction_head

assert_has_predecessor_head = PREDECESSOR.function()


def test_the_perfect_head_has_the_whole_score() -> None:
    """It is measured in the same passes as the built-in scores, and found under its name."""
    scores = measure_heads(Perfect())
    assert scores["predecessor"][0].tolist() == pytest.approx([1, 0.03], abs=0.05)
    assert scores["chance_of_predecessor"][0, 0] < 0.01
    assert scores["prefix_matching"][0, 0] < 0.01


def test_it_is_found() -> None:
    """The assertion returns a verdict with the head."""
    evidence = assert_has_predecessor_head(Perfect(), min_score=0.8)
    assert [str(head) for head in evidence.heads] == ["L0H0"]


def test_an_induction_head_is_not_one() -> None:
    """The same rule rejects a head that attends to the token after instead."""
    with pytest.raises(ExpectationFailed, match="no head has it"):
        assert_has_predecessor_head(induction_head())


@pytest.fixture
def induction_model() -> Perfect:
    """The model of the fixture `induction` in this session. `--induction-model` can name another one."""
    return Perfect()


def test_the_fixture_has_it(induction) -> None:
    """The fixture has the assertion as a method, with the session's model and seed."""
    assert induction.assert_has_predecessor_head().estimates["predecessor"].value > 0.9
