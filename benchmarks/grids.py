"""Simulated changes of prefix matching on grids of snapshots as trainings have them: found, missed, called what they are not.

| grid | snapshots |
|---|---|
| dense | 54, evenly over the logarithm of 10,000 steps |
| Pythia | its 154 public checkpoints: 0, the powers of two to 512, every 1,000 to 143,000 |
| OLMo | every 500 steps to 10,000, every 5,000 to 100,000 |
| 15, 8 | so many, evenly over the logarithm |

Abrupt ones are up to 0.3 decades wide, of three shapes, where the grid can tell: three snapshots or more on each plateau, and the
last before the change (a tenth of it) less than half a decade from the first after it (nine tenths). What must not be called
abrupt: a change over 0.6 to 0.7 decades, two equal steps a decade apart, a ramp over 63 % of the steps of the training, one
snapshot alone that is up, and nothing at all. Normal noise of 0.01, 0.02 and 0.05 on a change of 0.7.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import numpy as np

from pytest_induction.runs.phase_change.finding import change_of
from pytest_induction.runs.record import Snapshot, TrainingRun

GRIDS = {
    "dense": np.unique(np.geomspace(1, 10_000, 60).round()),
    "Pythia": np.array([0, *(2**power for power in range(10)), *range(1000, 144_000, 1000)]),
    "OLMo": np.array([*range(0, 10_000, 500), *range(10_000, 100_001, 5000)]),
    "15": np.unique(np.geomspace(1, 30_000, 15).round()),
    "8": np.unique(np.geomspace(10, 3000, 8).round()),
}
NOISES = (0.01, 0.02, 0.05)
LEVEL, CHANGE, MAX_WIDTH = 0.06, 0.7, 0.5
THRESHOLDS = {"found": 0.95, "false alarms": 0.01}
NOISY = 0.05  # at which a change may be too unclear to be found: it counts for false alarms and for what is denied only
Shape = Callable[[np.ndarray, float, float], np.ndarray]


def _logistic(x: np.ndarray, place: float, width: float) -> np.ndarray:
    return 1 / (1 + np.exp(-np.clip((x - place) * 2 * np.log(9) / width, -500, 500)))


def _ramp(x: np.ndarray, place: float, width: float) -> np.ndarray:
    return np.clip(0.5 + 0.8 * (x - place) / width, 0, 1)


def _saturating(x: np.ndarray, place: float, width: float) -> np.ndarray:
    """A Weibull curve over steps, half-way at the place; a tenth and nine tenths of it lie so wide apart."""
    power = np.log10(np.log(10) / -np.log(0.9)) / width
    return 1 - np.exp(-np.clip(np.log(2) * 10 ** (power * (x - place)), 0, 500))


SHAPES: tuple[Shape, ...] = (_logistic, _ramp, _saturating)


def _axis(steps: np.ndarray) -> np.ndarray:
    return np.log10(np.where(steps > 0, steps, steps[1] / 2))


def _abrupt(steps: np.ndarray, rng: np.random.Generator, seed: int) -> np.ndarray:
    """One that the grid can tell."""
    x, shape = _axis(steps), SHAPES[seed % 3]
    while True:
        place, width = rng.uniform(x[2], x[-3]), rng.choice([0.05, 0.1, 0.2, 0.3])
        values = shape(x, place, width)
        before, after = x[values <= 0.1], x[values >= 0.9]
        if len(before) >= 3 and len(after) >= 3 and after[0] - before[-1] < MAX_WIDTH:
            return values


def _gradual(steps: np.ndarray, rng: np.random.Generator, seed: int) -> np.ndarray:
    x = _axis(steps)
    return SHAPES[seed % 3](x, rng.uniform(x[0] + 0.5, x[-1] - 0.5), rng.uniform(0.6, 0.7))


def _two_steps(steps: np.ndarray, rng: np.random.Generator, seed: int) -> np.ndarray:
    x, shape = _axis(steps), SHAPES[seed % 3]
    place, width = rng.uniform(x[0] + 0.5, x[-1] - 1.5), rng.choice([0.05, 0.15, 0.3])
    return (shape(x, place, width) + shape(x, place + 1, width)) / 2


def _long_ramp(steps: np.ndarray, rng: np.random.Generator, seed: int) -> np.ndarray:
    return np.clip((steps / steps[-1] - rng.uniform(0.02, 0.35)) / 0.63, 0, 1)


def _one_alone(steps: np.ndarray, rng: np.random.Generator, seed: int) -> np.ndarray:
    values = np.zeros(len(steps))
    values[rng.integers(2, len(steps) - 1)] = rng.uniform(0.5, 1)
    return values


def _nothing(steps: np.ndarray, rng: np.random.Generator, seed: int) -> np.ndarray:
    return np.zeros(len(steps))


KINDS = {
    "abrupt": _abrupt,
    "0.6 to 0.7 decades": _gradual,
    "two steps": _two_steps,
    "ramp over 63 %": _long_ramp,
    "one snapshot up": _one_alone,
    "nothing": _nothing,
}


def verdict(steps: np.ndarray, values: np.ndarray) -> str:
    """The verdict on prefix matching of a run with one head."""
    shots = (Snapshot(int(step), prefix_matching=np.array([[value]])) for step, value in zip(steps, values, strict=True))
    change = change_of(TrainingRun("simulated", tuple(shots)), "prefix_matching")
    return "" if change is None else str(change.verdict)


def judged(count: int) -> tuple[list[str], list[str]]:
    """The table, and which thresholds are missed."""
    lines = [f"| grid | noise | {' | '.join(KINDS)} |", f"|{'---|' * (len(KINDS) + 2)}"]
    found: Counter[bool] = Counter()
    alarms: Counter[bool] = Counter()
    denied = 0
    for name, steps in GRIDS.items():
        for noise in NOISES:
            cells = []
            for kind, make in KINDS.items():
                counted: Counter[str] = Counter()
                for seed in range(count):
                    rng = np.random.default_rng([seed, len(steps)])
                    values = LEVEL + CHANGE * make(steps, rng, seed) + rng.normal(0, noise, len(steps))
                    counted[verdict(steps, values)] += 1
                cells.append(f"{counted['SHOWN']} / {counted['UNDETERMINED']} / {counted['REFUTED']}")
                if kind == "abrupt":
                    denied += counted["REFUTED"]
                    if noise < NOISY:
                        found.update({True: counted["SHOWN"], False: count - counted["SHOWN"]})
                else:
                    alarms.update({True: counted["SHOWN"], False: count - counted["SHOWN"]})
            lines.append(f"| {name} | {noise} | {' | '.join(cells)} |")
            print(lines[-1], flush=True)
    share, false = found[True] / found.total(), alarms[True] / alarms.total()
    lines.append(
        f"\nfound where noise is below {NOISY}: {found[True]} of {found.total()} ({share:.1%}); abrupt ones denied: {denied}; "
    )
    lines[-1] += f"called abrupt and are not: {alarms[True]} of {alarms.total()} ({false:.2%})"
    missed = ["found on the grids"] if share < THRESHOLDS["found"] else []
    missed += ["false alarms on the grids"] if false > THRESHOLDS["false alarms"] else []
    missed += ["abrupt changes denied on the grids"] if denied else []
    return lines, missed
