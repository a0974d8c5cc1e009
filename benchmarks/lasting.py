"""Simulated trainings in which something is kept or lost, and in which two series form in an order or together.

`study_phase_change.py --lasting` prints the tables. Rows of a simulated advantage differ from each other by a twelfth of the rise
and scatter by themselves; a series without rows scatters by a tenth of that.
"""

from collections import Counter
from collections.abc import Callable
from functools import partial

import numpy as np

from pytest_induction.errors import ExpectationFailed
from pytest_induction.records import Evidence, Verdict
from pytest_induction.runs.phase_change.order import assert_formation_order
from pytest_induction.runs.record import Snapshot, TrainingRun
from pytest_induction.runs.transience import assert_no_transience

RISE, MAX_DROP = 6.0, 0.5
DROPS = (0.0, 0.25, 0.5, 0.75, 1.5, 3.0)  # nats; at 0.5 both SHOWN and REFUTED are wrong
WANDERS = (0.1, 0.5)  # nats, of the value of a single row at a single snapshot
LAGS = (-0.2, -0.05, 0.0, 0.05, 0.2)  # decades
NOISES = (0.01, 0.03)  # of a head score
ERROR_RATE = 0.05
STEPS = np.unique(np.geomspace(1, 10_000, 60).round().astype(int))


def _logistic(place: float, width: float) -> np.ndarray:
    return 1 / (1 + np.exp(-(np.log10(STEPS) - place) * 2 * np.log(9) / width))


def lasting(drop: float, wander: float, n_rows: int, seed: int) -> TrainingRun:
    """A run whose advantage rises by six nats and loses `drop`; without rows where `n_rows` is 0."""
    rng = np.random.default_rng([seed, int(100 * drop), n_rows])
    risen, fallen = RISE * _logistic(rng.uniform(1.6, 2.2), 0.3), _logistic(rng.uniform(2.8, 3.3), 0.4)
    amount = drop
    for _ in range(20):  # until the means of three snapshots fall by that much
        levels = np.convolve(risen - amount * fallen, np.full(3, 1 / 3), mode="valid")
        amount = max(0.0, amount + drop - float(levels.max() - levels[-1]))
    shape = risen - amount * fallen
    if not n_rows:
        values = shape + wander / 10 * rng.normal(size=len(STEPS))
        shots = [Snapshot(int(step), advantage=float(value)) for step, value in zip(STEPS, values, strict=True)]
        return TrainingRun("simulated", tuple(shots))
    rows = shape[:, None] * (1 + rng.normal(0, 1 / 12, n_rows)) + wander * rng.normal(size=(len(STEPS), n_rows))
    shots = [
        Snapshot(int(step), advantage=float(each.mean()), rows={"advantage": each.astype(np.float32)})
        for step, each in zip(STEPS, rows, strict=True)
    ]
    return TrainingRun("simulated", tuple(shots))


def ordered(lag: float, noise: float, seed: int) -> TrainingRun:
    """A run in which prefix matching forms so many decades after previous-token heads."""
    rng = np.random.default_rng([seed, int(1000 * (lag + 1))])
    place = rng.uniform(1.8, 2.4)
    one, two = (
        0.06 + 0.7 * _logistic(at, rng.uniform(0.1, 0.3)) + rng.normal(0, noise, len(STEPS)) for at in (place, place + lag)
    )
    shots = [
        Snapshot(int(step), previous_token=np.array([[first]]), prefix_matching=np.array([[second]]))
        for step, first, second in zip(STEPS, one, two, strict=True)
    ]
    return TrainingRun("simulated", tuple(shots))


def _verdict(claim: Callable[..., Evidence], run: TrainingRun) -> Verdict:
    try:
        return claim(run).verdict
    except ExpectationFailed as failed:
        return failed.evidence.verdict


def _cell(counted: Counter[Verdict]) -> str:
    return " / ".join(str(counted[each]) for each in (Verdict.SHOWN, Verdict.UNDETERMINED, Verdict.REFUTED))


def judged(count: int) -> tuple[list[str], list[str]]:
    """The tables, SHOWN / UNDETERMINED / REFUTED of `count` runs each, and what was wrong too often."""
    missed = []
    lines = [f"| rows | scatter | {' | '.join(f'drop {drop:g}' for drop in DROPS)} |", f"|{'---|' * (len(DROPS) + 2)}"]
    for n_rows in (12, 48, 0):
        for wander in WANDERS:
            found = {
                drop: Counter(_verdict(assert_no_transience, lasting(drop, wander, n_rows, seed)) for seed in range(count))
                for drop in DROPS
            }
            lines.append(f"| {n_rows or 'none'} | {wander:g} | {' | '.join(map(_cell, found.values()))} |")
            wrong = sum(found[drop][Verdict.SHOWN] for drop in DROPS if drop >= MAX_DROP)
            wrong += sum(found[drop][Verdict.REFUTED] for drop in DROPS if drop <= MAX_DROP)
            if wrong > 2 * ERROR_RATE * count:  # nearly all of them where the drop is what is allowed
                missed.append(f"drops of {n_rows} rows, scatter {wander:g}")
    lines += ["", f"| noise | {' | '.join(f'{lag:+g} decades' for lag in LAGS)} |", f"|{'---|' * (len(LAGS) + 1)}"]
    claim = partial(assert_formation_order, order=["previous_token", "prefix_matching"])
    for noise in NOISES:
        orders = {lag: Counter(_verdict(claim, ordered(lag, noise, seed)) for seed in range(count)) for lag in LAGS}
        lines.append(f"| {noise:g} | {' | '.join(map(_cell, orders.values()))} |")
        wrong = sum(
            counted[Verdict.SHOWN] * (lag <= 0) + counted[Verdict.REFUTED] * (lag >= 0) for lag, counted in orders.items()
        )
        if wrong > 2 * ERROR_RATE * count:
            missed.append(f"orders, noise {noise:g}")
    return lines, missed
