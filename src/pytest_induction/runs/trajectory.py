"""The path of a training in the space of the losses of single tokens, and how the loss falls along the context. Needs numpy only.

A point of the path is one snapshot: the losses of a fixed sample of tokens, in nats. Distances are root mean squares over the
tokens, so that they are nats per token however many there are.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pytest_induction.errors import ArgumentError

Floats = NDArray[np.float64]
WINDOW = 0.2  # decades on either side of a snapshot, for an angle
FEWEST_IN_WINDOW = 4  # snapshots: two for the slope of each half
END = 3  # snapshots at the end of a path, whose mean is where it goes
FEWEST_POINTS = END + 2  # for a heading
BLOCKS = 20  # of examples, each left out once for a standard error
BIN = 0.25  # of the natural logarithm of the token number


@dataclass(frozen=True)
class LossPath:
    """A path along its principal directions.

    `places` (snapshots, components) in nats per token, zero in the middle; `shares` (components,) of all that varies, each in
    [0, 1], falling; `directions` (components, tokens) of length 1.
    """

    places: Floats
    shares: Floats
    directions: Floats


def principal_path(losses: Floats, n_components: int = 2) -> LossPath:
    """The path (snapshots, tokens) on the plane (or line, or space) in which it varies most: centred, by a thin singular value
    decomposition (Olsson et al., argument 1).

    The sign of each direction is such that the path ends farther along it than it began; where it does not, that the largest
    component is positive. A smooth path of any kind bends in this plane (a straight line that wanders makes an arch), so a bend
    there is no evidence by itself: see `headings`.

    Raises `ArgumentError` for a path that does not move, or more components than snapshots less one or tokens.
    """
    losses = _checked(losses)
    most = min(losses.shape[0] - 1, losses.shape[1])
    if not 1 <= n_components <= most:
        raise ArgumentError(f"`n_components` must be 1 to {most} for {losses.shape[0]} snapshots, got {n_components}")
    left, sizes, right = np.linalg.svd(losses - losses.mean(axis=0), full_matrices=False)
    if not sizes[0] > 1e-12 * max(1.0, float(np.abs(losses).max())):
        raise ArgumentError("a path that does not move has no directions: the losses are the same at every snapshot")
    places, directions = left[:, :n_components] * sizes[:n_components], right[:n_components]
    ahead = places[-1] - places[0]
    largest = directions[np.arange(n_components), np.abs(directions).argmax(axis=1)]
    sign = np.where(np.where(np.abs(ahead) > 1e-9 * sizes[0], ahead, largest) < 0, -1.0, 1.0)
    shares = sizes[:n_components] ** 2 / (sizes**2).sum()
    return LossPath(places * sign / math.sqrt(losses.shape[1]), shares, directions * sign[:, None])


def turning_angles(x: Floats, losses: Floats, *, window: float = WINDOW) -> Floats:
    """The angle between where the path comes from and where it goes, at every snapshot (snapshots,), in degrees, 0 to 180.

    `x` (snapshots,) is the logarithm of the tokens trained on, in decades, `losses` (snapshots, tokens). Each velocity is the
    slope of the losses over the snapshots within `window` decades before (the snapshot included), or after (it not included): no
    snapshot is in both, so that noise of single snapshots adds nothing to their product. It does add to the length of each, and
    makes any angle look like 90 degrees; lengths are therefore taken from two halves of the snapshots, every other one, as the
    product of their two slopes. Where the halves do not even point the same way, the stretch is noise and the angle is NaN; so
    it is with fewer than four snapshots on either side.

    A straight path has 0, a right-angled corner 90 at the corner. So has a random walk everywhere, and weights that wander from
    step to step, which a high learning rate makes them do, are one; what wanders and comes back has more. An angle near 90 is
    thus no evidence of a turn unless those around it are far lower.
    """
    losses, x = _checked(losses), np.asarray(x, dtype=np.float64)
    if x.shape != losses.shape[:1] or not (np.diff(x) > 0).all():
        raise ArgumentError(f"`x` must rise strictly, one place for each of {len(losses)} snapshots, got {x.shape}")
    if not 0 < window < math.inf:
        raise ArgumentError(f"`window` must be above 0 decades, got {window}")
    angles = np.full(len(x), np.nan)
    for index, place in enumerate(x):
        first, last = np.searchsorted(x, [place - window - 1e-9, place + window + 1e-9])
        before, after = slice(int(first), index + 1), slice(index + 1, int(last))
        if min(index + 1 - first, last - index - 1) >= FEWEST_IN_WINDOW:
            length = _squared_speed(x[before], losses[before]) * _squared_speed(x[after], losses[after])
            along = float(_slope(x[before], losses[before]) @ _slope(x[after], losses[after]))
            angles[index] = np.nan if math.isnan(length) else _degrees(along / math.sqrt(length))
    return angles


def headings(losses: Floats) -> Floats:
    """How far the way so far points away from where the path ends, at every snapshot (snapshots,), in degrees, 0 to 180.

    The angle between the displacement from the first snapshot and that of the end from the first, in the whole space of the
    losses (snapshots, tokens). No principal direction is chosen, and no speed counts. A path that goes straight has 0 throughout.
    One that turns once, at a right angle half-way, has 45 until the corner, and then falls to 0; one that bends all the way falls
    all the way. A step of the heading is a turn.

    The end is the mean of the last three snapshots, without the one in question, so that its noise is not taken for agreement.
    Noise of a snapshot is nearly at right angles to any direction among many tokens: after a way d, noise of root mean square e
    makes an angle of 0 one of atan(e / d), most at first, which may look like a turn: see `headings_without_noise`. NaN where the
    path has not left its start.

    Raises `ArgumentError` for fewer than five snapshots, or a path that ends where it began.
    """
    return _headings(_products(_checked(losses), np.zeros(1, dtype=np.int64)).sum(axis=2))


def headings_without_noise(losses: Floats) -> Floats:
    """The headings (snapshots,) with ways as long as they are without noise: never higher than `headings`, and 0 for noise alone.

    The squared length of each way is taken less that of the noise, which is what a snapshot lies off the middle between its
    neighbours, the largest of three. Where snapshots are few, that is also how the path bends and wanders between them: this is
    a lower bound.
    """
    losses = _checked(losses)
    along, way, end = _products(losses, np.zeros(1, dtype=np.int64))[..., 0]
    left = np.maximum(way - _squared_noise(losses), 0.0)
    cosines = np.divide(along, np.sqrt(left * end), out=np.sign(along), where=left * end > 0)
    return np.asarray(np.degrees(np.arccos(np.clip(cosines, -1.0, 1.0))))


def heading_replicates(losses: Floats, *, per_example: int = 1) -> Floats:
    """The same headings without a part of the examples, (replicates, snapshots): what the choice of examples adds shows in them.

    `losses` (snapshots, tokens) as for `headings`, `per_example` consecutive tokens from each example, which belong together.
    Each of twenty blocks of examples, or as many as there are, is left out once: the standard error of anything computed from
    all of them is sqrt((n - 1) / n * sum((value - mean)^2)) (jackknife). Raises `ArgumentError` for fewer than two examples.
    """
    losses = _checked(losses)
    examples = losses.shape[1] // max(per_example, 1)
    if per_example < 1 or losses.shape[1] % per_example or examples < 2:
        raise ArgumentError(f"`losses` must have those of two examples, {per_example} each, got {losses.shape[1]}")
    count = min(BLOCKS, examples)
    parts = _products(losses, np.arange(count) * examples // count * per_example)
    return _headings(parts.sum(axis=2, keepdims=True) - parts).T


@dataclass(frozen=True)
class LossSlopes:
    """How the loss falls along the context: `slopes` (snapshots, bins - 1) in nats per factor e of the token number, negative
    where more context helps; `tokens` (bins - 1,) are the token numbers that they stand for, rising. `means` (snapshots, bins)
    are the mean losses of the bins, `bins` (bins,) their mean token numbers.
    """

    tokens: Floats
    slopes: Floats
    bins: Floats
    means: Floats


def loss_slopes(losses: Floats, first_token: int = 1) -> LossSlopes:
    """The derivative of the loss by the logarithm of the token number, from means over bins of it (Olsson et al., argument 1).

    `losses` (snapshots, indices) are means over rows, column j that of token `first_token` + j, counted from one; NaN passes
    through. Bins are a quarter of a natural logarithm wide, the first ones as wide as a token: D = (L[b+1] - L[b]) / (ln i[b+1] -
    ln i[b]), with L and i the means of loss and token number in each bin. From one token to the next it would be noise: at token
    100 a hundred times that of the loss itself.

    Raises `ArgumentError` where there are not two bins.
    """
    losses = np.asarray(losses, dtype=np.float64)
    if losses.ndim != 2 or first_token < 1:
        raise ArgumentError(f"`losses` must be (snapshots, indices), tokens counted from 1, got {losses.shape}, {first_token}")
    numbers = np.arange(first_token, first_token + losses.shape[1], dtype=np.float64)
    _, bins, counts = np.unique(np.floor(np.log(numbers) / BIN + 1e-9), return_inverse=True, return_counts=True)
    if len(counts) < 2:
        raise ArgumentError(f"slopes along the context need losses of several tokens, got those of {losses.shape[1]}")
    member = (bins == np.arange(len(counts))[:, None]) / counts[:, None]  # bins, indices
    means, centres = losses @ member.T, member @ numbers
    place = np.log(centres)
    slopes = np.diff(means, axis=1) / np.diff(place)
    return LossSlopes(np.exp((place[1:] + place[:-1]) / 2), slopes, centres, means)


def _checked(losses: Floats) -> Floats:
    losses = np.asarray(losses, dtype=np.float64)
    if losses.ndim != 2 or len(losses) < 2 or losses.shape[1] < 1 or not np.isfinite(losses).all():
        raise ArgumentError(f"`losses` must be finite, (snapshots, tokens), of two snapshots at least, got {losses.shape}")
    return losses


def _products(losses: Floats, starts: NDArray[np.int64]) -> Floats:
    """Displacement times that of the end, and both squared, summed over blocks of tokens: (3, snapshots, blocks).

    The end is the mean of the last snapshots, without the one itself.
    """
    if len(losses) < FEWEST_POINTS:
        raise ArgumentError(f"a heading needs at least {FEWEST_POINTS} snapshots, got {len(losses)}")
    way = losses - losses[0]
    end = way[-END:].mean(axis=0)
    if not np.linalg.norm(end) > 0:
        raise ArgumentError("a path that ends where it began has no heading")
    along, ends = np.add.reduceat(way * end, starts, axis=1), np.add.reduceat(end[None] ** 2, starts, axis=1)
    ends = np.repeat(ends, len(way), axis=0)
    for index in range(len(way) - END, len(way)):
        others = (END * end - way[index]) / (END - 1)
        along[index] = np.add.reduceat(way[index] * others, starts)
        ends[index] = np.add.reduceat(others**2, starts)
    return np.stack([along, np.add.reduceat(way**2, starts, axis=1), ends])


def _squared_noise(losses: Floats) -> Floats:
    """The squared noise of each snapshot and its neighbours, the largest, summed over tokens (snapshots,)."""
    off = (losses[1:-1] - (losses[:-2] + losses[2:]) / 2) / math.sqrt(1.5)
    each = np.pad((off**2).sum(axis=1), 2, mode="edge")
    return np.maximum(np.maximum(each[:-2], each[1:-1]), each[2:])


def _headings(products: Floats) -> Floats:
    """Angles in degrees from such sums, NaN where a length is nothing."""
    along, way, end = products
    lengths = np.sqrt(np.maximum(way * end, 0.0))
    cosines = np.divide(along, lengths, out=np.full(along.shape, np.nan), where=lengths > 0)
    return np.asarray(np.degrees(np.arccos(np.clip(cosines, -1.0, 1.0))))


def _slope(x: Floats, losses: Floats) -> Floats:
    """The least-squares slope of every token's loss, (tokens,)."""
    away = x - x.mean()
    return away @ losses / (away**2).sum()


def _squared_speed(x: Floats, losses: Floats) -> float:
    """The squared length of the slope, as the product of those of every other snapshot; NaN where that is not above 0."""
    found = float(_slope(x[::2], losses[::2]) @ _slope(x[1::2], losses[1::2]))
    return found if found > 0 else math.nan


def _degrees(cosine: float) -> float:
    return math.degrees(math.acos(min(1.0, max(-1.0, cosine))))
