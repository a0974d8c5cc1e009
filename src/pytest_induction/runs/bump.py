"""The bump of the loss curve: a while in which the loss falls more slowly than it does afterwards.

A loss that only ever falls more slowly is convex in the tokens trained on, and lies on its own lower convex hull; the height
of the curve above the hull is the height of a bump (Olsson et al., argument 1: the only place where the loss is not convex).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
PARTS = 60  # of the axis, in decades; more values than that are averaged


@dataclass(frozen=True)
class Bump:
    """The highest bump: where the loss lies farthest above the hull, and where it meets the hull again; indices of the series.

    `height` in nats, with the error that the scatter of the loss about itself gives it; `first_knee` and `last_knee` bound the
    places that are as high within two of these.
    """

    knee: int
    end: int
    height: float
    error: float
    first_knee: int
    last_knee: int


def find_bump(x: Floats, amount: Floats, loss: Floats) -> Bump:
    """The highest bump of a loss (points,) over tokens (or steps), `x` their logarithm; at least four points.

    The loss is averaged in equal parts of `x`, so that the scatter of single batches makes no bumps.
    """
    part = np.minimum(((x - x[0]) / max(x[-1] - x[0], 1e-12) * PARTS).astype(np.int64), PARTS - 1)
    _, first, inverse, counts = np.unique(part, return_index=True, return_inverse=True, return_counts=True)
    mean_amount, mean_loss = (np.bincount(inverse, weights=values) / counts for values in (amount, loss))
    above = mean_loss - _hull(mean_amount, mean_loss)
    knee = int(above.argmax())
    touches = np.flatnonzero(above <= 1e-12)
    end = int(touches[touches > knee][0]) if (touches > knee).any() else len(above) - 1
    error = _height_error(scatter_of(loss) / np.sqrt(counts), mean_amount, knee, touches)
    within = np.flatnonzero(above >= above[knee] - 2 * error)
    near = within[(within >= knee - _run(within, knee, -1)) & (within <= knee + _run(within, knee, 1))]
    last = np.append(first[1:], len(loss)) - 1
    return Bump(int(last[knee]), int(first[end]), float(above[knee]), error, int(first[near[0]]), int(last[near[-1]]))


def _height_error(errors: Floats, amount: Floats, knee: int, touches: NDArray[np.int64]) -> float:
    """That of the knee and that of the chord below it. Added, not in quadrature: both were chosen, the highest and the lowest."""
    left, right = (
        int(side[place]) if len(side) else knee for side, place in ((touches[touches < knee], -1), (touches[touches > knee], 0))
    )
    share = (amount[knee] - amount[left]) / max(amount[right] - amount[left], 1e-300)
    return float(errors[knee] + (1 - share) * errors[left] + share * errors[right])


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
