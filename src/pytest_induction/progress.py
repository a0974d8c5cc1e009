"""How far a measurement is, shown only where it lasts and somebody watches. Standard library, and tqdm when it is shown."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, TextIO

DELAY = 2.0  # seconds before anything is shown
_bar: ContextVar[Any] = ContextVar("induction_bar", default=None)
_terminal: ContextVar[TextIO | None] = ContextVar("induction_terminal", default=None)


@contextmanager
def showing_on(terminal: TextIO) -> Iterator[None]:
    """Where progress is shown inside the block, in place of the standard error stream."""
    token = _terminal.set(terminal)
    try:
        yield
    finally:
        _terminal.reset(token)


@contextmanager
def progress(about: str, total: int) -> Iterator[None]:
    """Count the sequences that are measured inside the block; within another such block, that one counts on."""
    terminal = _terminal.get() or sys.stderr
    if _bar.get() is not None or not terminal.isatty():
        yield
        return
    from tqdm import tqdm

    with tqdm(total=total, desc=about, unit="seq", delay=DELAY, leave=False, file=terminal, dynamic_ncols=True) as bar:
        token = _bar.set(bar)
        try:
            yield
        finally:
            _bar.reset(token)


def advance(count: int) -> None:
    """So many more sequences are done."""
    bar = _bar.get()
    if bar is not None:
        bar.update(count)
