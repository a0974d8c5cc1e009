"""Alarms that others set, such as pytest-timeout's: they go off in time whatever is loaded, and end whatever searches.

Standard library only. Where there are no such alarms, and in threads that get none, nothing is done.
"""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

Handler = Callable[[int, FrameType | None], object]
SOON = 0.001  # seconds, of an alarm that is overdue


class Alarmed(BaseException):
    """Stands for what a handler raised, where that may be taken for a failure of a test: hypothesis shrinks those."""


@contextmanager
def getting_through(*, further: bool = False) -> Iterator[None]:
    """What the handler of an alarm raises inside the block ends all of the block, and leaves it as it was raised.

    Or as `Alarmed`, of which it is the cause, where it must get through what is around the block, too.
    """
    before = _handler()
    if before is None:
        yield
        return
    raised: list[BaseException] = []

    def handler(number: int, frame: FrameType | None) -> None:
        try:
            before(number, frame)
        except BaseException as error:
            raised.append(error)
            raise Alarmed from error

    try:
        with _handled_by(handler, before):
            yield
    except Alarmed:
        if further or not raised:
            raise
        raise raised[0] from None


@contextmanager
def kept() -> Iterator[None]:
    """Code of others runs inside the block: an alarm that it cancels goes off all the same, at the latest when the block ends."""
    before = _handler()
    left, every = (0.0, 0.0) if before is None else signal.getitimer(signal.ITIMER_REAL)
    if before is None or not left:
        yield
        return
    due, gone_off = time.monotonic() + left, False

    def handler(number: int, frame: FrameType | None) -> None:
        nonlocal gone_off
        gone_off = True
        before(number, frame)

    try:
        with _handled_by(handler, before):
            yield
    finally:
        if not gone_off:
            if signal.getsignal(signal.SIGALRM) is not before:
                signal.signal(signal.SIGALRM, before)
            if not signal.getitimer(signal.ITIMER_REAL)[0]:
                signal.setitimer(signal.ITIMER_REAL, max(due - time.monotonic(), SOON), every)


def _handler() -> Handler | None:
    """What is called when an alarm goes off, if that is a function and this thread is the one that it is called in."""
    if not hasattr(signal, "SIGALRM") or threading.current_thread() is not threading.main_thread():
        return None
    found = signal.getsignal(signal.SIGALRM)
    return found if callable(found) else None


@contextmanager
def _handled_by(handler: Handler, before: Handler) -> Iterator[None]:
    """Another handler inside the block; one that was set there is left."""
    signal.signal(signal.SIGALRM, handler)
    try:
        yield
    finally:
        if signal.getsignal(signal.SIGALRM) is handler:
            signal.signal(signal.SIGALRM, before)
