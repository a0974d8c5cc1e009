"""What a CI reads of a session: JUnit properties of tests, and the summary and marks of GitHub Actions."""

from __future__ import annotations

import os
from collections.abc import Collection, Generator, Mapping
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from pytest_induction.files import is_file, is_there
from pytest_induction.formatting import Command, printable
from pytest_induction.plugin.failures import failure
from pytest_induction.plugin.outcomes import MARK
from pytest_induction.plugin.session import write_lines

if TYPE_CHECKING:
    from pytest_induction.records import Estimate, Evidence, HeadEvidence
    from pytest_induction.report.session_records import SessionRecords

PREFIX = "induction."  # of our properties
OPTION = "--induction-"
MATCH_LENGTHS = ("exactly_one", "exactly_two", "three_or_more")
SETTINGS = {  # files that pytest reads its settings from, and what in them says so
    "pytest.toml": "",
    ".pytest.toml": "",
    "pytest.ini": "",
    ".pytest.ini": "",
    "pyproject.toml": "[tool.pytest",
    "tox.ini": "[pytest]",
    "setup.cfg": "[tool:pytest]",
}
MOST_COMPARED = 10  # rows of two models side by side
RERUN = "rerun"  # the outcome that pytest-rerunfailures gives an attempt after which there is another


def properties(evidence: Evidence) -> list[tuple[str, object]]:
    """A verdict as properties `induction.CLAIM.NAME`: what it is and why, of which weights, every estimate with its interval.

    `outcome` is passed or failed; a verdict that is only reported has none. `cached_from` is there only if the verdict came from
    `--induction-cache`: when it was measured.
    Of two models side by side the ten rows that a reader looks at first are `compared.HEAD.MEASURE`, with `before`, `after` and
    `status`. `prefix_matching` is that of the strongest head, also where it is below the threshold; so are what it has at each
    match length, its effects in nats and how far back it matches, where these are known.
    """
    prefix = f"{PREFIX}{evidence.claim}"
    found: list[tuple[str, object]] = [
        (f"{prefix}.verdict", str(evidence.verdict)),
        (f"{prefix}.reason", evidence.reason),
        (f"{prefix}.summary", evidence.summary),
        (f"{prefix}.model", evidence.provenance.model),
        (f"{prefix}.weights", evidence.provenance.fingerprint),
        (f"{prefix}.heads", " ".join(str(head) for head in evidence.heads)),
    ]
    if evidence.outcome:
        found.append((f"{prefix}.outcome", evidence.outcome))
    if evidence.provenance.cached_from:
        found.append((f"{prefix}.cached_from", evidence.provenance.cached_from))
    if evidence.provenance.seed is not None:
        found.append((f"{prefix}.seed", evidence.provenance.seed))
    if evidence.confidence is not None:
        found.append((f"{prefix}.confidence", round(evidence.confidence, 6)))
    heads = [*evidence.heads, *evidence.nearest]
    strongest = _scores_of(heads[0]) if heads else {}
    for name, estimate in {**strongest, **evidence.estimates}.items():
        found.append((f"{prefix}.{name}", round(estimate.value, 6)))
        if estimate.low < estimate.high:
            found += [(f"{prefix}.{name}.low", round(estimate.low, 6)), (f"{prefix}.{name}.high", round(estimate.high, 6))]
    if heads and heads[0].reach is not None:
        found.append((f"{prefix}.reach", heads[0].reach))
    for each in evidence.compared[:MOST_COMPARED]:
        name = f"{prefix}.compared.{each.head or 'model'}.{each.measure}"
        found += [
            (f"{name}.before", round(each.before, 6)),
            (f"{name}.after", round(each.after, 6)),
            (f"{name}.status", each.status),
        ]
    found += [(f"{prefix}.threshold.{name}", round(threshold, 6)) for name, threshold in evidence.thresholds.items()]
    return [(printable(name), printable(value) if type(value) is str else value) for name, value in found]


def _scores_of(head: HeadEvidence) -> dict[str, Estimate]:
    """What is known of one head, by name."""
    known = {"copy_effect": head.copy_effect, "ablation_effect": head.ablation_effect}
    effects = {name: effect for name, effect in known.items() if effect is not None}
    return {"prefix_matching": head.prefix_matching, **dict(zip(MATCH_LENGTHS, head.match_lengths, strict=False)), **effects}


class SessionCI:
    """A plugin of its own, beside those that write reports."""

    def __init__(self, config: pytest.Config) -> None:
        self._config = config
        self._superseded: set[str] = set()  # node ids of tests an attempt of which is followed by another

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_setup(self, item: pytest.Item) -> None:
        """Forget what an earlier attempt found, where a test is run again."""
        item.user_properties[:] = _of_others(item.user_properties)

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_makereport(self, item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
        """Add the command that repeats the test, once it is known, to its properties."""
        report = yield
        again = vars(report).get("induction_again")
        if again is not None:
            item.user_properties.append((f"{PREFIX}again", again))
        return report

    @pytest.hookimpl(wrapper=True)
    def pytest_report_from_serializable(self, data: Mapping[str, Any]) -> Generator[None, Any, Any]:
        """Give a failed gate of a worker back its first line, which the journey costs it: JUnit and the short summary show it."""
        report = yield
        if MARK in data and getattr(report, "failed", False) and isinstance(report.longrepr, str):
            report.longrepr = failure(self._config, report.longrepr)
        return report

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Leave the verdicts of an attempt that is followed by another out of JUnit, which has each attempt as a test case."""
        if str(report.outcome) == RERUN:
            self._superseded.add(report.nodeid)
        if report.when == "teardown" and report.nodeid in self._superseded:
            self._superseded.remove(report.nodeid)
            report.user_properties = _of_others(report.user_properties)

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        """Say which settings were not read, since pytest does not."""
        write_lines(terminalreporter, ((line, {"yellow": True}) for line in overlooked(self._config)))


def overlooked(config: pytest.Config) -> list[str]:
    """A line if an option that was given in two words kept pytest from its settings: it looks for them where the path is."""
    here = config.invocation_params.dir
    if config.inipath is not None and (config.option.inifilename or here.is_relative_to(config.inipath.parent)):
        return []
    words = pairwise(map(str, config.invocation_params.args))
    led = next(((name, value) for name, value in words if name.startswith(OPTION) and "=" not in name and is_there(value)), None)
    if led is None:
        return []
    files = (place / name for place in (here, *here.parents) for name in SETTINGS)
    own = next((file for file in files if is_file(file) and SETTINGS[file.name] in _text_of(file)), None)
    return (
        []
        if own is None
        else [f"note: {own} was not read, since pytest took {led[1]} for the place of its settings: write {led[0]}={led[1]}"]
    )


def _text_of(file: Path) -> str:
    """What a file of settings says; nothing where it cannot be one."""
    from pytest_induction import files

    try:
        return files.read_bytes(file, files.SETTINGS).decode("utf-8", "replace")
    except OSError:
        return ""


def _of_others(properties: list[tuple[str, object]]) -> list[tuple[str, object]]:
    return [(name, value) for name, value in properties if not name.startswith(PREFIX)]


SUMMARY = "GITHUB_STEP_SUMMARY"
OTHER = "pytest_github_actions_annotate_failures"  # a plugin that marks each test that failed in its call
Line = tuple[str, dict[str, bool]]


def is_on_github() -> bool:
    """Whether GitHub Actions reads what is printed."""
    return os.environ.get("GITHUB_ACTIONS") == "true"


def has_summary() -> bool:
    """Whether there is a summary of a step to write to."""
    return bool(os.environ.get(SUMMARY))


class SessionGithub:
    """Told again when the session turned out otherwise, it says what is new and takes its old summary back."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._annotated: list[str] = []
        self._summary: tuple[int, bytes] | None = None  # where in the summary of the step we wrote, and what

    def tell(self, records: SessionRecords, marked: Collection[str], *, is_last: bool) -> list[Line]:
        """Write the summary; returns lines for the terminal, where GitHub finds marks. `marked` are tests that have theirs.

        What makes the session red beside its tests is said once, at the last.
        """
        return [*self._summarise(records), *self.annotate(records, marked, is_last=is_last)]

    def annotate(self, records: SessionRecords, marked: Collection[str] = (), *, is_last: bool = True) -> list[Line]:
        """Marks beside the code, each once."""
        if not is_on_github():
            return []
        from pytest_induction.report.github import annotations

        every = annotations(records, root=self._root, marked=marked, why=None if is_last else ())
        new = [line for line in every if line not in self._annotated]
        self._annotated += new
        return [(Command(line), {}) for line in new]

    def _summarise(self, records: SessionRecords) -> list[Line]:
        """Add ours to the summary of the step, in the place of what we added before, where nothing came after that."""
        if not has_summary():
            return []
        from pytest_induction.errors import reason
        from pytest_induction.files import open_regular
        from pytest_induction.report.github import ROOM, step_summary

        path = os.environ[SUMMARY]
        try:
            with open_regular(path, "a+b") as file:
                if self._summary is not None:
                    file.seek(self._summary[0])
                    if file.read() == self._summary[1]:
                        file.truncate(self._summary[0])
                start = file.seek(0, os.SEEK_END)
                added = step_summary(records, room=ROOM - start).encode()
                file.write(added)
        except OSError as error:
            return [(f"step summary: {path} cannot be written: {reason(error)}", {"yellow": True})]
        self._summary = start, added
        return []
