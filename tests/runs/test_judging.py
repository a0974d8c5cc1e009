"""What of a run can be judged, by what is known of it."""

import pytest

from pytest_induction.runs.phase_change.finding import ERRORS_NEEDED, HEADS_NEEDED, LOSS_NEEDED, TEXT_NEEDED, wanting, what_else

from .curves import run_of

STEPS = list(range(10))
GATES = ["log_is_sane", "phase_change", "cooccurrence", "heads_kept", "final_has_induction_head"]
GATES += ["formed", "onset_not_later"]


def known(*names):
    return run_of(STEPS, **{name: [0.5] * len(STEPS) for name in names})


@pytest.mark.parametrize(
    ("names", "judged"),
    [
        (["loss"], ["log_is_sane"]),
        (["loss", "icl_score"], ["log_is_sane"]),
        (["advantage"], ["phase_change", "formed", "onset_not_later"]),
        (["advantage", "icl_score"], ["phase_change", "cooccurrence", "formed", "onset_not_later"]),
        (["loss", "prefix_matching"], ["log_is_sane", "phase_change", "heads_kept", "formed", "onset_not_later"]),
    ],
)
def test_a_gate_is_judged_where_all_that_it_needs_is_known(names, judged):
    found = wanting(known(*names))
    assert [gate for gate in found if gate in GATES] == GATES, "in the order of claims"
    assert [gate for gate in GATES if not found[gate]] == judged


def test_one_line_says_what_the_rest_would_take():
    said = what_else(known("loss"))
    assert said == (
        f"phase_change, cooccurrence, heads_kept, final_has_induction_head need {HEADS_NEEDED}; cooccurrence needs {TEXT_NEEDED}"
    )
    assert what_else(known("prefix_matching", "icl_score")) == (
        f"log_is_sane needs {LOSS_NEEDED}; final_has_induction_head needs {ERRORS_NEEDED}"
    )
