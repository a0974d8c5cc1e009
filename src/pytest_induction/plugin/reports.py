"""The reports of one pytest session: gathered while it runs, written when it ends. Standard library and pytest until used."""

from __future__ import annotations

import itertools
import os
import platform
import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from pytest_induction.files import expanded
from pytest_induction.formatting import Command, command_line
from pytest_induction.plugin.ci import OTHER, SessionGithub, has_summary, is_on_github
from pytest_induction.plugin.outcomes import COLLECTED, DESELECTED, MARK, NOT_RUN, Attempt, SessionOutcomes, is_ours, worst
from pytest_induction.plugin.session import SessionModel, place_of_settings, seen_from_here, usage_error, write_lines

if TYPE_CHECKING:
    from pytest_induction.records import ChartData, Provenance
    from pytest_induction.report.session_records import SessionRecords, TestRecord

Named = tuple[Any, "Provenance"]
CHARTS: pytest.StashKey[list[dict[str, Any]]] = pytest.StashKey()
RUN = "run"  # the kind of chart that a run has
STOPPED = {2: "interrupted", 3: "an internal error of pytest"}
GOES_ON = "the session has not ended, or its process was ended from outside"
SUBTEST = "subtest "
USAGE_ERROR = int(pytest.ExitCode.USAGE_ERROR)
NAMING = ("induction_model", "induction_run")  # settings that name what is to be tested
LISTED = ("failed", "error")  # outcomes for which every test without anything of ours is listed, and not only counted
UNDRAWN = "the verdict is from --induction-cache, measured on {day}; run without --induction-cache to draw it"
MOST_NOT_RUN = 50  # of them are listed though they are not known to be ours
DISTRIBUTIONS = ("pytest", "pytest-induction", "torch", "transformers", "transformer-lens", "hypothesis", "numpy")


class SessionReport:
    """Charts are measured where the tests run, as they end; reports are written where they are reported."""

    def __init__(self, config: pytest.Config, session_model: SessionModel) -> None:
        self._config = config
        self._model = session_model
        self._begun, self._process = time.time(), os.getpid()
        self.outcomes = SessionOutcomes()
        self._has_begun = False
        self._interrupted: list[dict[str, Any]] = []
        self._written_for: int | None = None  # the exit status that the reports know of
        self._github = SessionGithub(config.rootpath)
        self._has_told_collected = False
        self._shown: set[tuple[str, str, str, str]] = set()  # models and runs, and which charts this process has measured of them
        self._undrawn: set[tuple[str, str, str, str]] = set()  # the same of charts that a verdict from the cache has not
        self.lines: list[tuple[str, dict[str, bool]]] = []

    @property
    def paths(self) -> list[Path]:
        """Where reports go: the command line's, else the ini file's, relative to it."""
        given = self._config.option.induction_report
        if given:
            return [self._config.invocation_params.dir / expanded(path) for path in given]
        return [place_of_settings(self._config) / path for path in self._config.getini("induction_report")]

    def check(self) -> None:
        """Raise a usage error for a report that could not be written, before anything is measured."""
        charts = self._config.option.induction_charts
        if not self.paths and charts is None:
            return
        from pytest_induction.errors import InductionError
        from pytest_induction.report.writing import check_path

        if charts is not None and not (self.paths or self._has_html):
            raise usage_error("--induction-charts needs a report: give --induction-report")
        try:
            _ = self.kinds
        except InductionError as error:
            raise usage_error(f"--induction-charts: {error}") from None
        for path in self.paths:
            try:
                check_path(path)
            except InductionError as error:
                raise usage_error(f"--induction-report: {error}") from None

    @property
    def kinds(self) -> tuple[str, ...]:
        """The charts that are wanted; none where no report is, nor a page of pytest-html."""
        if not (self.paths or self._has_html):
            return ()
        from pytest_induction.charts.data import kinds_named

        return kinds_named(self._config.option.induction_charts or self._config.getini("induction_charts") or "all")

    @property
    def _has_html(self) -> bool:
        """Whether pytest-html writes a page, which takes pictures."""
        return bool(getattr(self._config.option, "htmlpath", None)) and self._config.pluginmanager.hasplugin("html")

    def note_undrawn(self, item: pytest.Item, verdicts: Iterable[dict[str, Any]]) -> None:
        """Say of each model whose verdict came from the cache which charts are not drawn, once: it was not loaded for them."""
        cached = [each["provenance"] for each in verdicts if each["provenance"]["cached_from"]]
        if not cached:  # nothing is loaded for tests that are not about models
            return
        from pytest_induction.records import ChartData

        for about in cached:
            key, day = (about["model"], about["fingerprint"], about["place"]), about["cached_from"].partition("T")[0]
            has_text = getattr(item.parent, "text", None) or self._model.text
            for kind in self.kinds:
                if kind == RUN or (kind == "text" and not has_text) or (*key, kind) in self._shown | self._undrawn:
                    continue
                self._undrawn.add((*key, kind))
                chart = ChartData(kind, key[0], key[1], missing=UNDRAWN.format(day=day), place=key[2])
                item.stash.setdefault(CHARTS, []).append(chart.to_dict())

    def measure_charts(self, item: pytest.Item, named: Iterable[Named]) -> None:
        """Measure what is drawn of these models and runs, each chart once."""
        text = getattr(item.parent, "text", None) or self._model.text  # a gate of a file has its own
        for subject, about in named:
            key = _subject(about)
            hunted = about.is_run and (*key, _hunts_of(subject)) not in self._shown  # the same run, and more to draw of it
            lacking = [kind for kind in self.kinds if hunted or (*key, kind) not in self._shown]
            found = self._charts(subject, about, text, lacking)
            self._shown |= {(*key, chart.kind) for chart in found} | ({(*key, _hunts_of(subject))} if about.is_run else set())
            item.stash.setdefault(CHARTS, []).extend(chart.to_dict() for chart in found)

    @staticmethod
    def _charts(subject: Any, about: Provenance, text: Path | None, kinds: list[str]) -> list[ChartData]:
        if about.is_run:
            if RUN not in kinds:
                return []
            from pytest_induction.charts.run import chart_of_run

            return [chart_of_run(subject, about)]
        from pytest_induction.charts.model import charts_of_model

        return charts_of_model(subject, about, kinds=kinds, text=text)

    def annotate(
        self, item: pytest.Item, report: pytest.TestReport, call: pytest.CallInfo[None], verdicts: list[dict[str, Any]]
    ) -> None:
        """Put what is shown of a test into pytest's report on it: plain data, which travels from a worker to the controller."""
        payload = report.__dict__
        if verdicts and report.when == "call":
            payload["induction"] = verdicts
            seeds = [seed for each in verdicts if (seed := each["provenance"]["seed"]) is not None]
            payload["induction_again"] = self._model.again(item, seeds[-1] if seeds else None)
            if report.failed:
                report.sections.append(("induction: again, alone", payload["induction_again"]))
        if hasattr(self._config, "workerinput") and not self._has_told_collected:
            payload[COLLECTED] = [each.nodeid for each in item.session.items if is_ours(each)]
            self._has_told_collected = True
        if not (verdicts or is_ours(item)):
            return
        payload[MARK] = True
        if report.failed and call.excinfo is not None and _is_said_by_us(call.excinfo.value):
            payload["induction_message"] = str(call.excinfo.value)
        if report.when == "teardown" and CHARTS in item.stash:
            payload["induction_charts"] = item.stash[CHARTS]
            if self._has_html:
                payload["extras"] = [*payload.get("extras", ()), *_extras(item.stash[CHARTS])]

    def begin(self) -> None:
        """Write every report as one of a session that has not ended: what ends the process leaves that, and nothing older.

        Raises a usage error where a report cannot be written, before anything is measured.
        """
        if self.paths:
            from pytest_induction.errors import ReportError
            from pytest_induction.report.writing import write_report

            records = replace(self.records(int(pytest.ExitCode.TESTS_FAILED)), stopped=GOES_ON)
            for path in self.paths:
                try:
                    write_report(records, path)
                except ReportError as error:
                    raise pytest.UsageError(f"--induction-report: {error}") from None
        self._has_begun = True

    def finish(self, session: pytest.Session, interrupted: list[dict[str, Any]]) -> None:
        """Write every report, and what a CI reads; what cannot be written is said, and the session fails."""
        self._interrupted = interrupted
        if session.shouldfail and not self.outcomes.stopped:
            found = [worst(attempts) for _, attempts in self.outcomes.tests()]
            if NOT_RUN in found:
                self.outcomes.stopped = str(session.shouldfail)
            elif not any(outcome in LISTED for outcome in found):
                self.outcomes.problems.append(str(session.shouldfail))
        if not self._tell(int(session.exitstatus)) and session.exitstatus == pytest.ExitCode.OK:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def hand_over(self) -> None:
        """In a worker of pytest-xdist, at its end: what the controller cannot know."""
        self._config.workeroutput[DESELECTED] = self.outcomes.deselected  # type: ignore[attr-defined]

    def amend(self, exit_status: int, problem: str = "") -> None:
        """Once pytest has its last word: write again where it is another than the reports have, and say what was not said yet.

        Plugins change the exit status after the session ended, and after its summary; `problem` is what kept it from ending.
        """
        if problem:
            self.outcomes.problems.append(problem)
        if not self._has_begun:
            if problem and self._has_ours:
                self.lines += self._github.annotate(self.records(exit_status))
        else:
            self._tell(exit_status, is_last=True, is_news=exit_status != self._written_for or bool(problem))
        self._say()

    def _tell(self, exit_status: int, *, is_last: bool = False, is_news: bool = True) -> bool:
        """Write all, for that exit status; False where a report could not be written."""
        if os.getpid() != self._process:  # a test has forked, and its child ran on: not the session that was asked for
            return True
        again = self._written_for is not None
        paths = self.paths if is_news else []
        if not (paths or (self._has_ours and (has_summary() or is_on_github()))):
            self._written_for = exit_status
            return True
        records = self.records(exit_status)
        written = [path for path in paths if self._written(records, path, again=again)]
        if len(written) < len(paths) and not again:
            self._keep(records, written)
        marked = self.outcomes.failed_in_call() if self._config.pluginmanager.hasplugin(OTHER) else set()
        self.lines += self._github.tell(records, marked, is_last=is_last)
        self._written_for = exit_status  # and not before: what is interrupted here is written again
        return len(written) == len(paths)

    @property
    def _has_ours(self) -> bool:
        """Whether the session has anything of ours; where that cannot be known, whether it may have."""
        option, uncollected = self._config.option, [report.nodeid for report in self.outcomes.uncollected]
        if self.outcomes.has_ours or option.induction_model or option.induction_run or any(map(self._is_gate, uncollected)):
            return True
        may_have = self.outcomes.is_cut_off or any(map(self._config.getini, NAMING))
        return bool((self.outcomes.problems or uncollected) and may_have)

    def take_lines(self) -> list[tuple[str, dict[str, bool]]]:
        """What is to be said in the terminal and was not yet."""
        taken, self.lines = self.lines, []
        return taken

    def _say(self) -> None:
        """In the terminal, whether or not there is a summary."""
        reporter: pytest.TerminalReporter | None = self._config.pluginmanager.getplugin("terminalreporter")
        lines = self.take_lines()
        if reporter is not None:
            write_lines(reporter, lines)
            return
        for text in (text for text, _ in lines if isinstance(text, Command)):
            print(text, flush=True)  # noqa: T201 - the runner reads standard output

    def records(self, exit_status: int) -> SessionRecords:
        """All that was gathered, in the order of the tests."""
        from pytest_induction.records import ChartData
        from pytest_induction.report.session_records import SessionRecords, told_apart

        tests, others = self._tests()
        charts: dict[tuple[str, str, str, str], ChartData] = {}
        for _, attempts in self.outcomes.tests():
            for report in (report for attempt in attempts for report in attempt.reports):
                for data in getattr(report, "induction_charts", ()):
                    chart = ChartData(**data)
                    key = (chart.model, chart.fingerprint, chart.place, chart.kind)
                    charts[key] = chart if key not in charts else _better_of(charts[key], chart)
        every, shown = told_apart((each for test in tests for each in test.evidence), charts.values())
        named = iter(every)
        return SessionRecords(
            tuple(replace(test, evidence=tuple(itertools.islice(named, len(test.evidence)))) for test in tests),
            shown,
            command=command_line(["pytest", *map(str, self._config.invocation_params.args)]),
            started=datetime.fromtimestamp(self._begun, UTC).isoformat(timespec="seconds"),
            seconds=round(time.time() - self._begun, 3),
            exit_status=exit_status,
            stopped=self.outcomes.stopped or STOPPED.get(exit_status, ""),
            problems=tuple(self.outcomes.problems),
            others=others,
            deselected=self.outcomes.deselected,
            environment=_environment(),
        )

    def _tests(self) -> tuple[list[TestRecord], dict[str, int]]:
        """The tests that are listed, and how many of all others have which outcome. What could not be collected comes first."""
        from pytest_induction.report.session_records import OUTCOMES

        listed, counted, left = [], Counter[str](), 0
        broken = {each["nodeid"]: each for each in self._interrupted}
        for report in self.outcomes.uncollected:
            if report.failed:
                listed.append(_uncollected(report, is_ours=self._is_gate(report.nodeid)))
            else:
                counted["skipped"] += 1
        for nodeid, attempts in self.outcomes.tests():
            ours, outcome = self.outcomes.is_ours(nodeid) or nodeid in broken, worst(attempts)
            if nodeid in broken:
                listed.append(_interrupted(broken[nodeid]))
            elif ours or outcome in LISTED or (outcome == NOT_RUN and left < MOST_NOT_RUN):
                left += outcome == NOT_RUN and not ours
                listed.append(_test(nodeid, attempts, is_ours=ours))
            else:
                counted[outcome] += 1
        return listed, {name: counted[name] for name in OUTCOMES if counted[name]}

    def _is_gate(self, nodeid: str) -> bool:
        """Whether what could not be collected is a gate file, or gates of the command line."""
        option = self._config.option
        return nodeid.partition("::")[0].endswith(".toml") or nodeid in (option.induction_model, *(option.induction_run or ()))

    def _written(self, records: SessionRecords, path: Path, *, again: bool) -> bool:
        from pytest_induction.errors import ReportError
        from pytest_induction.report.writing import write_report

        try:
            write_report(records, path)
        except ReportError as error:
            if not again:
                self.outcomes.problems.append(f"a report was not written: {error}")
                self.lines.append((f"report: {error}", {"red": True}))
            return False
        if not again:
            partial = f" (partial: {records.stopped})" if records.stopped else ""
            self.lines.append((f"report: {seen_from_here(self._config, path)}{partial}", {}))
        return True

    def _keep(self, records: SessionRecords, written: list[Path]) -> None:
        """Leave the records where they can be written, if they are not written where they were to be."""
        import tempfile

        if any(path.suffix == ".json" for path in written):
            return
        with tempfile.NamedTemporaryFile("w", suffix=".json", prefix="pytest-induction-", delete=False, encoding="utf-8") as file:
            file.write(records.to_json())
        self.lines.append((f"report: the records are in {file.name}; python -m pytest_induction report renders them", {}))


def _hunts_of(run: Any) -> str:
    """What was hunted in a run, in a word that is no kind of chart."""
    return f"hunts: {sorted({name for each in run.snapshots for name in each.hunts})}"


def _better_of(one: ChartData, other: ChartData) -> ChartData:
    """Of two charts of the same the one that was drawn: another process may have taken its verdict from the cache."""
    if not (one.data and other.data):
        return one if one.data or not other.data else other
    return _with_hunts(one, other)


def _with_hunts(one: ChartData, other: ChartData) -> ChartData:
    """The first of two pictures of the same, with what was hunted in the run of either."""
    before, more = ({hunt["name"]: hunt for hunt in each.data.get("hunts", ())} for each in (one, other))
    return replace(one, data={**one.data, "hunts": list({**before, **more}.values())}) if more.keys() - before.keys() else one


def _subject(about: Provenance) -> tuple[str, str, str]:
    return about.model, about.fingerprint, about.place


def _extras(charts: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Pictures as pytest-html takes them."""
    from pytest_html import extras

    from pytest_induction.records import ChartData
    from pytest_induction.report.writing import pictures

    return [extras.html(picture) for data in charts for picture in pictures(ChartData(**data))]


def _is_said_by_us(error: BaseException) -> bool:
    """Whether an error says all, without the lines of the test that pytest shows beside it."""
    from pytest_induction.errors import OURS

    return isinstance(error, (*OURS, pytest.fail.Exception))


def _test(nodeid: str, attempts: list[Attempt], *, is_ours: bool) -> TestRecord:
    """One test, from the reports on it."""
    from pytest_induction.records import Evidence
    from pytest_induction.report.session_records import TestRecord

    outcome = worst(attempts)
    own = [attempt.of("call")[-1] for attempt in attempts if attempt.of("call")]  # those before it are on subtests
    failed = [report for attempt in attempts for report in attempt.reports if attempt.is_superseded or report.failed]
    broken_off = any(attempt.is_broken_off for attempt in attempts)
    return TestRecord(
        nodeid,
        outcome,
        round(sum(report.duration for report in own), 3),
        _message_of(failed) or ("interrupted" if broken_off and outcome != NOT_RUN else ""),
        next((again for report in own if (again := getattr(report, "induction_again", ""))), ""),
        tuple(Evidence.from_dict(data) for report in own for data in getattr(report, "induction", ())),
        is_ours,
    )


def _message_of(failed: list[pytest.TestReport]) -> str:
    """Why a test failed: where several things did, a subtest or what came after the test, each with where it was."""
    messages = [(_where(report), message) for report in failed if (message := _message_in(report))]
    alone = len(messages) == 1 and not messages[0][0].startswith(SUBTEST)
    return messages[0][1] if alone else "\n\n".join(f"{where}: {message}" for where, message in messages)


def _message_in(report: pytest.TestReport) -> str:
    """What we say of a failure ourselves, else what pytest shows, with the error itself first."""
    if hasattr(report, "induction_message"):
        return str(report.induction_message)
    shown, crash = _shown(report), getattr(report.longrepr, "reprcrash", None)
    error = str(getattr(crash, "message", "")).partition("\n")[0]
    return shown if shown.startswith(error) else f"{error}\n\n{shown}"


def _shown(report: pytest.TestReport | pytest.CollectReport) -> str:
    """What pytest shows of a failure, without the line that names the worker: two processes leave the same as one."""
    return "" if report.longrepr is None else str(report.longrepr).strip()


def _where(report: pytest.TestReport) -> str:
    if hasattr(report, "context"):
        return f"{SUBTEST}{report.head_line}"
    return str(report.when) if report.when in ("setup", "call", "teardown") else "its process"


def _uncollected(report: pytest.CollectReport, *, is_ours: bool) -> TestRecord:
    from pytest_induction.report.session_records import TestRecord

    return TestRecord(report.nodeid or "collection", "error", message=_shown(report), is_ours=is_ours)


def _interrupted(data: dict[str, Any]) -> TestRecord:
    from pytest_induction.records import Evidence
    from pytest_induction.report.session_records import TestRecord

    evidence = tuple(Evidence.from_dict(each) for each in data["evidence"])
    return TestRecord(data["nodeid"], "error", message="interrupted", evidence=evidence)


def _environment() -> dict[str, str]:
    """The machine, and what of ours and pytest's is installed; versions of what measured are in the provenance of verdicts."""
    from pytest_induction.records import installed

    machine = {"python": platform.python_version(), "platform": platform.platform(), "cpus": str(os.cpu_count())}
    return {**machine, **installed(DISTRIBUTIONS)}
