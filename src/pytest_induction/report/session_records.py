"""What one pytest session leaves: its tests, their verdicts, and what is drawn beside them. A JSON file, read without torch."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pytest_induction.errors import ReportError, reason
from pytest_induction.printable import in_json
from pytest_induction.records import Evidence, Exhibit

SCHEMA = 1
WHAT = "pytest-induction records"
OUTCOMES = ("passed", "failed", "error", "skipped", "xfailed", "xpassed")


@dataclass(frozen=True)
class TestRecord:
    """One test: what pytest says of it, and the verdicts that were reached while it ran.

    `seconds` is of its call; `message` that of a failure, else ""; `again` the command that repeats it alone.
    """

    nodeid: str
    outcome: str
    seconds: float = 0.0
    message: str = ""
    again: str = ""
    evidence: tuple[Evidence, ...] = ()

    __test__ = False

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers, strings, lists and dicts."""
        return {**vars(self), "evidence": [each.to_dict() for each in self.evidence]}


@dataclass(frozen=True)
class SessionRecords:
    """All that a report shows.

    `started` is UTC, as ISO 8601 has it; `command` what was run; `exit_status` pytest's, and `stopped` what ended the session
    before its time, or "". `environment` are versions and the machine. Tests are in the order in which they were collected,
    exhibits in that of their models and kinds, whichever process measured what first.
    """

    tests: tuple[TestRecord, ...]
    exhibits: tuple[Exhibit, ...] = ()
    command: str = ""
    started: str = ""
    seconds: float = 0.0
    exit_status: int = 0
    stopped: str = ""
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
            **{name: value for name, value in vars(self).items() if name not in ("tests", "exhibits", "environment")},
            "environment": dict(self.environment),
            "tests": [test.to_dict() for test in self.tests],
            "exhibits": [exhibit.to_dict() for exhibit in self.exhibits],
        }
        return in_json(json.dumps(_finite(data), ensure_ascii=False, separators=(",", ":"), allow_nan=False)) + "\n"

    @classmethod
    def from_json(cls, text: str) -> SessionRecords:
        """The inverse of `to_json`. Raises `ReportError` for anything else."""
        try:
            data = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise ReportError(f"expected the JSON of --induction-report: {error}") from None
        if not isinstance(data, dict) or data.get("what") != WHAT:
            raise ReportError(f"expected the JSON of --induction-report, whose `what` is {WHAT!r}")
        if data.get("schema") != SCHEMA:
            raise ReportError(f"expected records of schema {SCHEMA}, got {data.get('schema')!r}: use the version that wrote them")
        try:
            return cls._from_plain(data)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ReportError(f"the records are damaged: {type(error).__name__}: {error}") from None

    @classmethod
    def _from_plain(cls, data: Mapping[str, Any]) -> SessionRecords:
        tests = tuple(
            TestRecord(**{**test, "evidence": tuple(Evidence.from_dict(each) for each in test["evidence"])})
            for test in data["tests"]
        )
        rest = {name: data[name] for name in ("command", "started", "seconds", "exit_status", "stopped")}
        return cls(
            tests,
            tuple(Exhibit(**each) for each in data["exhibits"]),
            environment={str(name): str(value) for name, value in data["environment"].items()},
            **rest,
        )


def read_records(path: str | Path) -> SessionRecords:
    """The records of a file. Raises `ReportError`, which names it, if it cannot be read or holds something else."""
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ReportError(f"{path} cannot be read: {reason(error)}") from None
    try:
        return SessionRecords.from_json(text)
    except ReportError as error:
        raise ReportError(f"{path}: {error}") from None


def _finite(value: Any) -> Any:
    """The same, None in place of NaN and infinities: JSON has no word for them."""
    if isinstance(value, float):
        return value if value - value == 0 else None
    if isinstance(value, Mapping):
        return {str(name): _finite(each) for name, each in value.items()}
    return [_finite(each) for each in value] if isinstance(value, (list, tuple)) else value
