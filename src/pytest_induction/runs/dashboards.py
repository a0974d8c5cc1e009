"""What a snapshot says as names and numbers, for the dashboards of others: W&B, TensorBoard, MLflow, Comet and their like."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping
from typing import Any, cast

import numpy as np

from pytest_induction.errors import ArgumentError
from pytest_induction.heads.criteria import matches_by_means
from pytest_induction.records import Verdict
from pytest_induction.runs.heads_over_training import judge_snapshot
from pytest_induction.runs.record import BY_ROW, Snapshot

Listener = Callable[[dict[str, float], int], object]
"""Gets the numbers of a snapshot by their names, and its step."""

PREFIX = "induction/"
BEHAVIOUR = ("advantage", "repeat_loss", "repeat_accuracy", "icl_score", *BY_ROW[1:])
BEST_HEADS = ("prefix_matching", "previous_token", "preference")
VERDICTS: Mapping[Verdict, float] = {Verdict.SHOWN: 1.0, Verdict.UNDETERMINED: 0.0, Verdict.REFUTED: -1.0}


def numbers_of(snapshot: Snapshot) -> dict[str, float]:
    """The numbers of a snapshot, each name with `induction/` before it; what was not measured is left out.

    Scores of heads are the highest of all heads. `heads` is how many heads match prefixes by their means. `verdict` is on
    whether the model has an induction head now, by this snapshot: 1 if it is shown, -1 if it is shown not to, 0 if neither.
    """
    found: dict[str, float | None] = {name: getattr(snapshot, name) for name in BEHAVIOUR}
    for name in (*BEST_HEADS, *snapshot.added):
        scores = snapshot.measurement(name)
        if scores is not None and np.isfinite(scores).any():
            found[name] = float(np.nanmax(scores))
    if snapshot.prefix_matching is not None and snapshot.excess is not None:
        scores = {"prefix_matching": snapshot.prefix_matching, "excess": snapshot.excess}
        found["heads"] = float(np.count_nonzero(matches_by_means(scores)))
    judged = judge_snapshot(snapshot)
    if judged is not None:
        found["verdict"] = VERDICTS[judged.verdict]
    return {f"{PREFIX}{name}": float(value) for name, value in found.items() if value is not None and math.isfinite(value)}


def listener(given: Any) -> Listener:
    """`on_snapshot` as a function of the numbers and the step, whichever way it takes them.

    `log(numbers, step=...)` of W&B, MLflow, Comet, accelerate and Lightning's loggers is called that way; a function of the
    numbers alone gets nothing else. Raises `ArgumentError` for what takes neither.
    """
    if not callable(given):
        raise ArgumentError(f"`on_snapshot` must be a function of the names and numbers, got {given!r}")
    try:
        signature = inspect.signature(given)
    except (TypeError, ValueError):  # some built-in functions have none
        return lambda numbers, step: given(numbers, step=step)
    if _takes(signature, {}, step=0):
        return lambda numbers, step: given(numbers, step=step)
    if _takes(signature, {}, 0):
        return cast("Listener", given)
    if _takes(signature, {}):
        return lambda numbers, step: given(numbers)
    takes = "the numbers by their names, or these and `step`"
    raise ArgumentError(f"`on_snapshot` must be a function of {takes}, got one of {signature}")


def _takes(signature: inspect.Signature, *given: object, **named: object) -> bool:
    try:
        signature.bind(*given, **named)
    except TypeError:
        return False
    return True
