"""The reports of one pytest session: gathered while it runs, written when it ends. Standard library and pytest until used."""

from __future__ import annotations

import itertools
import os
import platform
import time
from collections.abc import Iterable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from pytest_induction.paths import expanded
from pytest_induction.printable import command_line
from pytest_induction.session import SessionModel, place_of_settings, seen_from_here, usage_error

if TYPE_CHECKING:
    from pytest_induction.records import Exhibit, Provenance
    from pytest_induction.report.session_records import SessionRecords, TestRecord

Named = tuple[Any, "Provenance"]
INDEX: pytest.StashKey[int] = pytest.StashKey()
EXHIBITS: pytest.StashKey[list[dict[str, Any]]] = pytest.StashKey()
RUN = "run"  # the kind of exhibit that a run has
PREFIX = "induction"  # of our fixtures
STOPPED = {2: "interrupted", 3: "an internal error of pytest"}
SUMMARY = "GITHUB_STEP_SUMMARY"
DISTRIBUTIONS = ("pytest", "pytest-induction", "torch", "transformers", "transformer-lens", "hypothesis", "numpy")


def is_ours(item: pytest.Item) -> bool:
    """Whether a test is one of ours, or uses a fixture of ours."""
    if type(item).__module__.startswith("pytest_induction."):
        return True
    return any(name.startswith(PREFIX) for name in getattr(item, "fixturenames", ()))


class SessionReport:
    """Exhibits are measured where the tests run, as they end; reports are written where they are reported."""

    def __init__(self, config: pytest.Config, session_model: SessionModel) -> None:
        self._config = config
        self._model = session_model
        self._begun = time.time()
        self._shown: set[tuple[str, str, str, str]] = (
            set()
        )  # models and runs, and which exhibits this process has measured of them
        self._reports: dict[str, dict[str, pytest.TestReport]] = {}  # by node id and phase; of reruns the last
        self.lines: list[tuple[str, dict[str, bool]]] = []
        self.annotations: list[str] = []  # for GitHub, whose workflow commands they are

    @property
    def paths(self) -> list[Path]:
        """Where reports go: the command line's, else the ini file's, relative to it."""
        given = self._config.option.induction_report
        if given:
            return [self._config.invocation_params.dir / expanded(path) for path in given]
        return [place_of_settings(self._config) / path for path in self._config.getini("induction_report")]

    def check(self) -> None:
        """Raise a usage error for a report that could not be written, before anything is measured."""
        exhibits = self._config.option.induction_exhibits
        if not self.paths and exhibits is None:
            return
        from pytest_induction.errors import InductionError
        from pytest_induction.report.writing import check_path

        if exhibits is not None and not (self.paths or self._has_html):
            raise usage_error("--induction-exhibits are those of a report: give --induction-report")
        try:
            _ = self.kinds
        except InductionError as error:
            raise usage_error(f"--induction-exhibits: {error}") from None
        for path in self.paths:
            try:
                check_path(path)
            except InductionError as error:
                raise usage_error(f"--induction-report: {error}") from None

    @property
    def kinds(self) -> tuple[str, ...]:
        """The exhibits that are wanted; none where no report is, nor a page of pytest-html."""
        if not (self.paths or self._has_html):
            return ()
        from pytest_induction.exhibits.kinds import kinds_named

        return kinds_named(self._config.option.induction_exhibits or self._config.getini("induction_exhibits") or "all")

    @property
    def _has_html(self) -> bool:
        """Whether pytest-html writes a page, which takes pictures."""
        return bool(getattr(self._config.option, "htmlpath", None)) and self._config.pluginmanager.hasplugin("html")

    def exhibit(self, item: pytest.Item, named: Iterable[Named]) -> None:
        """Measure what is drawn of these models and runs, each exhibit once."""
        text = getattr(item.parent, "text", None) or self._model.text  # a gate of a file has its own
        for subject, about in named:
            key = _subject(about)
            hunted = about.is_run and (*key, _hunts_of(subject)) not in self._shown  # the same run, and more to draw of it
            lacking = [kind for kind in self.kinds if hunted or (*key, kind) not in self._shown]
            found = self._exhibits(subject, about, text, lacking)
            self._shown |= {(*key, exhibit.kind) for exhibit in found} | ({(*key, _hunts_of(subject))} if about.is_run else set())
            item.stash.setdefault(EXHIBITS, []).extend(exhibit.to_dict() for exhibit in found)

    @staticmethod
    def _exhibits(subject: Any, about: Provenance, text: Path | None, kinds: list[str]) -> list[Exhibit]:
        if about.is_run:
            if RUN not in kinds:
                return []
            from pytest_induction.exhibits.run import exhibit_of_run

            return [exhibit_of_run(subject, about)]
        from pytest_induction.exhibits.model import exhibits_of_model

        return exhibits_of_model(subject, about, kinds=kinds, text=text)

    def annotate(
        self, item: pytest.Item, report: pytest.TestReport, call: pytest.CallInfo[None], heard: list[dict[str, Any]]
    ) -> None:
        """Put what is shown of a test into pytest's report on it: plain data, which travels from a worker to the controller."""
        told = report.__dict__
        if heard and report.when == "call":
            told["induction"] = heard
            seeds = [seed for each in heard if (seed := each["provenance"]["seed"]) is not None]
            told["induction_again"] = self._model.again(item, seeds[-1] if seeds else None)
            if report.failed:
                report.sections.append(("induction: again, alone", told["induction_again"]))
        if not (heard or is_ours(item)):
            return
        told["induction_index"] = item.stash.get(INDEX, 0)
        if report.failed and call.excinfo is not None:
            told["induction_message"] = _message(call.excinfo.value, report)
        if report.when == "teardown" and EXHIBITS in item.stash:
            told["induction_exhibits"] = item.stash[EXHIBITS]
            if self._has_html:
                told["extras"] = [*told.get("extras", ()), *_extras(item.stash[EXHIBITS])]

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Keep what a report on a test says."""
        if hasattr(report, "induction_index"):
            if report.when == "setup":
                self._reports[report.nodeid] = {}
            self._reports.setdefault(report.nodeid, {})[str(report.when)] = report

    def finish(self, session: pytest.Session, interrupted: list[dict[str, Any]]) -> None:
        """Write every report, and what a CI reads; what cannot be written is said, and the session fails."""
        paths, summary = self.paths, os.environ.get(SUMMARY)
        on_github = os.environ.get("GITHUB_ACTIONS") == "true"
        if not (paths or ((summary or on_github) and self._reports)):
            return
        records = self.records(int(session.exitstatus), interrupted)
        failed = [path for path in paths if not self._written(records, path)]
        if failed:
            self._keep(records)
            if session.exitstatus == pytest.ExitCode.OK:
                session.exitstatus = pytest.ExitCode.TESTS_FAILED
        if records.tests and (summary or on_github):
            self._tell_github(records, summary, annotate=on_github)

    def records(self, exit_status: int, interrupted: Iterable[dict[str, Any]] = ()) -> SessionRecords:
        """All that was gathered, in the order of the tests. `interrupted` are tests that did not end: node ids and verdicts."""
        from pytest_induction.records import Exhibit
        from pytest_induction.report.naming import told_apart
        from pytest_induction.report.session_records import SessionRecords

        ordered = sorted(self._reports.values(), key=_index)
        broken = {each["nodeid"]: _interrupted(each) for each in interrupted}
        tests = [broken.pop(test.nodeid, test) for test in map(_test, ordered)] + list(broken.values())
        exhibits: dict[tuple[str, str, str, str], Exhibit] = {}
        for phases in ordered:
            for report in phases.values():
                for data in getattr(report, "induction_exhibits", ()):
                    exhibit = Exhibit(**data)
                    key = (exhibit.model, exhibit.fingerprint, exhibit.place, exhibit.kind)
                    exhibits[key] = exhibit if key not in exhibits else _with_hunts(exhibits[key], exhibit)
        every, shown = told_apart((each for test in tests for each in test.evidence), exhibits.values())
        named = iter(every)
        return SessionRecords(
            tuple(replace(test, evidence=tuple(itertools.islice(named, len(test.evidence)))) for test in tests),
            shown,
            command=command_line(["pytest", *map(str, self._config.invocation_params.args)]),
            started=datetime.fromtimestamp(self._begun, UTC).isoformat(timespec="seconds"),
            seconds=round(time.time() - self._begun, 3),
            exit_status=exit_status,
            stopped=STOPPED.get(exit_status, ""),
            environment=_environment(),
        )

    def _written(self, records: SessionRecords, path: Path) -> bool:
        from pytest_induction.errors import ReportError
        from pytest_induction.report.writing import write_report

        try:
            write_report(records, path)
        except ReportError as error:
            self.lines.append((f"report: {error}", {"red": True}))
            return False
        partial = f" (partial: {records.stopped})" if records.stopped else ""
        self.lines.append((f"report: {seen_from_here(self._config, path)}{partial}", {}))
        return True

    def _keep(self, records: SessionRecords) -> None:
        """Leave the records where they can be written, if they are not written where they were to be."""
        import tempfile

        if any(path.suffix == ".json" and path.exists() and path.stat().st_mtime >= self._begun for path in self.paths):
            return
        with tempfile.NamedTemporaryFile("w", suffix=".json", prefix="pytest-induction-", delete=False, encoding="utf-8") as file:
            file.write(records.to_json())
        self.lines.append((f"report: the records are in {file.name}; python -m pytest_induction report renders them", {}))

    def _tell_github(self, records: SessionRecords, summary: str | None, *, annotate: bool) -> None:
        """The summary of the step, and marks beside the code, where GitHub runs us."""
        from pytest_induction.errors import reason
        from pytest_induction.report.github import ROOM, annotations, step_summary

        if summary:
            try:
                with Path(summary).open("a", encoding="utf-8") as file:
                    file.write(step_summary(records, room=ROOM - file.tell()))
            except OSError as error:
                self.lines.append((f"step summary: {summary} cannot be written: {reason(error)}", {"yellow": True}))
        if annotate:
            self.annotations += annotations(records, root=self._config.rootpath)


def _hunts_of(run: Any) -> str:
    """What was hunted in a run, in a word that is no kind of exhibit."""
    return f"hunts: {sorted({name for each in run.snapshots for name in each.hunts})}"


def _with_hunts(one: Exhibit, other: Exhibit) -> Exhibit:
    """The first of two pictures of the same, with what was hunted in the run of either."""
    before, more = ({hunt["name"]: hunt for hunt in each.data.get("hunts", ())} for each in (one, other))
    return replace(one, data={**one.data, "hunts": list({**before, **more}.values())}) if more.keys() - before.keys() else one


def _subject(about: Provenance) -> tuple[str, str, str]:
    return about.model, about.fingerprint, about.place


def _extras(exhibits: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Pictures as pytest-html takes them."""
    from pytest_html import extras

    from pytest_induction.records import Exhibit
    from pytest_induction.report.pictures import pictures

    return [extras.html(picture) for data in exhibits for picture in pictures(Exhibit(**data))]


def _message(error: BaseException, report: pytest.TestReport) -> str:
    """Why a test failed: what we say ourselves, without the lines of the test that pytest shows beside it."""
    from pytest_induction.errors import OURS

    ours = isinstance(error, (*OURS, pytest.fail.Exception))
    return str(error) if ours else report.longreprtext


def _index(phases: dict[str, pytest.TestReport]) -> int:
    return min(int(report.__dict__["induction_index"]) for report in phases.values())


def _test(phases: dict[str, pytest.TestReport]) -> TestRecord:
    """One test, from the reports on its phases."""
    from pytest_induction.records import Evidence
    from pytest_induction.report.session_records import TestRecord

    failing = next((report for report in phases.values() if report.failed), None)
    telling = failing or phases.get("call") or next(iter(phases.values()))
    told = [data for report in phases.values() for data in getattr(report, "induction", ())]
    again = next((report.__dict__["induction_again"] for report in phases.values() if hasattr(report, "induction_again")), "")
    return TestRecord(
        telling.nodeid,
        _outcome(telling),
        round(sum(report.duration for report in phases.values() if report.when == "call"), 3),
        "" if failing is None else getattr(failing, "induction_message", failing.longreprtext),
        again,
        tuple(Evidence.from_dict(data) for data in told),
    )


def _outcome(report: pytest.TestReport) -> str:
    if hasattr(report, "wasxfail"):
        return "xfailed" if report.skipped else "xpassed"
    return "error" if report.failed and report.when != "call" else report.outcome


def _interrupted(data: dict[str, Any]) -> TestRecord:
    from pytest_induction.records import Evidence
    from pytest_induction.report.session_records import TestRecord

    told = tuple(Evidence.from_dict(each) for each in data["evidence"])
    return TestRecord(data["nodeid"], "error", message="interrupted", evidence=told)


def _environment() -> dict[str, str]:
    """The machine, and what of ours and pytest's is installed; versions of what measured are in the provenance of verdicts."""
    from pytest_induction.versions import installed

    machine = {"python": platform.python_version(), "platform": platform.platform(), "cpus": str(os.cpu_count())}
    return {**machine, **installed(DISTRIBUTIONS)}
