"""What a page says of a whole session: its heading, and tests that are not listed. Standard library only."""

from __future__ import annotations

from pytest_induction.report.session_records import BAD, NOT_RUN, RAN, SessionRecords, counts, result


def headline(records: SessionRecords) -> str:
    """The session in a line."""
    counted = counts(records)
    ran, bad, left = (sum(counted[name] for name in names) for names in (RAN, BAD, (NOT_RUN,)))
    if not ran and left:
        return f"None of {left} tests was run" if left > 1 else "The test was not run"
    if not ran:
        said = "No test was run" if counted or not records.stopped else "No result"
    elif bad:
        said = f"{bad} of {ran} tests failed" if ran > 1 else "The test failed"
    elif result(records) == "passed":
        said = f"All {ran} tests passed" if ran > 1 else "The test passed"
    else:
        said = f"{ran} test{'s' if ran > 1 else ''} passed"
    if left:
        said += f", {left} not run"
    if counted["xpassed"]:
        said += f", {counted['xpassed']} passed unexpectedly"
    return said if bad or result(records) in ("passed", "empty") else f"{said}: the session {_ended(records)}"


def _ended(records: SessionRecords) -> str:
    return "was stopped" if result(records) == "stopped" else "failed"


def unlisted(records: SessionRecords) -> str:
    """What is said of tests that are counted alone; "" where there are none."""
    told = ", ".join(f"{count} {name}" for name, count in records.others.items() if count)
    count = sum(records.others.values())
    many = "tests are" if count > 1 else "test is"
    return f"{count} {many} counted and not listed, without anything of ours: {told}" if count else ""
