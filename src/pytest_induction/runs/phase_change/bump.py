"""The bump of the loss curve: a while in which the loss falls more slowly than it does afterwards.

A loss that only ever falls more slowly is convex in the tokens trained on, and lies on its own lower convex hull; the height
of the curve above the hull is the height of a bump (Olsson et al., argument 1: the only place where the loss is not convex).
A spike is none: the loss rises, by itself or because the data changed, and comes back. What lies before it and what comes after
it has come back are looked at for bumps each by itself.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
PARTS = 60  # of the axis, in decades; more values than that are averaged
RISES = 3  # times its error, for a loss to have risen
LEAST_RISE = 0.05  # nats
FEWEST = 4  # averages in a stretch, for a bump to be seen


@dataclass(frozen=True)
class Bump:
    """The highest bump: where the loss lies farthest above the hull, and where it meets the hull again; indices of the series.

    `height` in nats, with its standard error by the scatter of the loss, `spread`, and `error` where the knee was chosen
    as the highest; `first_knee` and `last_knee` bound the places that are as high within two of the latter.
    """

    knee: int
    end: int
    height: float
    error: float
    spread: float
    first_knee: int
    last_knee: int


def find_bump(x: Floats, amount: Floats, loss: Floats) -> Bump:
    """The highest bump of a loss (points,) over tokens (or steps), `x` their logarithm; at least four points.

    The loss is averaged in equal parts of `x`, so that the scatter of single batches makes no bumps.
    """
    part = np.minimum(((x - x[0]) / max(x[-1] - x[0], 1e-12) * PARTS).astype(np.int64), PARTS - 1)
    _, first, inverse, counts = np.unique(part, return_index=True, return_inverse=True, return_counts=True)
    mean_amount, mean_loss = (np.bincount(inverse, weights=values) / counts for values in (amount, loss))
    errors, last = scatter_of(loss) / np.sqrt(counts), np.append(first[1:], len(loss)) - 1
    found = [_highest(mean_amount, mean_loss, errors, stretch) for stretch in _between_spikes(mean_loss, errors)]
    bump = max(found, key=lambda each: each.height)
    return Bump(
        int(last[bump.knee]),
        int(first[bump.end]),
        bump.height,
        bump.error,
        bump.spread,
        int(first[bump.first_knee]),
        int(last[bump.last_knee]),
    )


def _highest(amount: Floats, loss: Floats, errors: Floats, stretch: slice) -> Bump:
    """The highest bump of one stretch of the averages, as indices of these."""
    start, amount, loss, errors = stretch.start, amount[stretch], loss[stretch], errors[stretch]
    above = loss - _hull(amount, loss)
    knee = int(above.argmax())
    touches = np.flatnonzero(above <= 1e-12)
    end = int(touches[touches > knee][0]) if (touches > knee).any() else len(above) - 1
    error, spread = _height_errors(errors, amount, knee, touches)
    within = np.flatnonzero(above >= above[knee] - 2 * error)
    near = within[(within >= knee - _run(within, knee, -1)) & (within <= knee + _run(within, knee, 1))]
    return Bump(start + knee, start + end, float(above[knee]), error, spread, start + int(near[0]), start + int(near[-1]))


def _between_spikes(loss: Floats, errors: Floats) -> list[slice]:
    """The stretches of the averages in which the loss does not rise above the lowest that it was and come back."""
    stretches, start, lowest = [], 0, 0
    for place in range(1, len(loss)):
        if loss[place] < loss[lowest]:
            if _has_risen(loss[lowest + 1 : place], errors[lowest + 1 : place], loss[lowest], errors[lowest]):
                stretches.append(slice(start, lowest + 1))
                start = place
            lowest = place
    tail = slice(lowest + 1, len(loss))
    if _has_risen(loss[tail], errors[tail], loss[lowest], errors[lowest]):
        stretches.append(slice(start, lowest + 1))
    else:
        stretches.append(slice(start, len(loss)))
    seen = [each for each in stretches if each.stop - each.start >= FEWEST]
    return seen or [max(stretches, key=lambda each: each.stop - each.start)]


def _has_risen(loss: Floats, errors: Floats, lowest: float, error: float) -> bool:
    """Whether some of the averages lie above the lowest one by more than their scatter makes."""
    return bool((loss - lowest > np.maximum(RISES * np.hypot(errors, error), LEAST_RISE)).any())


def _height_errors(errors: Floats, amount: Floats, knee: int, touches: NDArray[np.int64]) -> tuple[float, float]:
    """Those of the knee and of the chord below it: added, for both were chosen, the highest and the lowest; and in quadrature."""
    left, right = (
        int(side[place]) if len(side) else knee for side, place in ((touches[touches < knee], -1), (touches[touches > knee], 0))
    )
    share = (amount[knee] - amount[left]) / max(amount[right] - amount[left], 1e-300)
    parts = np.array([errors[knee], (1 - share) * errors[left], share * errors[right]])
    return float(parts.sum()), float(np.sqrt((parts**2).sum()))


def _run(places: NDArray[np.int64], start: int, step: int) -> int:
    """How many places in a row belong to the set, from `start` on in one direction."""
    known, count = set(places.tolist()), 0
    while start + step * (count + 1) in known:
        count += 1
    return count


def scatter_of(loss: Floats) -> float:
    """Standard deviation of single values about their neighbours' mean, by the median, which a real bend does not move."""
    if len(loss) < 3:
        return 0.0
    bends = loss[1:-1] - (loss[:-2] + loss[2:]) / 2
    return float(1.4826 * np.median(np.abs(bends)) / 1.5**0.5)


def _hull(x: Floats, y: Floats) -> Floats:
    """The lower convex hull of the points, at each of them."""
    corners: list[int] = []
    for index in range(len(x)):
        while len(corners) > 1 and _is_above(x, y, corners[-2], corners[-1], index):
            corners.pop()
        corners.append(index)
    return np.interp(x, x[corners], y[corners])


def _is_above(x: Floats, y: Floats, first: int, middle: int, last: int) -> bool:
    """Whether the middle point lies on or above the chord of the other two."""
    return bool((y[middle] - y[first]) * (x[last] - x[first]) >= (y[last] - y[first]) * (x[middle] - x[first]))
