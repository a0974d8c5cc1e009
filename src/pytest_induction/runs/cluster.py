"""A sweep on a Ray cluster: actors that keep their model, one checkpoint each at a time.

A node or a process that is lost costs the checkpoints that were measured there just then; they are measured again elsewhere.
Whatever is named must be reachable from every node: the checkpoints, a factory's file, this package.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

from pytest_induction.errors import RunError, first_line
from pytest_induction.runs.checkpoints.finding import Checkpoint
from pytest_induction.runs.tasks import CheckpointMeasurer, Outcome, Plan, Ready
from pytest_induction.runs.workers import Scheduler, WorkerDied, with_own_memory


@contextmanager
def on_cluster(plan: Plan, address: str, *, workers: int, num_gpus: float | None, most: int) -> Iterator[Any]:
    """A function that measures checkpoints on the cluster. Raises `RunError` where there is none, or none that has room.

    A connection to Ray that is there already is used, and left open.
    """
    ray = _ray()
    is_ours = not ray.is_initialized()
    try:
        if is_ours:
            _connect(ray, address)
        pool = _ActorPool(ray, plan, num_gpus, _room(ray, workers, num_gpus, most))
        try:
            yield Scheduler(pool).measured
        finally:
            pool.shut_down()
    finally:
        if is_ours:
            ray.shutdown()


def _ray() -> Any:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is told to anybody
    try:
        import ray
    except ImportError:
        raise RunError("measuring on a Ray cluster needs it: pip install 'pytest-induction[ray]'") from None
    return ray


def _connect(ray: Any, address: str) -> None:
    quiet = {"log_to_driver": False, "logging_level": logging.ERROR}
    try:
        if address:
            ray.init(address=address, **quiet)
            return
        try:
            ray.init(address="auto", **quiet)
        except ConnectionError:  # there is none
            ray.init(address="local", include_dashboard=False, **quiet)
    except Exception as error:  # each transport raises in its own words
        raise RunError(f"no Ray cluster can be reached at {address or 'this machine'!r}: {first_line(error)}") from error


def _room(ray: Any, workers: int, num_gpus: float | None, most: int) -> int:
    """How many actors measure at once: as many as were asked for, or as the cluster has room for now."""
    has = ray.cluster_resources()
    name, each = ("CPU", 1.0) if num_gpus is None else ("GPU", num_gpus)
    room = int(has.get(name, 0) / each)
    if room < 1:
        raise RunError(f"the Ray cluster has {has.get(name, 0):g} {name}s, and {each:g} are needed for each model")
    return min(most, workers if workers > 1 else room)


@dataclass(eq=False)
class _ActorWorker:
    """An actor, and what is awaited of it: that it begins, and then the outcome of its checkpoint."""

    actor: Any
    awaited: Any


class _ActorPool:
    advice = ""

    def __init__(self, ray: Any, plan: Plan, num_gpus: float | None, size: int) -> None:
        self.size = size
        self._ray = ray
        self._plan = ray.put(plan)
        self._made = ray.remote(Actor).options(num_cpus=1, num_gpus=num_gpus or 0)
        self._all: list[_ActorWorker] = []

    def start(self) -> _ActorWorker:
        actor = self._made.remote(self._plan, self.size)
        worker = _ActorWorker(actor, actor.begin.remote())
        self._all.append(worker)
        return worker

    def submit(self, worker: _ActorWorker, checkpoint: Checkpoint) -> None:
        worker.awaited = worker.actor.outcome.remote(checkpoint)

    def next_event(self, workers: Collection[_ActorWorker]) -> tuple[_ActorWorker, Ready | Outcome | WorkerDied]:
        waiting = {worker.awaited: worker for worker in workers}
        try:
            (ready, *_), _ = self._ray.wait(list(waiting), num_returns=1)
        except Exception as error:
            raise RunError(f"the Ray cluster is lost: {first_line(error)}; what was measured is kept") from error
        worker = waiting[ready]
        try:
            return worker, self._ray.get(ready)
        except Exception as error:  # noqa: BLE001 - ray has many classes for what is lost
            self._all.remove(worker)
            self._end(worker)
            return worker, WorkerDied(f"with {type(error).__name__}: {_reason(error)}")

    def _end(self, worker: _ActorWorker) -> None:
        with suppress(Exception):  # it may be gone with its node
            self._ray.kill(worker.actor)

    def shut_down(self) -> None:
        for worker in self._all:
            self._end(worker)


class Actor:
    """Measures on the cluster, in a process of its own."""

    def __init__(self, plan: Plan, beside: int) -> None:
        self._measurer = CheckpointMeasurer(with_own_memory(plan, beside))  # all may be on one node

    def begin(self) -> Ready:
        return Ready()

    def outcome(self, checkpoint: Checkpoint) -> Outcome:
        return self._measurer.outcome(checkpoint)


def _reason(error: Exception) -> str:
    """What Ray says of the death of an actor, in a sentence: the reason is in the last line, after a traceback."""
    lines = [line for line in str(error).splitlines() if line.strip()]
    return lines[-1].strip().split(". ")[0] if lines else "no reason is known"
