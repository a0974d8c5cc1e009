"""What was measured of the small zoo (`fixtures/make.py zoo`): runs, and what each head is worth along each of them."""

import functools
import json
from pathlib import Path

import numpy as np

from pytest_induction import load_run
from pytest_induction.runs.phase_change.finding import find_phase_changes

FIXTURES = Path(__file__).parents[2] / "fixtures"
SEEDS = (0, 1, 2)
ATTENTION_ONLY, WITH_MLPS = ("2l", "3l"), ("2l-mlp",)  # in which induction heads can form
PLAIN = (*ATTENTION_ONLY, *WITH_MLPS)
SMEARED = ("1l-smeared", "2l-smeared")
CONTROLS = ("1l", "1l-mlp")
INDUCTION, PREVIOUS = 0.3, 0.3  # scores from which a head counts as one


def names(*kinds):
    """The runs of some kinds, over all seeds."""
    return [f"{kind}-s{seed}" for kind in kinds for seed in SEEDS]


@functools.cache
def run(name):
    return load_run(FIXTURES / "zoo" / name)


@functools.cache
def changes(name):
    """What changed in a run, by series."""
    return {change.series: change for change in find_phase_changes(run(name)).changes}


@functools.cache
def causes(name):
    """What heads are worth, arrays (snapshots, layers, heads), with `steps` and the `window` of the change; NaN for no number."""
    raw = json.loads((FIXTURES / "zoo" / name / "causes.json").read_text())
    arrays = ("qk_trace", "qk_eigenvalue", "before_and_after", "in_context", "in_context_full")
    found = {key: np.array(raw[key], dtype=np.float64) for key in arrays if raw[key][0] is not None}
    return {**found, "steps": np.array(raw["steps"]), "window": raw["window"], "is_change": raw["is_change"]}


def at_end(name, score):
    """A score of all heads at the last snapshot, (layers, heads)."""
    return np.array(getattr(run(name).snapshots[-1], score), dtype=np.float64)


def kinds_of_heads(name):
    """Which heads are induction heads at the end, and which previous-token heads: two masks (layers, heads)."""
    induction = at_end(name, "prefix_matching") >= INDUCTION
    return induction, (at_end(name, "previous_token") >= PREVIOUS) & ~induction


def score(name, step):
    """The in-context learning score at the snapshot of a step, or the last before it, nats; negative where a model learns."""
    steps = run(name).steps
    return float(run(name).column("icl_score")[int(np.searchsorted(steps, step, side="right")) - 1])
