"""A sweep in several processes: each measures one checkpoint at a time, and one that dies loses no more than that.

Only the process that began the sweep writes. The others are told which checkpoint is next, and send back what they found.
"""

from __future__ import annotations

import multiprocessing
import signal
from collections import deque
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from multiprocessing.connection import Connection, wait
from typing import Any, Protocol, TypeVar

import torch

from pytest_induction.batching import SHARE_OF_FREE, free_memory
from pytest_induction.errors import RunError
from pytest_induction.runs.checkpoints import Checkpoint
from pytest_induction.runs.record import Snapshot
from pytest_induction.runs.streams import first_line
from pytest_induction.runs.tasks import Bench, Outcome, Plan

ATTEMPTS = 2  # at a checkpoint, before the death of who measures it is taken to be its doing
PATIENCE = 5.0  # seconds that a worker has to end by itself
READY = "ready"
Hand = TypeVar("Hand")


class Crew(Protocol[Hand]):
    """Those who measure: hired as they are needed, each with one checkpoint at a time."""

    size: int

    def hire(self) -> Hand: ...

    def give(self, hand: Hand, checkpoint: Checkpoint) -> None: ...

    def next_done(self, busy: Collection[Hand]) -> tuple[Hand, Outcome | str]:
        """Wait for one of them: what came of its checkpoint, or how it died."""
        ...


def share_out(crew: Crew[Hand], tasks: Iterator[Checkpoint]) -> Iterator[tuple[Checkpoint, Outcome]]:
    """Have all checkpoints measured, and give what came of each as soon as it is there."""
    again: deque[tuple[Checkpoint, int]] = deque()
    idle: list[Hand] = []
    busy: dict[Hand, tuple[Checkpoint, int]] = {}
    while True:
        while len(busy) < crew.size:
            task = again.popleft() if again else next(((each, 1) for each in tasks), None)
            if task is None:
                break
            hand = idle.pop() if idle else crew.hire()
            busy[hand] = task
            crew.give(hand, task[0])
        if not busy:
            return
        hand, found = crew.next_done(busy)
        checkpoint, attempt = busy.pop(hand)
        if isinstance(found, Outcome):
            idle.append(hand)
            yield checkpoint, found
        elif attempt < ATTEMPTS:
            again.append((checkpoint, attempt + 1))
        else:
            problem = f"{checkpoint.name}: the process that measured it died {ATTEMPTS} times, the last time {found}"
            yield checkpoint, Outcome(Snapshot(checkpoint.step, problem=problem))


@contextmanager
def in_processes(plan: Plan, count: int) -> Iterator[Any]:
    """A function that measures checkpoints in so many processes, which end with the block."""
    crew = _Processes(divided(plan, count), count)
    try:
        yield lambda tasks: share_out(crew, iter(tasks))
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
        context = multiprocessing.get_context("spawn")  # a fork of a process with threads may hang
        self.line, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(theirs, plan, threads), daemon=True)
        self.is_ready = False
        with _no_interrupts():
            self.process.start()
        theirs.close()

    def end(self, seconds: float) -> None:
        self.line.close()
        self.process.join(seconds)
        if self.process.is_alive():
            self.process.kill()
            self.process.join()


class _Processes:
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

    def next_done(self, busy: Collection[_Worker]) -> tuple[_Worker, Outcome | str]:
        lines = {worker.line: worker for worker in busy}
        while True:
            for line in wait(list(lines)):
                worker = lines[line]  # type: ignore[index]  # what is waited for are lines
                try:
                    found = worker.line.recv()
                except (EOFError, OSError):
                    return worker, self._lost(worker)
                if isinstance(found, Outcome):
                    return worker, found
                worker.is_ready = True

    def _lost(self, worker: _Worker) -> str:
        self._all.remove(worker)
        worker.end(PATIENCE)
        code = worker.process.exitcode or 0
        how = f"by signal {-code}" if code < 0 else f"with exit code {code}"
        if not worker.is_ready:
            raise RunError(
                f"a worker ended {how} before it could begin; a script that sweeps in several processes must do so "
                'under `if __name__ == "__main__":`'
            )
        return how

    def dismiss(self) -> None:
        for worker in self._all:
            worker.line.close()
        for worker in self._all:
            worker.process.terminate()  # what it measures now is of no use to anybody
        for worker in self._all:
            worker.end(PATIENCE)


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


def _serve(line: Connection[Any, Any], plan: Plan, threads: int) -> None:
    """What a worker does, until nobody listens any more."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(threads)
    bench = Bench(plan)
    with suppress(EOFError, OSError):
        line.send(READY)
        while True:
            line.send(bench.outcome(line.recv()))
