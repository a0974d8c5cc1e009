"""What pytest shows of a test whose model or run cannot be had. Imports the standard library and pytest until used.

The message, and below it the traceback of what the user's own code raised, as `--tb` says. What another test had before is not
shown again: a line names that test.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import pytest
from _pytest._code.code import TerminalRepr
from _pytest._io import TerminalWriter
from _pytest.outcomes import Failed

if TYPE_CHECKING:
    from pytest_induction.errors import InductionError

T = TypeVar("T")
SHOWN: pytest.StashKey[dict[str, str]] = pytest.StashKey()  # what was shown whole -> the test that has it
SKIP = "skip_if_missing"  # the argument of the marker, and the key of a gate
AS_BEFORE = "shown whole for "


class NotSetUp(Failed):
    """A model or run cannot be had; `error` says why. The message is all that pytest itself shows."""

    def __init__(self, error: InductionError) -> None:
        super().__init__(str(error), pytrace=False)
        self.error = error


def may_be_missing(item: pytest.Item) -> bool:
    """Whether a test is skipped where its model, run or text is not there: by its marker, or by the option."""
    marks = [mark.kwargs[SKIP] for mark in item.iter_markers("induction") if SKIP in mark.kwargs]
    return bool(marks[0] if marks else item.config.option.induction_skip_if_missing)


def or_refuse(make: Callable[[], T]) -> T:
    """What `make` gives, or the failure of the test in whose setup this is."""
    from pytest_induction.errors import InductionError

    try:
        return make()
    except InductionError as error:
        failed = NotSetUp(error)
    raise failed


@dataclass(frozen=True)
class _Crash:
    """What pytest's short summary reads of a failure, and what `--tb=line` prints: where it was, if that is known."""

    message: str
    place: str = ""

    def __str__(self) -> str:
        return f"{self.place}: {self.message}" if self.place else self.message


class Failure(TerminalRepr):
    """A message, the first line in red, and the traceback of the user's own code below it, if that is why.

    With `brief` nothing but the first line, which `--tb=line` prints by itself of what failed, though not of errors in a setup.
    """

    in_setup = False

    def __init__(self, message: str, *, brief: bool = False, raised: Any = None, place: str = "") -> None:
        self.message = message
        self.brief = brief
        self.raised = raised
        self.reprcrash = _Crash(message.splitlines()[0], place)

    def __str__(self) -> str:
        return self.message if self.raised is None else f"{self.message}\n\n{self.raised}"

    def toterminal(self, tw: TerminalWriter) -> None:
        if self.brief:
            if self.in_setup:
                tw.line(str(self.reprcrash))
            return
        first, *rest = self.message.splitlines()
        tw.line(first, red=True, bold=True)
        for line in rest:
            tw.line(line)
        if isinstance(self.raised, TerminalRepr):
            self.raised.toterminal(tw)
        elif self.raised is not None:
            tw.line(f"\n{self.raised}")


class Again(Failure):
    """One that another test had before: the terminal has a line that says which, other readers the first line too."""

    def toterminal(self, tw: TerminalWriter) -> None:
        if not self.brief:
            tw.line(self.message.splitlines()[-1])


def failure(config: pytest.Config, message: str, error: object = None) -> Failure:
    """How a message of ours is shown, with what the user's own code raised if `error` keeps that."""
    style = config.getoption("tbstyle", "auto")
    brief = style == "line"
    if message.splitlines()[-1].startswith(AS_BEFORE):  # which may come from a worker
        return Again(message, brief=brief)
    raised: BaseException | None = getattr(error, "raised_by_user", None)
    if raised is None:
        return Failure(message, brief=brief)
    there = raised.__traceback__
    if there is None:
        return Failure(message, brief=brief, raised="".join(traceback.format_exception_only(raised)).rstrip())
    from pytest_induction.errors import of_user

    is_whole = style not in ("auto", "line", "no")  # else without the lines of torch and others
    seen = there if is_whole else of_user(there) or there
    entry = traceback.extract_tb(seen)[-1]
    shown = pytest.ExceptionInfo.from_exc_info((type(raised), raised, seen)).getrepr(
        style=style if is_whole else "long",
        showlocals=config.getoption("showlocals", default=False),
        tbfilter=False,
    )
    if not config.getoption("usepdb", default=False):
        traceback.clear_frames(raised.__traceback__)  # which hold what there was of a model
    return Failure(message, brief=brief, raised=shown, place=f"{entry.filename}:{entry.lineno}")


def tell_once(item: pytest.Item, report: pytest.TestReport, call: pytest.CallInfo[None]) -> None:
    """Show whole what could not be set up where no other test has it; and of all others that have it the first line."""
    found = None if call.excinfo is None else call.excinfo.value
    if not isinstance(found, NotSetUp) or not report.failed:
        return
    message = str(found.error)
    first = item.config.stash.setdefault(SHOWN, {}).setdefault(message, item.nodeid)
    is_new = first == item.nodeid
    shown = failure(item.config, message if is_new else f"{message.splitlines()[0]}\n{AS_BEFORE}{first}", is_new and found.error)
    shown.in_setup = True
    report.longrepr = shown
