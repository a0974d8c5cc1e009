"""The process of a worker, from its first line on: it ends when the process that began it is gone, however that ended.

Standard library only until that is so: loading torch takes seconds, in which a sweep may be killed.
"""

from __future__ import annotations

import multiprocessing
import os
import pickle
import signal
import sys
import threading
from contextlib import suppress
from multiprocessing.connection import Connection
from typing import Any

DEATH_OF_PARENT = 1  # PR_SET_PDEATHSIG of prctl(2)


def serve(line: Connection[Any, Any], plan: bytes, threads: int) -> None:
    """Measure the checkpoints that come along the line, until nobody listens any more.

    `plan` is pickled, as its classes load torch.
    """
    end_with_parent()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    import torch

    from pytest_induction.runs.tasks import CheckpointMeasurer, Ready

    torch.set_num_threads(threads)
    measurer = CheckpointMeasurer(pickle.loads(plan))  # noqa: S301 - of our own process
    with suppress(EOFError, OSError):
        line.send(Ready())
        while True:
            line.send(measurer.outcome(line.recv()))


def end_with_parent() -> None:
    """End this process with the one that began it: nobody would hear what is measured."""
    if sys.platform == "linux":  # where the system does it even while a library is loaded, and no thread runs
        import ctypes

        with suppress(OSError, AttributeError):
            ctypes.CDLL(None).prctl(DEATH_OF_PARENT, signal.SIGKILL)
    threading.Thread(target=_wait_for_parent, daemon=True).start()


def _wait_for_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
