"""The gates of `--induction-model`: one pytest item for each claim about the model, with no test file."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from _pytest._code.code import TerminalRepr
from _pytest._io import TerminalWriter

from pytest_induction.errors import ExpectationFailed, InductionError

if TYPE_CHECKING:
    from pytest_induction.bound import Induction

GATES: Mapping[str, Callable[[Induction], Any]] = {
    "has_induction_head": lambda induction: induction.assert_has_induction_head(),
    "copies_repeats": lambda induction: induction.assert_copies_repeats(),
    "learns_in_context": lambda induction: induction.assert_learns_in_context(),
}
NEEDS_TEXT = ("learns_in_context",)


class GateSuite(pytest.Collector):
    """All gates of one model. Loads nothing: the model is loaded when the first gate runs."""

    def __init__(self, *, bind: Callable[[], Induction], with_text: bool, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._bind = bind
        self._with_text = with_text

    def collect(self) -> Iterator[pytest.Item]:
        for name in GATES:
            if self._with_text or name not in NEEDS_TEXT:
                yield GateItem.from_parent(self, name=name, bind=self._bind)


class GateItem(pytest.Item):
    """One claim about the model."""

    def __init__(self, *, bind: Callable[[], Induction], **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._bind = bind
        self._induction: Induction | None = None

    def setup(self) -> None:
        try:
            self._induction = self._bind()
        except InductionError as error:
            message = str(error)
        else:
            return
        pytest.fail(message, pytrace=False)

    def runtest(self) -> None:
        if self._induction is not None:
            GATES[self.name](self._induction)

    def reportinfo(self) -> tuple[Path, int, str]:
        return self.path, 0, self.name  # pytest wants a line for what a marker skips

    def repr_failure(self, excinfo: pytest.ExceptionInfo[BaseException], style: Any = None) -> Any:
        """The message alone for what we raise; a traceback is for what nobody foresaw."""
        if isinstance(excinfo.value, (ExpectationFailed, InductionError)):
            return GateFailure(str(excinfo.value))
        return super().repr_failure(excinfo, style)


@dataclass(frozen=True)
class _Crash:
    """What pytest's short summary reads of a failure."""

    message: str


class GateFailure(TerminalRepr):
    """A failed gate in the terminal: its message, the first line in red; the same line in the short summary."""

    def __init__(self, message: str) -> None:
        self.message = message
        self.reprcrash = _Crash(message.splitlines()[0])

    def __str__(self) -> str:
        return self.message

    def toterminal(self, tw: TerminalWriter) -> None:
        first, *rest = self.message.splitlines()
        tw.line(first, red=True, bold=True)
        for line in rest:
            tw.line(line)
