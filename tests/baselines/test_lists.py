"""What a baseline keeps of a list of induction heads."""

from dataclasses import replace

import pytest

from pytest_induction import find_induction_heads
from pytest_induction.baselines.compare import compare
from pytest_induction.baselines.store import Field, fields_of, provenance_in
from pytest_induction.planted import induction_head, redundant_induction_heads
from pytest_induction.records import Estimate, HeadEvidence, HeadList, Provenance

ABOUT = Provenance("m", "f", "sdpa", 2, 4, "float32", "cpu")


def mass(value):
    return Estimate(value, value - 0.1, value + 0.1, "share")


def head(number, lengths=()):
    return HeadEvidence(
        1, number, mass(0.9), mass(0.8), 0.0, 0.0, 0.0, 0.0, 0.0, 6, "matches", match_lengths=tuple(map(mass, lengths))
    )


def test_a_list_keeps_the_scores_and_match_lengths_of_its_heads():
    """And not of those near the threshold, undecided or ruled out, which come and go; alone or within a mapping."""
    listed = HeadList(
        (head(0, (0.1, 0.5, 0.75)), head(1)), (head(2),), (head(3),), (head(4),), ABOUT, {"repeat_loss": Estimate(2, 1, 3)}
    )
    wanted = {
        "repeat_loss": 2.0,
        "L1H0.prefix_matching": 0.9,
        "L1H0.exactly_one": 0.1,
        "L1H0.exactly_two": 0.5,
        "L1H0.three_or_more": 0.75,
        "L1H1.prefix_matching": 0.9,
    }
    assert fields_of(listed) == wanted
    assert fields_of({"heads": listed}) == {f"heads.{name}": value for name, value in wanted.items()}
    assert provenance_in({"a": 1, "heads": listed}) == ABOUT


def test_a_head_that_is_not_listed_any_more_is_missing_and_a_new_one_is_new():
    before = HeadList((head(0), head(1)), (), (), (), ABOUT)
    after = replace(before, heads=(head(0), head(2)), near=(head(1),))
    found = compare({name: Field(value) for name, value in fields_of(before).items()}, fields_of(after))
    assert (found.changed, found.missing, dict(found.new)) == ((), ("L1H1.prefix_matching",), {"L1H2.prefix_matching": 0.9})


def test_the_list_of_a_planted_model_is_kept_as_it_was_measured():
    listed = find_induction_heads(redundant_induction_heads(count=2))
    kept = fields_of(listed)
    for found in listed.heads:
        for name, value in zip(("exactly_one", "exactly_two", "three_or_more"), found.match_lengths, strict=True):
            assert kept[f"{found}.{name}"] == pytest.approx(value.value, abs=1e-8)
            assert value.value == pytest.approx(1, abs=0.01)
    assert len([name for name in kept if name.startswith("L1H")]) == 2 * 4
    assert len([name for name in fields_of(find_induction_heads(induction_head())) if name.startswith("L1H")]) == 4
