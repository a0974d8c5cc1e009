"""How far a measurement is and what it takes, said only where it lasts. Standard library, and tqdm at a terminal.

At a terminal and in a notebook, a bar is drawn after two seconds. Elsewhere, as in CI, a line is written to standard error
after 10 and 30 seconds, and then each minute. `PYTEST_INDUCTION_PROGRESS=0` in the environment switches all off.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, Protocol, TextIO

from pytest_induction.formatting import in_markup, printable

DELAY = 2.0  # seconds before a bar is drawn
LINES, EVERY = (10.0, 30.0), 60.0  # seconds after which a line is written where no bar can be drawn, and then from line to line
REDRAWN = 0.25  # seconds after which the bar of a notebook is drawn again
ANNOUNCED = 10.0  # seconds that a call must be known to take at least, to be announced at its beginning
SWITCH = "PYTEST_INDUCTION_PROGRESS"  # environment variable: 0 for silence
NAME = "pytest-induction"
SEQUENCES = "seq"
WORDS = {SEQUENCES: "rows"}  # what lines call a unit
clock = time.monotonic


class Cost(Protocol):
    """What a call takes, as far as it is known by now."""

    @property
    def least_seconds(self) -> float:
        """What it takes at least; 0 while that is not known."""

    def left(self) -> str:
        """What is left of it, in words; empty while that is not known."""

    def announced(self) -> str:
        """What it is, and takes at most."""

    def so_far(self) -> str:
        """How much of it has been spent."""


@dataclass(frozen=True)
class Output:
    """Where progress goes: `open` gives a stream that is closed after use, or None for nowhere; `name` begins each line."""

    open: Callable[[], TextIO | None]
    name: str = NAME


@dataclass
class Block:
    """A part of a measurement: how many of its sequences, or whatever its unit is, are done."""

    about: str
    total: int
    unit: str
    begun: float
    done: int = 0

    @property
    def words(self) -> str:
        return f"{self.about}: {self.done} of {self.total} {WORDS.get(self.unit, f'{self.unit}s')}"


_output: ContextVar[Output | None] = ContextVar("induction_output", default=None)
_watch: ContextVar[Watch | None] = ContextVar("induction_watch", default=None)


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
def showing_on(terminal: Callable[[], TextIO | None], name: str = NAME) -> Iterator[None]:
    """Where progress is shown inside the block: on what this opens, if anything; closed when it was shown."""
    token = _output.set(Output(terminal, name))
    try:
        yield
    finally:
        _output.reset(token)


class Watch:
    """The outermost measurement that is under way: since when, what it costs, and which part of it is being done."""

    def __init__(self, cost: Cost | None = None) -> None:
        self.block: Block | None = None
        self._begun, self._cost, self._output = clock(), cost, _output.get()
        self._is_silent = os.environ.get(SWITCH) == "0"
        self._is_announced = cost is None
        self._terminal: Any = None  # where bars are drawn
        self._bar: Any = None
        self._cell: NotebookBar | None = None  # where there is no terminal but a notebook
        self._due = DELAY  # when it is found out where to, and then when the next line is written

    def tick(self) -> None:
        """Say what is due by now."""
        if self._is_silent:
            return
        elapsed = clock() - self._begun
        if not self._is_announced:
            self._announce()
        if elapsed >= self._due == DELAY and self._terminal is None and self._cell is None:
            self._open()
        if self._cell is not None:
            self._cell.show(self.block, self._line())
        elif self._terminal is not None:
            self._draw()
        elif elapsed >= self._due and not self._is_silent:
            self._say(self._line())
            later = [mark for mark in LINES if mark > elapsed]
            self._due = later[0] if later else LINES[-1] + EVERY * (1 + (elapsed - LINES[-1]) // EVERY)

    def end_block(self) -> None:
        """The part is done, and its bar is taken away."""
        self.block = None
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    def close(self) -> None:
        """Nothing is said any more."""
        self.end_block()
        if self._cell is not None:
            self._cell.close()
        if self._terminal is not None and self._output is not None:
            self._terminal.close()

    def _announce(self) -> None:
        """Say what a call takes, once it is known, where it is known to last."""
        least = 0.0 if self._cost is None else self._cost.least_seconds
        if self._cost is None or not least:
            return
        self._is_announced = True
        if least >= ANNOUNCED:
            self._say(self._cost.announced())

    def _stream(self) -> TextIO | None:
        return sys.stderr if self._output is None else self._output.open()

    def _open(self) -> None:
        """Find out where to: bars where they can be drawn, else lines, or nothing at all."""
        stream = self._stream()
        self._due = LINES[0]
        if stream is None:
            self._is_silent = True
        elif stream.isatty():
            self._terminal = stream
        else:
            self._cell = NotebookBar() if in_notebook() else None
            if self._output is not None:
                stream.close()

    def _draw(self) -> None:
        if self.block is None:
            return
        beside = None if self._cost is None else self._cost.so_far()
        if self._bar is None:
            self._bar = _bar(self.block, beside, self._terminal, is_fresh=self._output is None)
        self._bar.postfix = beside
        self._bar.update(self.block.done - self._bar.n)

    def _line(self) -> str:
        """How far it is, in words."""
        parts = []
        left = None if self.block is None else self._left_of(self.block)
        if self.block is not None:
            parts.append(self.block.words if left is None else f"{self.block.words} ({left} left)")
        if self._cost is not None:
            parts.append(self._cost.so_far())
            parts.append("" if left else self._cost.left())
        return ", ".join(filter(None, parts))

    def _left_of(self, block: Block) -> str | None:
        """What is left of this part at its pace; of a whole call only the most is known, which few calls come near."""
        if not block.done:
            return None
        return duration((clock() - block.begun) * (block.total - block.done) / block.done)

    def _say(self, line: str) -> None:
        """A line of its own: above the bar, or in a stream that is opened for it."""
        name = NAME if self._output is None else self._output.name
        text = printable(f"{name}: {line}")
        if self._output is None:
            if self._bar is not None:
                self._bar.clear()
            complain(text)
            return
        stream = self._terminal or self._stream()
        if stream is None:
            return
        stream.write(f"\n{text}\n")
        stream.flush()
        if stream is not self._terminal:
            stream.close()


def _bar(block: Block, beside: str | None, terminal: Any, *, is_fresh: bool) -> Any:
    """A bar for the rest of a block, with what stands beside it."""
    from tqdm import tqdm

    stream = terminal if is_fresh else FreshLine(terminal)
    about: dict[str, Any] = {"total": block.total, "initial": block.done, "desc": printable(block.about), "unit": block.unit}
    return tqdm(**about, postfix=beside, leave=False, file=stream, ncols=_columns(terminal))


def in_notebook() -> bool:
    """Whether this runs in a notebook, Colab's kernel included, which derives from Jupyter's."""
    get = getattr(sys.modules.get("IPython"), "get_ipython", None)
    return get is not None and any(each.__name__ == "ZMQInteractiveShell" for each in type(get()).__mro__)


class NotebookBar:
    """A bar below the cell that runs, and then nothing. It is plain HTML that changes in place, so no widgets are needed."""

    def __init__(self) -> None:
        from IPython.display import DisplayHandle

        made: Any = DisplayHandle  # which has no types
        self._handle = made()
        self._due: float | None = None  # when it is drawn again; None before the first time

    def show(self, block: Block | None, words: str) -> None:
        """Draw it, if it was not drawn just now."""
        if not words or (self._due is not None and clock() < self._due):
            return
        done, total = (0, 1) if block is None else (block.done, max(1, block.total))
        drawn = f'<progress value="{done}" max="{total}" style="width:20em"></progress> <span>{in_markup(words)}</span>'
        self._put({"text/html": f"<div>{drawn}</div>", "text/plain": printable(words)})
        self._due = clock() + REDRAWN

    def close(self) -> None:
        """Take it away."""
        if self._due is not None:
            self._put({"text/html": "", "text/plain": ""})

    def _put(self, bundle: dict[str, str]) -> None:
        (self._handle.display if self._due is None else self._handle.update)(bundle, raw=True)


@contextmanager
def watching(cost: Cost | None = None) -> Iterator[Watch]:
    """Watch what is measured inside the block; within another such block, that one goes on."""
    outer = _watch.get()
    if outer is not None:
        yield outer
        return
    watch = Watch(cost)
    token = _watch.set(watch)
    try:
        yield watch
    finally:
        _watch.reset(token)
        watch.close()


@contextmanager
def progress(about: str, total: int, unit: str = SEQUENCES) -> Iterator[None]:
    """Count the sequences that are measured inside the block; within another such block, that one counts on.

    With another `unit` that is what is counted, and sequences are not.
    """
    with watching() as watch:
        if watch.block is not None:
            yield
            return
        watch.block = Block(about, total, unit, clock())
        watch.tick()
        try:
            yield
        finally:
            watch.end_block()


def advance(count: int, unit: str = SEQUENCES) -> None:
    """So many more sequences are done, or whatever the unit is."""
    watch = _watch.get()
    if watch is not None and watch.block is not None and watch.block.unit == unit:
        watch.block.done += count
        watch.block.total = max(watch.block.total, watch.block.done)  # which may have been a guess
        watch.tick()


def tick() -> None:
    """Something was done: say what is due."""
    watch = _watch.get()
    if watch is not None:
        watch.tick()


def duration(seconds: float) -> str:
    """A time in the unit that suits it: "40 s", "2 min", "1.5 h"."""
    if seconds < 99.5:
        return f"{seconds:.1g} s" if seconds < 1 else f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 99.5 * 60 else f"{seconds / 3600:.1f} h"


def _columns(terminal: Any) -> int | None:
    """How wide it is: what COLUMNS says, or the terminal; None where neither does."""
    given = os.environ.get("COLUMNS", "")
    if given.isdecimal() and int(given):
        return int(given)
    try:
        return os.get_terminal_size(terminal.fileno()).columns or None
    except (OSError, ValueError):
        return None
