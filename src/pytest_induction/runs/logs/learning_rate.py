"""What the learning rate of a log says of the schedule."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from pytest_induction.runs.record import ScheduledChange

FALL = 0.5  # of the learning rate that is left, or less, after a change that is sudden
MOST_CHANGES = 100


def scheduled_changes(steps: NDArray[np.integer[Any]], rates: NDArray[np.floating[Any]]) -> tuple[ScheduledChange, ...]:
    """The end of the warm-up, where the learning rate rises first, and later falls by more than half from one entry to the next.

    `steps` (entries,) rise strictly; `rates` (entries,) may be NaN. At most a hundred changes.
    """
    known = np.isfinite(rates)
    steps, rates = steps[known], rates[known]
    if not len(rates):
        return ()
    changes: list[ScheduledChange] = []
    highest = int(np.argmax(rates))
    if rates[highest] > rates[0]:
        changes.append(
            ScheduledChange(int(steps[highest]), f"the warm-up ends: the learning rate is at its highest, {rates[highest]:g}")
        )
    before, after = rates[highest:-1], rates[highest + 1 :]
    for place in np.flatnonzero(after < FALL * before)[: MOST_CHANGES - 1]:
        what = f"the learning rate falls from {before[place]:g} to {after[place]:g}"
        changes.append(ScheduledChange(int(steps[highest + 1 + place]), what))
    return tuple(changes)
