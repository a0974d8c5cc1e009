"""A ready-made test: one claim, checked with no test file."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from _pytest._code.code import TerminalRepr
from _pytest._io import TerminalWriter

from pytest_induction.errors import ExpectationFailed, InductionError

Gates = Mapping[str, Callable[[Any], Any]]
"""What checks each claim about what the suite is bound to."""


class GateSuite(pytest.Collector):
    """All gates of one model or run. Loads nothing: `bind` loads it when the first gate runs."""

    def __init__(self, *, bind: Callable[[], Any], gates: Gates, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._bind = bind
        self._gates = gates

    def collect(self) -> Iterator[pytest.Item]:
        for name, check in self._gates.items():
            yield GateItem.from_parent(self, name=name, bind=self._bind, check=check)


class GateItem(pytest.Item):
    """One claim about the model or run. In a file, `line` (from 0) and `title` say where it stands and what it is."""

    def __init__(
        self, *, bind: Callable[[], Any], check: Callable[[Any], Any], line: int = 0, title: str | None = None, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        self._bind = bind
        self._check = check
        self._place = (line, title or self.name)
        self._subject: Any = None

    def setup(self) -> None:
        try:
            self._subject = self._bind()
        except InductionError as error:
            message = str(error)
        else:
            return
        pytest.fail(message, pytrace=False)

    def runtest(self) -> None:
        try:
            self._check(self._subject)
        except (ExpectationFailed, InductionError) as error:
            told = error.with_traceback(None)  # its frames would keep the model
            told.__cause__ = told.__context__ = None
        else:
            return
        raise told

    def teardown(self) -> None:
        self._subject = None

    def reportinfo(self) -> tuple[Path, int, str]:
        return self.path, *self._place  # pytest wants a line for what a marker skips

    def repr_failure(self, excinfo: pytest.ExceptionInfo[BaseException], style: Any = None) -> Any:
        """The message alone for what we raise; a traceback is for what nobody foresaw."""
        if isinstance(excinfo.value, (ExpectationFailed, InductionError)):
            return GateFailure(str(excinfo.value), brief=self.config.option.tbstyle == "line")
        return super().repr_failure(excinfo, style)


@dataclass(frozen=True)
class _Crash:
    """What pytest's short summary reads of a failure."""

    message: str

    def __str__(self) -> str:
        return self.message


class GateFailure(TerminalRepr):
    """A failed gate in the terminal: its message, the first line in red; the same line in the short summary.

    With `brief` nothing but that line, which `--tb=line` prints by itself.
    """

    def __init__(self, message: str, *, brief: bool = False) -> None:
        self.message = message
        self.brief = brief
        self.reprcrash = _Crash(message.splitlines()[0])

    def __str__(self) -> str:
        return self.message

    def toterminal(self, tw: TerminalWriter) -> None:
        if self.brief:
            return
        first, *rest = self.message.splitlines()
        tw.line(first, red=True, bold=True)
        for line in rest:
            tw.line(line)
