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
from multiprocessing.connection import Connection, wait
from types import ModuleType
from typing import Any, Generic, Protocol, TypeVar

import torch

from pytest_induction.errors import RunError, first_line
from pytest_induction.model.batching import SHARE_OF_FREE, free_memory
from pytest_induction.runs.checkpoints.finding import Checkpoint
from pytest_induction.runs.record import Snapshot
from pytest_induction.runs.serving import serve
from pytest_induction.runs.tasks import Bench, Outcome, Plan

ATTEMPTS = 2  # at a checkpoint, before the death of who measures it is taken to be its doing
STILLBORN = 2  # workers in a row that died before they could begin, until no more are tried
PATIENCE = 5.0  # seconds that a worker has to end by itself
Hand = TypeVar("Hand")
Task = tuple[Checkpoint, int]  # with which attempt it is


@dataclass(frozen=True)
class Ready:
    """A worker can be given its first checkpoint."""


@dataclass(frozen=True)
class Death:
    """A worker is no more."""

    how: str


class Crew(Protocol[Hand]):
    """Those who measure: hired as they are needed, each with one checkpoint at a time."""

    size: int
    advice: str

    def hire(self) -> Hand: ...

    def give(self, hand: Hand, checkpoint: Checkpoint) -> None: ...

    def next_event(self, hands: Collection[Hand]) -> tuple[Hand, Ready | Outcome | Death]:
        """Wait until one of them is ready, done or dead."""
        ...


class Foreman(Generic[Hand]):
    """Has checkpoints measured by a crew. A checkpoint is given to who is ready for it, for others may never be."""

    def __init__(self, crew: Crew[Hand]) -> None:
        self._crew = crew
        self._starting: list[Hand] = []
        self._idle: list[Hand] = []
        self._working: dict[Hand, Task] = {}
        self._waiting: deque[Task] = deque()
        self._stillborn = 0

    def measured(self, tasks: Iterator[Checkpoint]) -> Iterator[tuple[Checkpoint, Outcome]]:
        """Of every checkpoint what came of it, as soon as it is there. The next is asked for when somebody can measure it."""
        while True:
            self._staff(tasks)
            while self._idle and self._waiting:
                hand, task = self._idle.pop(), self._waiting.popleft()
                self._working[hand] = task
                self._crew.give(hand, task[0])
            if not self._working and not self._waiting:
                return
            hand, event = self._crew.next_event([*self._starting, *self._working])
            done = self._after(hand, event)
            if done is not None:
                yield done

    def _staff(self, tasks: Iterator[Checkpoint]) -> None:
        """See to it that as many checkpoints wait as there are free hands, and to hands for those that wait."""
        while True:
            free = len(self._idle) + len(self._starting)
            has_room = free + len(self._working) < self._crew.size
            if len(self._waiting) > free and has_room:
                self._starting.append(self._crew.hire())
            elif len(self._waiting) < free or (has_room and len(self._waiting) == free):
                task = next(tasks, None)
                if task is None:
                    return
                self._waiting.append((task, 1))
            else:
                return

    def _after(self, hand: Hand, event: Ready | Outcome | Death) -> tuple[Checkpoint, Outcome] | None:
        """Keep the books; what came of a checkpoint, if it is done with."""
        if isinstance(event, Ready):
            self._stillborn = 0
            self._starting.remove(hand)
            self._idle.append(hand)
            return None
        if hand in self._starting and isinstance(event, Death):
            self._starting.remove(hand)
            self._stillborn += 1
            if self._stillborn >= STILLBORN:
                raise RunError(f"a worker died before it could begin, {event.how}{self._crew.advice}")
            return None
        checkpoint, attempt = self._working.pop(hand)
        if isinstance(event, Outcome):
            self._idle.append(hand)
            return checkpoint, event
        if attempt < ATTEMPTS:
            self._waiting.appendleft((checkpoint, attempt + 1))
            return None
        problem = f"{checkpoint.name}: the process that measured it died {ATTEMPTS} times, the last time {event.how}"
        return checkpoint, Outcome(Snapshot(checkpoint.step, problem=problem))


@contextmanager
def in_processes(plan: Plan, count: int) -> Iterator[Any]:
    """A function that measures checkpoints in so many processes, which end with the block."""
    crew = _Processes(divided(plan, count), count)
    try:
        yield Foreman(crew).measured
    finally:
        crew.dismiss()


def divided(plan: Plan, count: int) -> Plan:
    """With memory for each where none is said: half of what is free for all of them together."""
    device = plan.loading.device
    if plan.loading.memory is not None or device not in (None, "cpu"):
        return plan
    share = int(SHARE_OF_FREE * free_memory(torch.device("cpu"))) // count
    return replace(plan, loading=replace(plan.loading, memory=f"{max(share, 1)}B"))


class _Worker:
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


class _Processes:
    advice = '; a script that sweeps in several processes must do so under `if __name__ == "__main__":`'

    def __init__(self, plan: Plan, size: int) -> None:
        self.size = size
        self._plan = plan
        self._threads = max(1, torch.get_num_threads() // size)
        self._all: list[_Worker] = []

    def hire(self) -> _Worker:
        try:
            worker = _Worker(self._plan, self._threads)
        except Exception as error:  # what cannot be sent raises in many ways
            hint = "`factory` and `attach` must be functions that can be imported by name"
            raise RunError(f"no worker can be started: {first_line(error)}; {hint}") from error
        self._all.append(worker)
        return worker

    def give(self, hand: _Worker, checkpoint: Checkpoint) -> None:
        with suppress(OSError):  # it has died, which shows when it is waited for
            hand.line.send(checkpoint)

    def next_event(self, hands: Collection[_Worker]) -> tuple[_Worker, Ready | Outcome | Death]:
        lines = {worker.line: worker for worker in hands}
        (line, *_) = wait(list(lines))
        worker = lines[line]  # type: ignore[index]  # what is waited for are lines
        try:
            return worker, worker.line.recv()
        except (EOFError, OSError):
            return worker, self._lost(worker)

    def _lost(self, worker: _Worker) -> Death:
        self._all.remove(worker)
        worker.end(PATIENCE)
        code = worker.process.exitcode or 0
        return Death(_signal(-code) if code < 0 else f"with exit code {code}")

    def dismiss(self) -> None:
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
    """Begin a process that Ctrl-C does not reach: whoever began it ends it, when what is measured is written."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def measure(line: Connection[Any, Any], plan: Plan, threads: int) -> None:
    """Measure what comes along the line, until nobody listens any more."""
    torch.set_num_threads(threads)
    bench = Bench(plan)
    with suppress(EOFError, OSError):
        line.send(Ready())
        while True:
            line.send(bench.outcome(line.recv()))
