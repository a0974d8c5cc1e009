"""Before a quantised model is released: does it still do what the original did, and does it have the heads for it?

Run it as `pytest examples/quantised_release --induction-report=release.html`.
"""

import pytest

from pytest_induction import assert_heads_preserved


def test_the_heads_and_what_they_do_are_kept(original, induction_model):
    """Each head is matched by what it does. Every loss is shown to be within its margin."""
    assert_heads_preserved(original, induction_model)


def test_what_is_released_has_induction_heads_that_copy(induction):
    """The released model passes by itself, without a comparison."""
    induction.assert_has_induction_head()
    induction.assert_copies_repeats()


def test_too_few_bits_are_noticed(original, quantised):
    """The first test can fail: with 2 bits, heads are lost."""
    with pytest.raises(AssertionError, match="lost"):
        assert_heads_preserved(original, quantised(2))
