"""A sweep in several processes: each measures one checkpoint at a time, and one that dies loses no more than that.

Only the process that began the sweep writes. The others are told which checkpoint is next, and send back what they found.
"""

from __future__ import annotations

import multiprocessing
import pickle
import signal
import sys
from collections import deque
from collections.abc import Collection, Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, replace
from multiprocessing.connection import wait
from types import ModuleType
from typing import Any, Generic, Protocol, TypeVar

import torch

from pytest_induction.errors import RunError, first_line
from pytest_induction.model.batching import SHARE_OF_FREE, free_memory
from pytest_induction.runs.checkpoints.finding import Checkpoint
from pytest_induction.runs.record import Snapshot
from pytest_induction.runs.serving import serve
from pytest_induction.runs.tasks import Outcome, Plan, Ready

ATTEMPTS = 2  # at a checkpoint, after which the death of its worker is taken to be its doing
FAILED_STARTS = 2  # workers in a row that died before they were ready, after which no more are started
PATIENCE = 5.0  # seconds that a worker has to end by itself
Worker = TypeVar("Worker")
Attempt = tuple[Checkpoint, int]  # and its number


@dataclass(frozen=True)
class WorkerDied:
    """A worker has ended, and nobody asked it to."""

    how: str


class Pool(Protocol[Worker]):
    """Workers, started as they are needed, each with one checkpoint at a time."""

    size: int
    advice: str

    def start(self) -> Worker: ...

    def submit(self, worker: Worker, checkpoint: Checkpoint) -> None: ...

    def next_event(self, workers: Collection[Worker]) -> tuple[Worker, Ready | Outcome | WorkerDied]:
        """Wait until one of them is ready, has measured its checkpoint, or has died."""
        ...


class Scheduler(Generic[Worker]):
    """Gives checkpoints to the workers of a pool. Only a worker that is ready gets one, as others may never be."""

    def __init__(self, pool: Pool[Worker]) -> None:
        self._pool = pool
        self._starting: list[Worker] = []
        self._idle: list[Worker] = []
        self._busy: dict[Worker, Attempt] = {}
        self._queue: deque[Attempt] = deque()
        self._failed_starts = 0

    def measured(self, tasks: Iterator[Checkpoint]) -> Iterator[tuple[Checkpoint, Outcome]]:
        """The outcome of every checkpoint, as soon as it is there. The next is asked for when a worker is free for it."""
        while True:
            self._fill(tasks)
            while self._idle and self._queue:
                worker, attempt = self._idle.pop(), self._queue.popleft()
                self._busy[worker] = attempt
                self._pool.submit(worker, attempt[0])
            if not self._busy and not self._queue:
                return
            worker, event = self._pool.next_event([*self._starting, *self._busy])
            done = self._after(worker, event)
            if done is not None:
                yield done

    def _fill(self, tasks: Iterator[Checkpoint]) -> None:
        """Queue a checkpoint for each free worker, and start a worker for each that is queued, as far as the pool has room."""
        while True:
            free = len(self._idle) + len(self._starting)
            has_room = free + len(self._busy) < self._pool.size
            if len(self._queue) > free and has_room:
                self._starting.append(self._pool.start())
            elif len(self._queue) < free or (has_room and len(self._queue) == free):
                task = next(tasks, None)
                if task is None:
                    return
                self._queue.append((task, 1))
            else:
                return

    def _after(self, worker: Worker, event: Ready | Outcome | WorkerDied) -> tuple[Checkpoint, Outcome] | None:
        """Take note of an event; the outcome of a checkpoint, if it has one now."""
        if isinstance(event, Ready):
            self._failed_starts = 0
            self._starting.remove(worker)
            self._idle.append(worker)
            return None
        if worker in self._starting and isinstance(event, WorkerDied):
            self._starting.remove(worker)
            self._failed_starts += 1
            if self._failed_starts >= FAILED_STARTS:
                raise RunError(f"a worker died before it could begin, {event.how}{self._pool.advice}")
            return None
        checkpoint, number = self._busy.pop(worker)
        if isinstance(event, Outcome):
            self._idle.append(worker)
            return checkpoint, event
        if number < ATTEMPTS:
            self._queue.appendleft((checkpoint, number + 1))
            return None
        problem = f"{checkpoint.name}: the process that measured it died {ATTEMPTS} times, the last time {event.how}"
        return checkpoint, Outcome(Snapshot(checkpoint.step, problem=problem))


@contextmanager
def in_processes(plan: Plan, count: int) -> Iterator[Any]:
    """A function that measures checkpoints in so many processes, which end with the block."""
    pool = _ProcessPool(with_own_memory(plan, count), count)
    try:
        yield Scheduler(pool).measured
    finally:
        pool.shut_down()


def with_own_memory(plan: Plan, count: int) -> Plan:
    """With a limit of memory for each of so many workers, where none is given: a share of half of what is free."""
    device = plan.loading.device
    if plan.loading.memory is not None or device not in (None, "cpu"):
        return plan
    share = int(SHARE_OF_FREE * free_memory(torch.device("cpu"))) // count
    return replace(plan, loading=replace(plan.loading, memory=f"{max(share, 1)}B"))


class _Process:
    """A process and the line to it."""

    def __init__(self, plan: Plan, threads: int) -> None:
        packed = pickle.dumps(plan)
        context = multiprocessing.get_context("spawn")  # a fork of a process with threads may hang
        self.line, theirs = context.Pipe()
        self.process = context.Process(target=serve, args=(theirs, packed, threads), daemon=True)
        with _no_interrupts(), nullcontext() if _is_of_main(plan) else _no_main():
            self.process.start()
        theirs.close()

    def end(self, seconds: float) -> None:
        self.line.close()
        self.process.join(seconds)
        if self.process.is_alive():
            self.process.kill()
            self.process.join()


class _ProcessPool:
    advice = '; a script that sweeps in several processes must do so under `if __name__ == "__main__":`'

    def __init__(self, plan: Plan, size: int) -> None:
        self.size = size
        self._plan = plan
        self._threads = max(1, torch.get_num_threads() // size)
        self._all: list[_Process] = []

    def start(self) -> _Process:
        try:
            worker = _Process(self._plan, self._threads)
        except Exception as error:  # what cannot be sent raises in many ways
            hint = "`factory` and `attach` must be functions that can be imported by name"
            raise RunError(f"no worker can be started: {first_line(error)}; {hint}") from error
        self._all.append(worker)
        return worker

    def submit(self, worker: _Process, checkpoint: Checkpoint) -> None:
        with suppress(OSError):  # it has died, which shows when it is waited for
            worker.line.send(checkpoint)

    def next_event(self, workers: Collection[_Process]) -> tuple[_Process, Ready | Outcome | WorkerDied]:
        lines = {worker.line: worker for worker in workers}
        (line, *_) = wait(list(lines))
        worker = lines[line]  # type: ignore[index]  # what is waited for are lines
        try:
            return worker, worker.line.recv()
        except (EOFError, OSError):
            return worker, self._lost(worker)

    def _lost(self, worker: _Process) -> WorkerDied:
        self._all.remove(worker)
        worker.end(PATIENCE)
        code = worker.process.exitcode or 0
        return WorkerDied(_signal(-code) if code < 0 else f"with exit code {code}")

    def shut_down(self) -> None:
        for worker in self._all:
            worker.line.close()
        for worker in self._all:
            worker.process.terminate()  # what it measures now is of no use to anybody
        for worker in self._all:
            worker.end(PATIENCE)


def _is_of_main(plan: Plan) -> bool:
    """Whether something that is to be sent was defined in the script that runs, so that the other process must run it too."""
    return any(getattr(each, "__module__", "") == "__main__" for each in (plan.loading.factory, *plan.loading.attach))


@contextmanager
def _no_main() -> Iterator[None]:
    """Begin a process that does not run the script again: without a main guard it would begin all over, as would pytest."""
    before = sys.modules["__main__"]
    sys.modules["__main__"] = ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = before


def _signal(number: int) -> str:
    known = number in set(signal.Signals)
    cut = (
        " of a file that was cut short while it was read, if not of a broken disk"
        if number == getattr(signal, "SIGBUS", 0)
        else ""
    )
    return f"by signal {number}{f', {signal.Signals(number).name}' if known else ''}{cut}"


@contextmanager
def _no_interrupts() -> Iterator[None]:
    """Begin a process that Ctrl-C does not reach: the process that began it ends it, when what is measured is written."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
