"""The scheduler of a sweep, over a pool of workers that do as they are told: who gets which checkpoint, and what a death costs."""

from itertools import count, islice

import pytest

from pytest_induction.errors import RunError
from pytest_induction.runs.checkpoints.finding import Checkpoint
from pytest_induction.runs.record import Snapshot
from pytest_induction.runs.tasks import Outcome, Ready
from pytest_induction.runs.workers import ATTEMPTS, FAILED_STARTS, Scheduler, WorkerDied


class Workers:
    """A pool. `deadly` says how often a worker dies of a checkpoint, `stillborn` which workers die before they are ready."""

    advice = "; mind the guard"

    def __init__(self, size, deadly=(), stillborn=()):
        self.size, self.deadly, self.stillborn = size, dict(deadly), set(stillborn)
        self.numbers, self.ready, self.has, self.given, self.most = count(), set(), {}, [], 0

    def start(self):
        return next(self.numbers)

    def submit(self, worker, checkpoint):
        assert worker in self.ready and worker not in self.has, "it is ready, and has none"
        self.has[worker] = checkpoint
        self.given.append(checkpoint.step)
        self.most = max(self.most, len(self.has))

    def next_event(self, workers):
        assert len(workers) <= self.size
        worker = next((each for each in sorted(workers, reverse=True) if each not in self.ready), max(workers))
        if worker not in self.ready:
            if worker in self.stillborn:
                return worker, WorkerDied("with exit code 1")
            self.ready.add(worker)
            return worker, Ready()
        checkpoint = self.has.pop(worker)
        if self.deadly.get(checkpoint.step, 0):
            self.deadly[checkpoint.step] -= 1
            self.ready.remove(worker)
            return worker, WorkerDied("by signal 9")
        return worker, Outcome(Snapshot(checkpoint.step))


def checkpoints(number):
    return [Checkpoint(step, f"step_{step}.pt", "file") for step in range(number)]


def measured(pool, number=6):
    return {
        checkpoint.step: outcome.snapshot.problem for checkpoint, outcome in Scheduler(pool).measured(iter(checkpoints(number)))
    }


@pytest.mark.parametrize("size", [1, 2, 5, 9])
def test_every_checkpoint_is_measured_once(size):
    pool = Workers(size)
    assert measured(pool) == dict.fromkeys(range(6), "") and sorted(pool.given) == list(range(6))
    assert pool.most == min(size, 6)


def test_no_checkpoint_at_all_starts_no_worker():
    pool = Workers(3)
    assert measured(pool, 0) == {} and next(pool.numbers) == 0


def test_a_checkpoint_is_asked_for_when_a_worker_is_free_for_it():
    """A sweep says of the next one whether it is needed by what is measured so far."""
    asked = []
    found = Scheduler(Workers(2)).measured(asked.append(each.step) or each for each in checkpoints(100))
    assert len(list(islice(found, 10))) == 10 and len(asked) <= 12


def test_a_checkpoint_whose_worker_dies_is_measured_by_another():
    pool = Workers(2, deadly={3: ATTEMPTS - 1})
    assert measured(pool) == dict.fromkeys(range(6), "") and pool.given.count(3) == ATTEMPTS


def test_a_checkpoint_that_kills_every_worker_is_named_and_costs_no_other():
    pool = Workers(2, deadly={3: 99})
    found = measured(pool)
    assert found.pop(3) == f"step_3.pt: the process that measured it died {ATTEMPTS} times, the last time by signal 9"
    assert found == dict.fromkeys([0, 1, 2, 4, 5], "") and pool.given.count(3) == ATTEMPTS


def test_a_worker_that_dies_before_it_is_ready_costs_no_checkpoint():
    assert measured(Workers(1, stillborn=range(FAILED_STARTS - 1))) == dict.fromkeys(range(6), "")


def test_workers_of_which_none_can_begin_end_the_sweep():
    with pytest.raises(RunError, match="a worker died before it could begin, with exit code 1; mind the guard"):
        measured(Workers(2, stillborn=range(99)))
