"""The records of a session as one document, the names that its runs and models have, and its headline."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from pytest_induction.charts.data import Drawn
from pytest_induction.errors import ReportError, reason
from pytest_induction.files import read_text
from pytest_induction.formatting import in_json
from pytest_induction.ranges import Count, Seconds
from pytest_induction.records import ChartData, Checked, Evidence
from pytest_induction.schema import Unfit, parsed, read, shown

Subject = tuple[str, str, str]  # name, fingerprint, place


def told_apart(
    evidence: Iterable[Evidence], charts: Iterable[ChartData] = ()
) -> tuple[tuple[Evidence, ...], tuple[ChartData, ...]]:
    """The same verdicts and charts; of several runs of one name each is called by the end of its path."""
    verdicts, shown = tuple(evidence), tuple(charts)
    runs = {_of(each): None for each in verdicts if each.provenance.is_run}
    names = _names(list(runs))
    return (
        tuple(
            each if (name := names.get(_of(each))) is None else replace(each, provenance=replace(each.provenance, model=name))
            for each in verdicts
        ),
        tuple(replace(each, model=names.get((each.model, each.fingerprint, each.place), each.model)) for each in shown),
    )


def distinct(paths: Sequence[str]) -> list[str]:
    """The last part of each path, or more of it where two would be the same.

    >>> distinct(["runs/a/log.csv", "runs/b/log.csv"])
    ['a/log.csv', 'b/log.csv']
    """
    parts = [path.rstrip("/").split("/") for path in paths]
    for depth in range(1, max(map(len, parts), default=1) + 1):
        ends = ["/".join(part[-depth:]) for part in parts]
        if len(set(ends)) == len(ends):
            return ends
    return list(paths)


def _of(evidence: Evidence) -> Subject:
    about = evidence.provenance
    return about.model, about.fingerprint, about.place


def _names(runs: Sequence[Subject]) -> Mapping[Subject, str]:
    """What runs are called that share their name."""
    groups: dict[str, list[Subject]] = {}
    for run in runs:
        groups.setdefault(run[0], []).append(run)
    names: dict[Subject, str] = {}
    for name, group in groups.items():
        if len(group) > 1:
            ends = dict(zip(places := list(dict.fromkeys(place for _, _, place in group)), distinct(places), strict=True))
            for run in group:
                twice = sum(other[2] == run[2] for other in group) > 1  # changed in between, or nowhere
                names[run] = f"{ends[run[2]] or name} ({run[1][:8]})" if twice else ends[run[2]] or name
    return names


SCHEMA = 1
WHAT = "pytest-induction records"
LARGEST = 2**26  # bytes of a file
BAD = ("failed", "error")
RAN = (*BAD, "passed", "xfailed", "xpassed")
NOT_RUN = "not run"
NO_TESTS = 5  # pytest's exit status where none was selected
STATUSES = {
    1: "as if a test had failed",
    2: "interrupted",
    3: "internal error",
    4: "usage error",
    5: "no tests",
    6: "too many warnings",
}
"""What pytest means by an exit status."""
OUTCOMES = ("passed", "failed", "error", "not run", "skipped", "xfailed", "xpassed")


@dataclass(frozen=True)
class TestRecord:
    """One test: what pytest says of it, and the verdicts that were reached while it ran.

    `seconds` is of its call; `message` that of a failure, else ""; `again` the command that repeats it alone. `is_ours` is false
    for a test that failed, or was not run, without anything of ours that is known, and for a file that could not be collected.
    """

    nodeid: str
    outcome: str
    seconds: Seconds = 0.0
    message: str = ""
    again: str = ""
    evidence: tuple[Checked, ...] = ()
    is_ours: bool = True

    __test__ = False

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers, strings, lists and dicts."""
        return {**vars(self), "evidence": [each.to_dict() for each in self.evidence]}


@dataclass(frozen=True)
class SessionRecords:
    """All that a report shows.

    `started` is UTC, as ISO 8601 has it; `command` what was run; `exit_status` pytest's, and `stopped` what ended the session
    before its time, or "". `problems` are what else went wrong, beside tests: workers that died, options that cannot be.
    `environment` are versions and the machine. Tests are in the order in which they were collected, charts in that of their
    models and kinds, whichever process measured what first. `tests` are those of ours, whatever failed, and the first of what was
    not run; `others` says of all others how many have which outcome. `deselected` counts what was not to be run.
    """

    tests: tuple[TestRecord, ...]
    charts: tuple[Drawn, ...] = ()
    command: str = ""
    started: str = ""
    seconds: Seconds = 0.0
    exit_status: int = 0
    stopped: str = ""
    problems: tuple[str, ...] = ()
    others: Mapping[str, int] = field(default_factory=dict)
    deselected: Count = 0
    environment: Mapping[str, str] = field(default_factory=dict)

    @property
    def evidence(self) -> Iterator[Evidence]:
        """Every verdict, in the order of the tests."""
        return (evidence for test in self.tests for evidence in test.evidence)

    def to_json(self) -> str:
        """As a file holds it: a number that is none becomes null."""
        data = {
            "what": WHAT,
            "schema": SCHEMA,
            **{name: value for name, value in vars(self).items() if name not in ("tests", "charts")},
            "result": result(self),
            "why": reasons(self),
            "tests": [test.to_dict() for test in self.tests],
            "charts": [chart.to_dict() for chart in self.charts],
        }
        return in_json(json.dumps(finite(data), ensure_ascii=False, separators=(",", ":"), allow_nan=False)) + "\n"

    @classmethod
    def from_json(cls, text: str) -> SessionRecords:
        """The inverse of `to_json`. Raises `ReportError` for anything else."""
        try:
            data = parsed(text)
        except ValueError as error:
            raise ReportError(f"expected the JSON of --induction-report: {error}") from None
        if not isinstance(data, dict) or data.get("what") != WHAT:
            raise ReportError(f"expected the JSON of --induction-report, whose `what` is {WHAT!r}")
        if data.get("schema") != SCHEMA:
            raise ReportError(
                f"expected records of schema {SCHEMA}, got {shown(data.get('schema'))}: use the version that wrote them"
            )
        try:
            found: SessionRecords = read(
                cls, {name: value for name, value in data.items() if name not in ("what", "schema", "result", "why")}
            )
        except Unfit as error:
            raise ReportError(f"the records are damaged: {error}") from None
        return found


def counts(records: SessionRecords) -> Counter[str]:
    """How many tests have which outcome, as pytest counts them."""
    return Counter(test.outcome for test in records.tests) + Counter(records.others)


def result(records: SessionRecords) -> str:
    """The session in a word, never better than pytest's exit status: passed, failed, stopped, or empty where no test was run."""
    counted, status = counts(records), records.exit_status
    ran = sum(counted[name] for name in RAN)
    if records.stopped:
        return "stopped"
    if any(counted[name] for name in BAD) or status not in (0, NO_TESTS) or (status == NO_TESTS and records.problems):
        return "failed"
    if not ran:
        return "empty"
    return "stopped" if counted[NOT_RUN] else "passed"


def reasons(records: SessionRecords) -> list[str]:
    """Why the session is red, beside the tests that failed; nothing where it is not red."""
    if result(records) in ("passed", "empty"):
        return []
    counted = counts(records)
    found = [*([records.stopped] if records.stopped else []), *records.problems]
    if counted[NOT_RUN]:
        found.append(f"{counted[NOT_RUN]} test{'s' if counted[NOT_RUN] > 1 else ''} not run")
    if not found and not any(counted[name] for name in BAD):
        meant = f" ({STATUSES[records.exit_status]})" if records.exit_status in STATUSES else ""
        found.append(f"pytest ended with exit status {records.exit_status}{meant}, though no test failed: see its last lines")
    return found


def read_records(path: str | Path) -> SessionRecords:
    """The records of a file. Raises `ReportError`, which names it, if it cannot be read or holds something else."""
    try:
        text = read_text(path, LARGEST)
    except (OSError, UnicodeDecodeError) as error:
        raise ReportError(f"{path} cannot be read: {reason(error)}") from None
    try:
        return SessionRecords.from_json(text)
    except ReportError as error:
        raise ReportError(f"{path}: {error}") from None


def finite(value: Any) -> Any:
    """The same, None in place of NaN and infinities: JSON has no word for them."""
    if isinstance(value, float):
        return value if value - value == 0 else None
    if isinstance(value, Mapping):
        return {str(name): finite(each) for name, each in value.items()}
    return [finite(each) for each in value] if isinstance(value, (list, tuple)) else value


def headline(records: SessionRecords) -> str:
    """The session in a line."""
    counted = counts(records)
    ran, bad, left = (sum(counted[name] for name in names) for names in (RAN, BAD, (NOT_RUN,)))
    if not ran and left:
        return f"None of {left} tests was run" if left > 1 else "The test was not run"
    if not ran:
        text = "No test was run" if counted or not records.stopped else "No result"
    elif bad:
        text = f"{bad} of {ran} tests failed" if ran > 1 else "The test failed"
    elif result(records) == "passed":
        text = f"All {ran} tests passed" if ran > 1 else "The test passed"
    else:
        text = f"{ran} test{'s' if ran > 1 else ''} passed"
    if left:
        text += f", {left} not run"
    if counted["xpassed"]:
        text += f", {counted['xpassed']} passed unexpectedly"
    return text if bad or result(records) in ("passed", "empty") else f"{text}: the session {_ended(records)}"


def _ended(records: SessionRecords) -> str:
    return "was stopped" if result(records) == "stopped" else "failed"


def unlisted(records: SessionRecords) -> str:
    """What is said of tests that are counted alone; "" where there are none."""
    others = ", ".join(f"{count} {name}" for name, count in records.others.items() if count)
    count = sum(records.others.values())
    many = "tests are" if count > 1 else "test is"
    return f"{count} {many} counted and not listed, without anything of ours: {others}" if count else ""
