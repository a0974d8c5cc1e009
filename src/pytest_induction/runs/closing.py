"""Recorders that are open when the process ends: they are closed then, as nobody else has done it."""

from __future__ import annotations

import atexit
import warnings
from contextlib import suppress
from typing import Protocol
from weakref import WeakSet


class Closable(Protocol):
    """What can be left open."""

    @property
    def is_writing(self) -> bool:
        """Whether it has its run open, and nobody else."""

    def close(self) -> None:
        """Write what still waits, and let others write."""


left_open: WeakSet[Closable] = WeakSet()


def _close_all() -> None:
    for each in [each for each in left_open if each.is_writing]:
        with suppress(Exception), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            each.close()


atexit.register(_close_all)
