"""One writer at a time: a lock on a file, held by one process and let go by the system when that ends, however it ends."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from weakref import WeakSet, finalize

from pytest_induction.errors import RunBusyError
from pytest_induction.files import ALWAYS, NO_LINK, UnfitFileError, kind_of


class Lock:
    """Held from when it is made until it is released, or nobody knows it any more.

    With `take_over` one that this process holds already is released first: whoever made it writes no more. Raises `RunBusyError`
    where another holds it, `OSError` where no file can be. A file system that has no locks leaves the run unguarded.
    """

    def __init__(self, path: Path, *, take_over: bool = False) -> None:
        own = holder_here(path)
        if take_over and own is not None:
            own.release()
        number = os.open(path, os.O_RDWR | os.O_CREAT | ALWAYS | NO_LINK, 0o666)
        self._close = finalize(self, os.close, number)
        status = os.fstat(number)
        self._file = _identity(status)
        if not stat.S_ISREG(status.st_mode):
            self._close()
            raise UnfitFileError(f"{path.name} is {kind_of(status.st_mode)}, expected a regular file", path)
        try:
            _take(number)
        except BlockingIOError:
            self._close()
            raise RunBusyError(_busy(path)) from None
        except OSError:
            pass  # this file system has none
        _held.add(self)

    @property
    def is_held(self) -> bool:
        """Whether it was not released, and is this process's own."""
        return self._close.alive

    def is_on(self, path: Path) -> bool:
        """Whether this is the file that it locks."""
        try:
            return self.is_held and self._file == _identity(path.stat())
        except OSError:
            return False

    def release(self) -> None:
        """Let others write; a second time does nothing."""
        self._close()
        _held.discard(self)


def holder_here(path: Path) -> Lock | None:
    """The lock on this file that this very process holds, if it does."""
    return next((lock for lock in list(_held) if lock.is_on(path)), None)


def _busy(path: Path) -> str:
    if holder_here(path) is not None:
        return f"{path.parent} is being written by this process already: close what writes it first, or choose another place"
    return f"{path.parent} is being written by another process: choose another place, or wait for it"


def _identity(status: os.stat_result) -> tuple[int, int]:
    return status.st_dev, status.st_ino


def _take(number: int) -> None:
    try:
        import fcntl
    except ImportError:  # Windows, whose error where another holds it is another kind
        import msvcrt

        try:
            msvcrt.locking(number, msvcrt.LK_NBLCK, 1)  # type: ignore[attr-defined]
        except PermissionError as error:
            raise BlockingIOError from error
    else:
        fcntl.flock(number, fcntl.LOCK_EX | fcntl.LOCK_NB)


def _forget_all() -> None:
    """Close the files of a process that was forked: the lock stays with the one it was forked from."""
    for lock in list(_held):
        lock.release()


_held: WeakSet[Lock] = WeakSet()
if hasattr(os, "register_at_fork"):
    # Workers that load data are forked in the midst of a training: one that outlives it must not keep its run locked.
    os.register_at_fork(after_in_child=_forget_all)
