"""Series of known shape, and runs made of them."""

import numpy as np

from pytest_induction.runs.phase_change.finding import change_of
from pytest_induction.runs.record import ScheduledChange, Snapshot, TrainingRun

HEADS = ("prefix_matching", "previous_token")
PER_STEP = 2048


def log_steps(count, first=1, last=10_000):
    """So many distinct whole steps, evenly over their logarithm."""
    return np.unique(np.geomspace(first, last, count).round().astype(int))


def ramp(x, place, width):
    """From 0 to 1 in a straight line; from 10 % to 90 % it takes `width`."""
    return np.clip(0.5 + 0.8 * (np.asarray(x, dtype=float) - place) / width, 0.0, 1.0)


def logistic(x, place, width):
    """From 0 to 1 as a logistic; from 10 % to 90 % it takes `width`."""
    return 1 / (1 + np.exp(-np.clip((np.asarray(x, dtype=float) - place) * 2 * np.log(9) / width, -500, 500)))


def noise_of(count, size, seed, likeness=0.0):
    """Normal noise of a standard deviation, each value so much like the one before (AR(1))."""
    rng = np.random.default_rng(seed)
    values = rng.normal(size=count)
    for index in range(1, count):
        values[index] = likeness * values[index - 1] + np.sqrt(1 - likeness**2) * values[index]
    return size * values


def run_of(
    steps,
    *,
    name="made",
    tokens_per_step=PER_STEP,
    tokens=None,
    schedule=(),
    errors=None,
    icl_rows=None,
    token_losses=None,
    **series,
):
    """A run of series (snapshots,) by the names of `Snapshot`; NaN is not recorded.

    One of heads is that of the best of four heads; the others have 0.05. `errors` are standard errors by name, `icl_rows` (snapshots,
    rows), `token_losses` (snapshots, tokens), `schedule` pairs of a step and what happened.
    """
    snapshots = []
    for index, step in enumerate(steps):
        values = {name: float(column[index]) for name, column in series.items() if np.isfinite(column[index])}
        heads = {name: np.array([[0.05, values[name]], [0.05, 0.05]]) for name in HEADS if name in values}
        rows = {} if icl_rows is None else {"icl_rows": icl_rows[index]}
        rows |= {} if token_losses is None or np.isnan(token_losses[index]).all() else {"token_losses": token_losses[index]}
        count = None if tokens is None or tokens[index] is None else int(tokens[index])
        snapshots.append(Snapshot(int(step), count, **{**values, **heads}, **rows, errors=errors or {}))
    return TrainingRun(
        name, tuple(snapshots), tokens_per_step=tokens_per_step, schedule=tuple(ScheduledChange(*each) for each in schedule)
    )


def formed_series(steps, place=2.4, width=0.15, *, noise=0.003, seed=0):
    """Prefix matching, advantage, icl_score and loss of a run in which induction forms at step 10^place, over the logarithm of steps."""
    x = np.log10(np.maximum(steps, 0.5))
    shape = logistic(x, place, width)
    parts = [noise_of(len(x), noise, seed + index) for index in range(4)]
    return {
        "prefix_matching": 0.06 + 0.7 * shape + parts[0],
        "advantage": 0.1 + 6 * shape + 5 * parts[1],
        "icl_score": -0.1 - 1.5 * shape + 3 * parts[2],
        "loss": 6 - 0.5 * x - 1.5 * shape + parts[3],
    }


def turning_path(steps, place=2.4, width=0.15, *, size=2.0, noise=0.05, seed=0, tokens=512):
    """Token losses (snapshots, tokens) that drift along one direction, and at step 10^place go `size` nats along another."""
    x = np.log10(np.maximum(steps, 0.5))
    rng = np.random.default_rng(seed)
    one, two = np.linalg.qr(rng.normal(size=(tokens, 2)))[0].T * np.sqrt(tokens)
    wander = noise * rng.normal(size=(len(x), tokens))
    wander[0] = 0  # an untrained model lies where it lies
    return (5 + np.outer((x - x[0]) / 4, one) + np.outer(size * logistic(x, place, width), two) + wander).astype(np.float32)


STEPS = log_steps(100)
X = np.log10(STEPS)


def heads(shape, steps=STEPS, noise=0.003, seed=0, **options):
    """The change of prefix matching that goes from 0.06 to 0.76 as a shape does from 0 to 1."""
    values = 0.06 + 0.7 * np.asarray(shape) + noise_of(len(steps), noise, seed)
    rule = {name: options.pop(name) for name in ("max_width", "min_change") if name in options}
    return change_of(run_of(steps, prefix_matching=values, **options), "prefix_matching", **rule)


def abrupt(steps=STEPS, place=2.4, width=0.2):
    return logistic(np.log10(np.maximum(steps, 0.5)), place, width)
