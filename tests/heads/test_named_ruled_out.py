"""Heads that do not count are named with the reason for it, whichever that is."""

import pytest

from pytest_induction.heads.copying import named_ruled_out
from pytest_induction.records import Estimate, HeadEvidence

ONE = Estimate(0.9, 0.8, 1.0, "share")


def head(number, kind, effect=None):
    return HeadEvidence(
        1, number, ONE, ONE, 0.0, 0.0, 0.0, 0.0, 0.0, 6, kind, effect and Estimate(effect, effect, effect, "nats")
    )


@pytest.mark.parametrize(
    ("kinds", "words"),
    [
        (["period_detector"], "L1H0 only follows the period"),
        (["period_detector", "period_detector"], "L1H0 and 1 more only follow the period"),
        (["silent"], "L1H0 writes nothing"),
        (
            ["period_detector", "silent", "suppresses"],
            "L1H2 lowers what it matches, L1H1 writes nothing, L1H0 only follows the period",
        ),
        ([], ""),
    ],
)
def test_each_kind_that_does_not_count_has_its_words(kinds, words):
    assert named_ruled_out([head(number, kind) for number, kind in enumerate(kinds)]) == words


def test_by_how_much_a_head_suppresses_is_told():
    assert named_ruled_out([head(0, "suppresses", -1.5)]) == "L1H0 lowers what it matches by 1.50 nats"
