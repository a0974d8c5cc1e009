"""How a session is headed, whatever is on record of it; a report that was written before says the same."""

import json

import pytest

from pytest_induction.errors import ReportError
from pytest_induction.report.markdown import markdown
from pytest_induction.report.session_records import SessionRecords, TestRecord, counts, headline, reasons, result, unlisted


def records(*outcomes, others=None, **rest):
    tests = tuple(TestRecord(f"t.py::test_{place}", outcome) for place, outcome in enumerate(outcomes))
    return SessionRecords(tests, others=others or {}, **rest)


@pytest.mark.parametrize(
    ("given", "word", "words", "why"),
    [
        (records("passed"), "passed", "The test passed", []),
        (records("passed", "xfailed", others={"passed": 3}), "passed", "All 5 tests passed", []),
        (records("passed", "xpassed"), "passed", "All 2 tests passed, 1 passed unexpectedly", []),
        (records("passed", "skipped"), "passed", "The test passed", []),
        (records("skipped"), "empty", "No test was run", []),
        (records(exit_status=5), "empty", "No test was run", []),
        (records("not run", "not run"), "empty", "None of 2 tests was run", []),
        (records("failed", exit_status=1), "failed", "The test failed", []),
        (records("failed"), "failed", "The test failed", []),
        (records("passed", others={"error": 1}, exit_status=1), "failed", "1 of 2 tests failed", []),
        (records("passed", "not run"), "stopped", "1 test passed, 1 not run: the session was stopped", ["1 test not run"]),
        (records("failed", "not run", exit_status=1), "failed", "The test failed, 1 not run", ["1 test not run"]),
        (
            records("passed", "passed", exit_status=1),
            "failed",
            "2 tests passed: the session failed",
            ["pytest ended with exit status 1 (as if a test had failed), though no test failed: see its last lines"],
        ),
        (
            records("passed", exit_status=99),
            "failed",
            "1 test passed: the session failed",
            ["pytest ended with exit status 99, though no test failed: see its last lines"],
        ),
        (records(exit_status=5, problems=("a worker died",)), "failed", "No test was run: the session failed", ["a worker died"]),
        (records("passed", problems=("a worker died",)), "passed", "The test passed", []),
        (
            records("passed", exit_status=2, stopped="interrupted"),
            "stopped",
            "1 test passed: the session was stopped",
            ["interrupted"],
        ),
        (records(exit_status=2, stopped="interrupted"), "stopped", "No result: the session was stopped", ["interrupted"]),
    ],
)
def test_a_session_in_a_word_in_a_line_and_why(given, word, words, why):
    """Never better than the exit status, than any outcome, or than what was left out."""
    assert (result(given), headline(given), reasons(given)) == (word, words, why)
    icon = {"passed": "✅", "empty": "⏭️"}.get(word, "❌")
    assert markdown(given).startswith(f"## {icon} ")
    told = json.loads(given.to_json())
    assert (told["result"], told["why"]) == (word, why)
    again = SessionRecords.from_json(given.to_json())
    assert (again, counts(again)) == (given, counts(given))


def test_what_is_only_counted_is_said():
    """How many tests, and how they ended."""
    assert unlisted(records()) == ""
    told = "1 test is counted and not listed, without anything of ours: 1 skipped"
    assert unlisted(records(others={"passed": 0, "skipped": 1})) == told
    assert told in markdown(records("passed", others={"skipped": 1}))


def test_what_was_not_to_be_run_is_told_beside_outcomes():
    """It makes nothing red, nor is it one of the tests; there is no fewer than none."""
    given = records("passed", others={"passed": 1}, deselected=3)
    assert (result(given), headline(given), sum(counts(given).values())) == ("passed", "All 2 tests passed", 2)
    assert markdown(given).startswith("## ✅ Induction: 2 passed, 3 deselected\n")
    assert markdown(records(deselected=3, exit_status=5)).startswith("## ⏭️ Induction: no tests, 3 deselected\n")
    assert SessionRecords.from_json(given.to_json()) == given
    with pytest.raises(ReportError, match="deselected"):
        SessionRecords.from_json(given.to_json().replace('"deselected":3', '"deselected":-3'))


def test_records_that_lack_what_is_new_are_read():
    """Their exit status still makes them red."""
    data = json.loads(records("passed", exit_status=1).to_json())
    for name in ("others", "deselected", "problems", "result", "why"):
        del data[name]
    for test in data["tests"]:
        del test["is_ours"]
    assert SessionRecords.from_json(json.dumps(data)) == records("passed", exit_status=1)
