"""How far a measurement is, shown only where it lasts and somebody watches. Standard library, and tqdm when it is shown."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, TextIO

from pytest_induction.formatting import printable

DELAY = 2.0  # seconds before anything is shown
SEQUENCES = "seq"
_bar: ContextVar[Any] = ContextVar("induction_bar", default=None)
_open: ContextVar[Callable[[], TextIO | None] | None] = ContextVar("induction_terminal", default=None)


def complain(line: str) -> None:
    """Write a line to standard error; where nobody takes it, it is lost."""
    if sys.stderr is None:
        return
    try:
        sys.stderr.write(f"{line}\n")
        sys.stderr.flush()
    except (OSError, ValueError):
        let_go(sys.stderr)


def let_go(stream: TextIO | None) -> None:
    """Have what still waits in a stream that takes no more go nowhere, or the interpreter would complain of it at its end."""
    try:
        number = -1 if stream is None else stream.fileno()
    except (OSError, ValueError):  # closed, or no file
        return
    if number >= 0:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, number)
        os.close(nowhere)


class FreshLine:
    """A terminal in whose current line something else stands: what is written begins on the next one."""

    def __init__(self, terminal: TextIO) -> None:
        self._terminal = terminal
        self._begun = False

    def write(self, text: str) -> None:
        if text and not self._begun:
            self._terminal.write("\n")
            self._begun = True
        self._terminal.write(text)

    def flush(self) -> None:
        self._terminal.flush()

    def fileno(self) -> int:
        return self._terminal.fileno()


@contextmanager
def showing_on(terminal: Callable[[], TextIO | None]) -> Iterator[None]:
    """Where progress is shown inside the block: on what this opens, if anything; closed when it was shown."""
    token = _open.set(terminal)
    try:
        yield
    finally:
        _open.reset(token)


@contextmanager
def progress(about: str, total: int, unit: str = SEQUENCES) -> Iterator[None]:
    """Count the sequences that are measured inside the block; within another such block, that one counts on.

    With another `unit` that is what is counted, and sequences are not.
    """
    if _bar.get() is not None:
        yield
        return
    opened = _open.get()
    terminal = sys.stderr if opened is None else opened()
    if terminal is None or not terminal.isatty():
        yield
        return
    try:
        with _shown(terminal if opened is None else FreshLine(terminal), about, total, unit):
            yield
    finally:
        if opened is not None:
            terminal.close()


@contextmanager
def _shown(terminal: Any, about: str, total: int, unit: str) -> Iterator[None]:
    from tqdm import tqdm

    with tqdm(
        total=total, desc=printable(about), unit=unit, delay=DELAY, leave=False, file=terminal, ncols=_columns(terminal)
    ) as bar:
        token = _bar.set(bar)
        try:
            yield
        finally:
            _bar.reset(token)


def _columns(terminal: Any) -> int | None:
    """How wide it is: what COLUMNS says, or the terminal; None where neither does."""
    given = os.environ.get("COLUMNS", "")
    if given.isdecimal() and int(given):
        return int(given)
    try:
        return os.get_terminal_size(terminal.fileno()).columns or None
    except (OSError, ValueError):
        return None


def advance(count: int, unit: str = SEQUENCES) -> None:
    """So many more sequences are done, or whatever the unit is."""
    bar = _bar.get()
    if bar is not None and bar.unit == unit:
        bar.update(count)
