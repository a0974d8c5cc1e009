"""Gate files take the arguments of verdicts on induction heads."""

import pytest

from pytest_induction import assert_has_induction_head, assert_no_induction_head
from pytest_induction.plugin.gates import signatures
from pytest_induction.plugin.gates.table import read_gates
from pytest_induction.plugin.hooks import MARKER_KEYS


def expectations(place, expect):
    (place / "mine.py").write_text("def make():\n    return None\n")
    path = place / "a.gates.toml"
    path.write_text(f'[one]\nmodel = "mine.py:make"\n[one.expect]\n{expect}\n')
    (gate,) = read_gates(path)
    return gate.expectations


def test_lower_threshold_and_match_length_are_read(tmp_path):
    has, none = expectations(
        tmp_path,
        "has_induction_head = { match_length = 2, max_prefix_matching = 0.05 }\nno_induction_head = { max_prefix_matching = 0.2 }",
    )
    assert (has.problem, has.arguments) == ("", {"match_length": 2, "max_prefix_matching": 0.05})
    assert (none.problem, none.arguments) == ("", {"max_prefix_matching": 0.2})


@pytest.mark.parametrize(
    ("expect", "said"),
    [
        ("has_induction_head = { match_length = 1.5 }", "`match_length` must be a whole number, got 1.5"),
        ('has_induction_head = { max_prefix_matching = "low" }', "`max_prefix_matching` must be a number, got 'low'"),
        ("no_induction_head = { match_length = 1 }", "it has no argument `match_length`"),
    ],
)
def test_what_they_cannot_be_is_said(tmp_path, expect, said):
    (found,) = expectations(tmp_path, expect)
    assert said in found.problem


@pytest.mark.parametrize("assertion", [assert_has_induction_head, assert_no_induction_head])
def test_gates_and_marker_know_every_threshold_of_the_assertion(assertion):
    known = set(signatures.signature(assertion.__name__.removeprefix("assert_")).parameters)
    assert "max_prefix_matching" in known and known <= {*MARKER_KEYS}
