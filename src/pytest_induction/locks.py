"""One writer at a time: locks of one process, which the system lets go of when that ends, however it ends."""

from __future__ import annotations

import os
import platform
import re
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from weakref import WeakSet, finalize

from pytest_induction.files import ALWAYS, NO_LINK, UnfitFileError, kind_of

PATIENCE = 60.0  # seconds that a file is waited for
LOOKS = 0.02  # seconds between two looks
HOLDER = re.compile(rb"(\d{1,20}) ([\w.-]{1,255})\n")  # a process and its machine, as they stand in a file that is locked
LONGEST_HOLDER = 300  # bytes


class FileHeldError(OSError):
    """A lock is held already: by this very process, or by another one, which `holder` names."""

    def __init__(self, path: Path, holder: str = "") -> None:
        super().__init__(f"{path.name} is locked by {holder or 'this process'}")
        self.holder = holder


class Lock:
    """A lock on a file, held from when it is made until it is released, or nobody knows it any more.

    With `take_over` one that this process holds already is released first: its writer writes no more. Raises `FileHeldError`
    where somebody holds it, another `OSError` where no file can be. A file system that has no locks leaves the file unguarded.
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
        if not _is_taken(number):
            holder = "" if holder_here(path) is not None else _holder(number)
            self._close()
            raise FileHeldError(path, holder)
        _sign(number)
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


@contextmanager
def alone_beside(path: Path, patience: float = PATIENCE) -> Iterator[None]:
    """Inside the block no other process is in such a block for a file of the same directory. Raises `OSError` where one stays.

    The lock is on the directory, so that no file is left behind. Where the file system has no locks, nothing is guarded.
    """
    busy = UnfitFileError(f"another process has been writing it for {patience:g} seconds", path)
    if os.name == "nt":  # which opens no directories, and removes the file after use
        from filelock import FileLock, Timeout

        try:
            with FileLock(path.with_name(f".{path.name}.lock"), timeout=patience):
                yield
        except Timeout:
            raise busy from None
        return
    number = os.open(Path(os.path.realpath(path)).parent, os.O_RDONLY | ALWAYS)
    try:
        until = time.monotonic() + patience
        while not _is_taken(number):
            if time.monotonic() > until:
                raise busy
            time.sleep(LOOKS)
        yield
    finally:
        os.close(number)


def _is_taken(number: int) -> bool:
    """Lock an open file, if nobody else has; it is then this process's until it is closed."""
    from filelock import lock_descriptor  # which takes a twentieth of a second to load

    try:
        return lock_descriptor(number, blocking=False)
    except OSError:  # the file system has no locks
        return True


def _sign(number: int) -> None:
    """Write into the file who holds it, unless something else is written there."""
    with suppress(OSError):
        before = os.read(number, LONGEST_HOLDER)
        if not before or HOLDER.fullmatch(before):
            os.ftruncate(number, 0)
            os.lseek(number, 0, os.SEEK_SET)
            os.write(number, f"{os.getpid()} {platform.node()}\n".encode())


def _holder(number: int) -> str:
    """Who holds the lock on a file, as far as the file says."""
    try:
        found = HOLDER.fullmatch(os.read(number, LONGEST_HOLDER))
    except OSError:  # Windows locks the bytes too
        found = None
    return f"another process{f' ({int(found[1])} on {found[2].decode()})' if found else ''}"


def _identity(status: os.stat_result) -> tuple[int, int]:
    return status.st_dev, status.st_ino


def _forget_all() -> None:
    """Close the files of a process that was forked: the lock stays with the one it was forked from."""
    for lock in list(_held):
        lock.release()


_held: WeakSet[Lock] = WeakSet()
if hasattr(os, "register_at_fork"):
    # Workers that load data are forked in the midst of a training: one that outlives it must not keep its run locked.
    os.register_at_fork(after_in_child=_forget_all)
