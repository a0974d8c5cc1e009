"""What one pytest session says in its terminal at the end. Imports the standard library and pytest until used."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from types import TracebackType
from typing import TYPE_CHECKING, Any

import pytest

from pytest_induction.plugin.claims import register_claims
from pytest_induction.plugin.outcomes import is_ours
from pytest_induction.plugin.session import write_lines

if TYPE_CHECKING:
    from pytest_induction.records import Evidence

INTERRUPTED: pytest.StashKey[list[dict[str, Any]]] = pytest.StashKey()
"""Tests of the session that were broken off: `nodeid`, the `evidence` reached before, `notes` on what is kept."""
STOPS = (KeyboardInterrupt, pytest.exit.Exception)
PACKAGE = __name__.partition(".")[0]
CALLING = ("contextlib", "torch")  # what may stand between the user's line and us


def keep_interrupted(item: pytest.Item, verdicts: list[dict[str, Any]], stop: BaseException) -> None:
    """Remember a test that was broken off: pytest makes no report on it, and what it had found would be lost."""
    notes = list(getattr(stop, "__notes__", ()))
    if verdicts or notes or is_ours(item):
        record = {"nodeid": item.nodeid, "evidence": verdicts, "notes": notes}
        item.config.stash.setdefault(INTERRUPTED, []).append(record)


def hide_frames(item: pytest.Item, call: pytest.CallInfo[None]) -> None:
    """Take our frames out of the traceback of an error of ours, unless all are asked for: the user's line is what matters."""
    found = call.excinfo
    if found is None or item.config.getoption("fulltrace", default=False):
        return
    from pytest_induction.errors import OURS

    if isinstance(found.value, OURS):
        theirs = _without_ours(found.tb)
        if theirs is not None:
            call.excinfo = pytest.ExceptionInfo.from_exception(found.value.with_traceback(theirs))


def _without_ours(first: TracebackType | None) -> TracebackType | None:
    """The traceback without the entries of this package, and those by which they are called.

    Pytest cuts a traceback by following it, so that it must be a real one.
    """
    entries = []
    while first is not None:
        entries.append(first)
        first = first.tb_next
    kept: TracebackType | None = None
    below = ""  # what the entry that is looked at calls
    for entry in reversed(entries):
        name = str(entry.tb_frame.f_globals.get("__name__", "")).partition(".")[0]
        below = PACKAGE if name == PACKAGE or (below == PACKAGE and name in CALLING) else name
        if below != PACKAGE:
            kept = TracebackType(kept, entry.tb_frame, entry.tb_lasti, entry.tb_lineno)
    return kept


def write_section(reporter: pytest.TerminalReporter, reports: Iterable[Any]) -> None:
    """What was found, and what is known of tests that were broken off; nothing where there is neither."""
    interrupted = reporter.config.stash.get(INTERRUPTED, [])
    counted = (report for report in reports if getattr(report, "outcome", "") != "rerun")
    evidence = [data for report in counted for data in getattr(report, "induction", ())]
    evidence += [data for each in interrupted for data in each["evidence"]]
    if not evidence and not interrupted:
        return
    from pytest_induction.records import Evidence
    from pytest_induction.report.session_records import told_apart

    with suppress(pytest.UsageError):
        register_claims(reporter.config)
    _write(reporter, told_apart(Evidence.from_dict(data) for data in evidence)[0])
    for each in interrupted:
        count = len(each["evidence"])
        kept = f"; of what it found, {count} verdict{'s' if count > 1 else ''} above" if count else ""
        lines = (f"interrupted in {each['nodeid']}{kept}", *(f"  {note}" for note in each["notes"]))
        write_lines(reporter, ((line, {"yellow": True}) for line in lines))


def _write(reporter: pytest.TerminalReporter, evidence: tuple[Evidence, ...]) -> None:
    from pytest_induction.report.terminal import one_line, section, style_for

    verbosity, writer = reporter.config.get_verbosity(), reporter.config.get_terminal_writer()
    if verbosity < 0:
        write_lines(reporter, [(one_line(evidence), {})])
        return
    reporter.write_sep("=", "induction")
    encoding = getattr(vars(writer).get("_file"), "encoding", None)  # sys.stdout may be another file by now
    write_lines(reporter, section(evidence, style_for(verbosity, writer.fullwidth, encoding)))
