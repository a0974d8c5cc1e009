"""What is changed for a while, and undone whatever happens: an error, an interrupt at any line, another one meanwhile.

What changes something says first how that is undone. So an undoing may run before its change was made, and more than once. A
`with` block undoes what was changed in it; but an interrupt that arrives as a block is left skips its end. So every function
that may be called from outside is one that `puts_back`: it undoes, at its end, whatever blocks inside it have left, and begins
again where that is interrupted. Standard library only.
"""

from __future__ import annotations

import functools
import sys
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack
from typing import Any, ParamSpec, Self, TypeVar

P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T")
Undo = Callable[[], object]
TRIES = 3  # of an undoing that is interrupted
noting: list[Callable[[], Undo]] = []
"""Each is called where a function begins that puts back what it changes, and gives what undoes any change of some state."""


class Changes(AbstractContextManager["Changes"]):
    """What was changed and how it is undone, the last change first: at the end of the block, or when it is called."""

    def __init__(self) -> None:
        self._undos: list[Undo] = []
        self._around = _here.changes

    def undone_by(self, undo: Undo) -> None:
        """Have `undo` called at the end. To be said before the change is made."""
        self._undos.append(undo)

    def set(self, target: Any, name: str, value: object) -> None:
        """Give an attribute that an object has another value."""
        self.undone_by(functools.partial(setattr, target, name, getattr(target, name)))
        setattr(target, name, value)

    def __call__(self) -> None:
        """Undo everything, also where an undoing raises or is interrupted, which is raised in the end."""
        if not self._undos:
            return
        raised: BaseException | None = None
        tries = 0
        while self._undos:
            undo = self._undos[-1]
            try:
                undo()
            except Exception as error:  # noqa: BLE001 - it is raised below
                raised = raised or error
            except BaseException as stop:  # noqa: BLE001 - as above
                raised, tries = stop, tries + 1
                if tries < TRIES:
                    continue
            tries = 0
            self._forget(undo)
        if raised is not None and not (isinstance(raised, Exception) and _is_stopping()):
            raise raised

    def __enter__(self) -> Self:
        if self._around is not None:
            self._around.undone_by(self)
        return self

    def __exit__(self, *error: object) -> None:
        try:
            self()
        finally:
            self()  # where the first was interrupted before it began
        if self._around is not None:
            self._around._forget(self)  # noqa: SLF001 - one of our own

    def begin(self) -> None:
        """From now on what blocks of this thread have left is undone here."""
        for note in noting:
            self.undone_by(note())
        _here.changes = self

    def end(self) -> None:
        """Undo it."""
        self()
        _here.changes = self._around

    def _forget(self, undo: Undo) -> None:
        if self._undos and self._undos[-1] is undo:
            self._undos.pop()


class _Here(threading.local):
    """What is undone at the end of the innermost function of this thread that puts back what it changes."""

    changes: Changes | None = None


_here = _Here()


def puts_back(function: Callable[P, R]) -> Callable[P, R]:
    """Have whatever the function changes, and blocks inside it leave changed, undone at its end.

    An interrupt may come as that begins, and one more meanwhile: hence three times.
    """

    @functools.wraps(function)
    def called(*args: P.args, **kwargs: P.kwargs) -> R:
        __tracebackhide__ = True
        changes = Changes()
        try:
            try:
                try:
                    changes.begin()
                    return function(*args, **kwargs)
                finally:
                    changes.end()
            finally:
                changes.end()
        finally:
            changes.end()

    return called


class Lasting(ExitStack):
    """A block of a user's code, for which something is changed: `change` does that, and says first how it is undone.

    The block gives `value`. It ends in a function of the standard library, which calls all that it is to call.
    """

    def __init__(self, value: Any, change: Callable[[Changes], None]) -> None:
        super().__init__()
        self._value, self._change, self._changes = value, change, Changes()

    def __enter__(self) -> Any:
        for _ in range(TRIES):
            self.callback(self._changes)
        self._changes.__enter__()
        try:
            try:
                return self._begun()
            except BaseException:
                self._changes()
                raise
        except BaseException:
            self._changes()
            raise

    def _begun(self) -> Any:
        self._change(self._changes)
        return self._value


def _is_stopping() -> bool:
    """Whether what is raised already is an interrupt, or anything else that no `except Exception` may hold up."""
    now = sys.exception()
    return now is not None and not isinstance(now, Exception)
