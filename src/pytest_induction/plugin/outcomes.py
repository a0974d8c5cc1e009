"""What pytest says of each test of a session, and of the session. Imports the standard library and pytest.

Whatever makes pytest's exit status is gathered here: reports on tests and on collection, also those that pytest-xdist makes for a
worker that died, and what ended the session. A test that was collected and of which nothing is reported was not run.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest

PREFIX = "induction"  # of our fixtures
MARK = "induction_is_ours"  # what a report on a test of ours has
COLLECTED = "induction_collected"  # what the first report of a worker has: which of its tests are ours
DESELECTED = "induction_deselected"  # what a worker hands over at its end: how many tests it left out
OWN = ("passed", "failed", "skipped")  # what pytest says of a phase; a plugin that runs a test again has a word of its own
NOT_RUN = "not run"
WORST = ("failed", "error", NOT_RUN, "xpassed", "passed", "xfailed", "skipped")
"""Of a test that was run more than once, without a plugin that runs failed ones again, the worst counts."""


def is_ours(item: pytest.Item) -> bool:
    """Whether a test is one of ours, or uses a fixture of ours."""
    if type(item).__module__.startswith("pytest_induction."):
        return True
    return any(name.startswith(PREFIX) for name in getattr(item, "fixturenames", ()))


@dataclass
class Attempt:
    """The reports on one run of a test. Those on its subtests are among them, and come before or after that on its setup."""

    reports: list[pytest.TestReport] = field(default_factory=list)

    def of(self, when: str) -> list[pytest.TestReport]:
        """The reports on one phase."""
        return [report for report in self.reports if report.when == when]

    def takes(self, report: pytest.TestReport) -> bool:
        """Whether a report is on this run of the test, and not on the next one."""
        return not self.of("teardown") and not (report.when == "setup" and self.of("setup"))

    @property
    def failed(self) -> list[pytest.TestReport]:
        """The reports that say that something failed."""
        return [report for report in self.reports if report.failed]

    @property
    def is_superseded(self) -> bool:
        """Whether a plugin runs the test again: its last word on a phase is then one of its own, in place of a failure."""
        last = {report.when: str(report.outcome) for report in self.reports}
        return not self.failed and any(outcome not in OWN for outcome in last.values())

    @property
    def is_broken_off(self) -> bool:
        """Whether the test began, and nothing says how it ended."""
        return not (self.failed or self.is_superseded or self.of("call") or self.of("teardown") or self._skipped)

    @property
    def _skipped(self) -> bool:
        return any(report.skipped for report in self.reports)

    @property
    def outcome(self) -> str:
        """As pytest counts it: an error is what fails around a test, a failure all else, a worker that died too."""
        if self.failed or self.is_superseded:
            around = all(report.when in ("setup", "teardown") for report in self.failed)
            return "error" if self.failed and around else "failed"
        if self.is_broken_off:
            return "error"
        own = (self.of("call") or self.of("setup"))[-1:]
        if not own or (own[0].when == "setup" and own[0].passed):  # --setup-only
            return NOT_RUN
        if hasattr(own[0], "wasxfail"):
            return "xfailed" if own[0].skipped else "xpassed"
        return str(own[0].outcome)


class SessionOutcomes:
    """A plugin of its own: keeps what is reported, of every test, also those of other plugins."""

    def __init__(self) -> None:
        self._attempts: dict[str, dict[str, list[Attempt]]] = {}  # by node id and worker
        self._places: dict[str, int] = {}  # of what was collected
        self._ours: set[str] = set()
        self._collecting: dict[str, pytest.CollectReport] = {}  # what could not be collected, or is skipped as a whole
        self._is_told_ours = False
        self.deselected = 0
        self.stopped = ""
        self.problems: list[str] = []

    @property
    def is_cut_off(self) -> bool:
        """Whether there are tests, and all workers died before one of them could say which are ours."""
        return bool(self._places) and not self._is_told_ours

    @property
    def has_ours(self) -> bool:
        """Whether anything of the session is known to be ours."""
        return bool(self._ours)

    @property
    def uncollected(self) -> Iterator[pytest.CollectReport]:
        """The reports on what could not be collected, or was skipped."""
        return iter(self._collecting.values())

    def is_ours(self, nodeid: str) -> bool:
        """Whether a test is known to be ours."""
        return nodeid in self._ours

    def tests(self) -> Iterator[tuple[str, list[Attempt]]]:
        """Every test that was collected or reported on, in the order of collection, with the runs of it that count."""
        for nodeid in sorted({**self._places, **self._attempts}, key=lambda each: self._places.get(each, len(self._places))):
            yield nodeid, _that_count(self._attempts.get(nodeid, {}).values())

    def failed_in_call(self) -> set[str]:
        """The tests that failed themselves, not around them, nor with their process."""
        return {nodeid for nodeid, attempts in self.tests() if any(r.when == "call" for each in attempts for r in each.failed)}

    def collected(self, nodeids: Iterable[str], ours: Iterable[str] = ()) -> None:
        """Remember what is to be run."""
        for nodeid in nodeids:
            self._places.setdefault(nodeid, len(self._places))
        self._ours.update(ours)

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        """All that this process is going to run, or may be told to."""
        self.collected((item.nodeid for item in session.items), (item.nodeid for item in session.items if is_ours(item)))
        self._is_told_ours = True

    def pytest_deselected(self, items: list[pytest.Item]) -> None:
        """What this process leaves out, because of `-k`, `--lf` and others: it is not to be run."""
        self.deselected += len(items)

    @pytest.hookimpl(optionalhook=True)
    def pytest_xdist_node_collection_finished(self, ids: list[str]) -> None:
        """What a worker of pytest-xdist has collected, which is all that the controller hears of it."""
        self.collected(ids)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Keep a report, with those of the same run of the test; a run that a plugin had repeated is dropped."""
        payload = vars(report)
        if COLLECTED in payload:
            self._ours.update(payload[COLLECTED])
            self._is_told_ours = True
        if MARK in payload:
            self._ours.add(report.nodeid)
        worker = _worker(payload.get("node"))
        attempts = self._attempts.setdefault(report.nodeid, {}).setdefault(worker, [])
        if not attempts or not attempts[-1].takes(report):
            attempts[:] = [each for each in attempts if not (each.is_superseded or each.is_broken_off)]
            attempts.append(Attempt())
        attempts[-1].reports.append(report)

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        """Keep what could not be collected: of what one worker skips and another cannot collect, the latter."""
        if report.failed or (report.skipped and report.nodeid not in self._collecting):
            self._collecting[report.nodeid] = report

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodedown(self, node: Any, error: object) -> None:
        """A worker of pytest-xdist has ended: of one that died, remember it; all others left out the same tests."""
        self.deselected = max(self.deselected, getattr(node, "workeroutput", {}).get(DESELECTED, 0))
        if error and error != "keyboard-interrupt":
            self.problems.append(f"worker {_worker(node)} died: {_last_line(str(error))}")

    def pytest_keyboard_interrupt(self, excinfo: pytest.ExceptionInfo[BaseException]) -> None:
        """Ctrl-C, `pytest.exit`, and whatever pytest interrupts itself for."""
        message = " ".join(str(excinfo.value).split())
        if isinstance(excinfo.value, pytest.exit.Exception):
            message = f"pytest.exit: {message}"
        self.stopped = message or "interrupted"

    def pytest_internalerror(self, excinfo: pytest.ExceptionInfo[BaseException]) -> None:
        """A mistake of pytest, or of a plugin."""
        self.stopped = f"an internal error of pytest: {_last_line(excinfo.exconly())}"


def worst(attempts: list[Attempt]) -> str:
    """The outcome of a test."""
    return min((each.outcome for each in attempts), key=WORST.index, default=NOT_RUN)


def _that_count(by_worker: Iterable[list[Attempt]]) -> list[Attempt]:
    """All runs of a test but those after which a plugin had it run again, in another worker perhaps."""
    every = [attempt for attempts in by_worker for attempt in attempts]
    return [attempt for attempt in every if not attempt.is_superseded] or every[-1:]


def _worker(node: Any) -> str:
    return str(getattr(getattr(node, "gateway", None), "id", ""))


def _last_line(words: str) -> str:
    return next((line.strip() for line in reversed(words.splitlines()) if line.strip()), "")
