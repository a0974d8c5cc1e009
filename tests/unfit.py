"""What lies where a regular file is expected, and what a call takes of memory; every call has so many seconds."""

import os
import signal
import socket
from contextlib import contextmanager
from pathlib import Path

import pytest

UNFIT = ("FIFO", "socket", "character device", "directory", "link that leads back to itself")
LONGEST = 240  # seconds: what hangs does so for ever, and other work may leave a test little time


def put(path, kind):
    """Something of that kind at a path."""
    if kind == "FIFO":
        os.mkfifo(path)
    elif kind == "socket":
        with socket.socket(socket.AF_UNIX) as server:
            here = Path.cwd()
            os.chdir(path.parent)  # the name of a socket is short
            try:
                server.bind(path.name)
            finally:
                os.chdir(here)
    elif kind == "character device":
        path.symlink_to("/dev/zero")
    elif kind == "directory":
        path.mkdir()
    else:
        path.symlink_to(path.name)
    return path


@contextmanager
def in_time(seconds=LONGEST):
    """Inside the block a wait without end is a failure."""

    def stop(*_):
        raise AssertionError(f"it hangs: nothing has come of it in {seconds} seconds")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


@contextmanager
def in_memory(megabytes):
    """Inside the block resident memory rises by no more."""
    if not Path("/proc/self/clear_refs").exists():
        pytest.skip("the system does not tell how much memory was taken")
    Path("/proc/self/clear_refs").write_text("5")
    before = _peak()
    yield
    taken = (_peak() - before) / 1024
    assert taken < megabytes, f"it took {taken:.0f} MB"


def _peak():
    return next(int(line.split()[1]) for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))


def refusal(call, kind):
    """What is said when a call is refused, one line, in time and without much memory."""
    with pytest.raises(kind) as caught, in_time(), in_memory(700):
        call()
    said = str(caught.value)
    assert "\n" not in said
    return said


def open_files():
    """How many files this process has open."""
    return len(list(Path("/proc/self/fd").iterdir()))
