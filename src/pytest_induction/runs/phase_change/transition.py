"""Where, how far and how fast a series changes: two plateaus, each with a slope, and a transition between them.

The transition is a ramp (two knots) or a logistic, whichever lies nearer; all its places and widths are tried, and those that fit
about as well make the intervals, so that a change between two snapshots is known no better than by the gap. Neighbouring
residuals are alike, in training as in any slow process, which is paid for: they count for as many as independent ones would,
unless they lie far apart. Of few points, slopes cost more than they tell; a fit with flat plateaus tells more, where it holds.
Points that were measured on fewer sequences than others scatter more, and count for less.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from pytest_induction.statistics import student_quantile

Floats = NDArray[np.float64]
MOST_POINTS = 200  # a longer series is averaged in so many equal parts of the axis
PLACES, WIDTHS = 120, 16  # of the coarse grid, over the whole axis
FINE_PLACES, FINE_WIDTHS = 40, 24  # and of a finer one, over all that fitted,
STRETCHES = (
    1.5,
    1.2,
    1.1,
    1.1,
)  # at least so far beyond the widths that fitted; laid again where few of it still fit
INNER = 0.8  # the share of a transition between its onset and its end: from 10 % to 90 %
NEIGHBOURHOOD = 0.6  # decades on either side of a transition that is looked at again, at least; and at least twice its width
PARAMETERS = 6  # four linear ones, the place and the width; without slopes two less
FEWEST_DEGREES = 2  # of freedom
FAR = 0.15  # decades between two points whose residuals are taken as independent
GAP_SHARE = 1 / 24  # real changes are neither ramps nor logistics: between two points, how they went is not known
SLOPE_RIDGE = 1e-3  # keeps the slope of a plateau of few points from standing in for the change
LEVEL_RIDGE = 1e9  # keeps plateaus level
CHANGE_RIDGE = 1e-6  # what lies wholly on one side of every point changes nothing
REWEIGHTED = 3  # times: what the well measured points scatter by is known once the others count for less
NOISE_FLOOR = 2e-3  # of the series' range: no series is known better


@dataclass(frozen=True)
class Points:
    """A series on its axis, (points,) each, the places rising strictly.

    `extra` is the variance that a point has beyond that of the others, as it was measured on less. `root` is the square root of
    what it counts for, 1 where it has none. Where they are not `sloping`, plateaus are level.
    """

    x: Floats
    y: Floats
    extra: Floats
    root: Floats
    sloping: bool = True

    @property
    def parameters(self) -> int:
        """Of a transition that is fitted to them."""
        return PARAMETERS if self.sloping else PARAMETERS - 2

    def weighted(self, noise: float) -> Points:
        """The same, where a point without extra variance scatters by so much."""
        return replace(self, root=np.sqrt(noise**2 / (noise**2 + self.extra)))

    @property
    def range(self) -> float:
        """How far the values lie apart."""
        return float(self.y.max() - self.y.min())


@dataclass(frozen=True)
class Transition:
    """The transition that fits best, and all that fit about as well. Places on the axis, in decades; changes in the series' unit.

    `fitting` (fits, 5) has a row for each of the latter: onset, midpoint, end, width, and the change between onset and end.
    `change` is that of the best, `change_error` its standard error. `noise` is the standard deviation of the residuals,
    `n_effective` how many independent ones they are worth. `costs` are the squared residuals of the best flat line, the best line
    with at most one bend, and the best transition, and `allowed` is how much more than the last still fits about as well. `gap`
    is that between the points around the midpoint.
    """

    onset: float
    midpoint: float
    end: float
    change: float
    change_error: float
    fitting: Floats
    noise: float
    n_effective: float
    costs: tuple[float, float, float]
    allowed: float
    gap: float

    @property
    def width(self) -> float:
        """Decades from onset to end: from 10 % to 90 % of the change."""
        return self.end - self.onset

    @property
    def is_no_better_than_a_bend(self) -> bool:
        """Whether a line with at most one bend fits about as well."""
        return self.costs[1] <= self.costs[2] + self.allowed

    def interval(self, column: int) -> tuple[float, float]:
        """The lowest and highest value of a column among all that fit; no place is known better than to a part of the gap."""
        values = self.fitting[:, column]
        slack = self.gap * GAP_SHARE if column < 3 else 0.0
        return float(values.min()) - slack, float(values.max()) + slack


def thinned(x: Floats, y: Floats, most: int = MOST_POINTS, extra: Floats | None = None) -> Points:
    """The points themselves, or, of more than `most`, their means over equal parts of the axis."""
    extra = np.zeros_like(y) if extra is None else extra
    if len(x) <= most:
        return Points(x, y, extra, np.ones_like(y))
    part = np.minimum(((x - x[0]) / (x[-1] - x[0]) * most).astype(np.int64), most - 1)
    counts = np.bincount(part, minlength=most)
    full = counts > 0
    means = [np.bincount(part, weights=values, minlength=most)[full] / counts[full] for values in (x, y, extra)]
    return Points(means[0], means[1], means[2] / counts[full], np.ones(int(full.sum())))


def find_transition(
    x: Floats, y: Floats, error_rate: float = 0.05, extra: Floats | None = None, *, sloping: bool = True
) -> Transition:
    """The transition of a series (points,) over an axis in decades, rising strictly; at least eight points.

    Found on the whole series, then once more in its neighbourhood, where what is far away cannot bend the plateaus. The interval
    of each place and of the width misses at most at `error_rate`. `extra` (points,) is the variance that values have beyond that
    of the best measured ones. Plateaus have slopes unless `sloping` is false.
    """
    points = replace(thinned(x, y, extra=extra), sloping=sloping)
    found = _fit(points, _coarse(points), error_rate)
    for _ in range(REWEIGHTED if points.extra.any() else 0):
        points = points.weighted(found.noise)
        found = _fit(points, _coarse(points), error_rate)
    reach = max(NEIGHBOURHOOD, 2 * found.width)
    near = (x >= found.onset - reach) & (x <= found.end + reach)
    if near.sum() >= PARAMETERS + FEWEST_DEGREES and (not near.all() or len(x) > MOST_POINTS):
        points = replace(thinned(x[near], y[near], extra=None if extra is None else extra[near]), sloping=sloping)
        points = points.weighted(found.noise) if points.extra.any() else points
        found = _fit(points, _coarse(points), error_rate)
    for stretch in STRETCHES:
        found = _fit(points, _fine(found, stretch), error_rate)
        if all(len(np.unique(found.fitting[:, column])) >= fine / 4 for column, fine in ((1, FINE_PLACES), (3, FINE_WIDTHS))):
            break
    return found


def _fit(points: Points, grid: tuple[Floats, Floats], error_rate: float) -> Transition:
    place, width = (np.tile(each, 2) for each in grid)
    shapes = np.concatenate([_ramp(points.x, *grid), _logistic(points.x, *grid)])
    costs, changes = _costs(points, place, width, shapes)
    best = int(costs.argmin())
    noise, n_effective = _noise(points, place[best], shapes[best])
    quantile = student_quantile(error_rate / 2, max(FEWEST_DEGREES, math.floor(n_effective) - points.parameters))
    worth = noise**2 * len(points.x) / n_effective
    allowed = quantile**2 * worth
    fitting = np.stack([place - width / 2, place, place + width / 2, width, changes], axis=1)
    onset, midpoint, end, _, change = map(float, fitting[best])
    middle = np.average(points.y, weights=points.root**2)
    flat = float(((points.root * (points.y - middle)) ** 2).sum())
    compared = (flat, _bent_cost(points), float(costs[best]))
    chosen = costs <= costs[best] + allowed
    beside = int(np.clip(np.searchsorted(points.x, midpoint), 1, len(points.x) - 1))
    gap = float(points.x[beside] - points.x[beside - 1])
    own = _change_error(points, place[best], width[best], shapes[best]) * math.sqrt(worth)
    error = math.hypot(own, float(np.ptp(changes[chosen])) / 2 / quantile)
    return Transition(onset, midpoint, end, change, error, fitting[chosen], noise, n_effective, compared, allowed, gap)


def _coarse(points: Points) -> tuple[Floats, Floats]:
    """Midpoints and widths to try, (tried,) each: every place, and widths from half of the narrowest gap to the whole axis."""
    start, stop = points.x[0], points.x[-1]
    gaps = np.diff(points.x)
    widths = np.geomspace(max(gaps.min() / 2, (stop - start) / 1000), stop - start, WIDTHS)
    return _crossed(np.unique(np.concatenate([np.linspace(start, stop, PLACES), points.x[:-1] + gaps / 2])), widths)


def _fine(found: Transition, least_stretch: float) -> tuple[Floats, Floats]:
    """A finer grid over all that fitted and a little more; where a jump may have fitted, over all jumps between two points."""
    first, last = found.interval(1)
    narrow, wide = found.interval(3)
    jump = narrow < found.gap
    margin = max((last - first) / 3, found.gap if jump else found.width / 50)
    places = np.append(np.linspace(first - margin, last + margin, FINE_PLACES), found.midpoint)
    stretch = max((wide / narrow) ** 0.3, least_stretch)
    narrow = min(narrow / stretch, found.gap / 20) if jump else narrow / stretch
    return _crossed(places, np.append(np.geomspace(narrow, wide * stretch, FINE_WIDTHS), found.width))


def _crossed(places: Floats, widths: Floats) -> tuple[Floats, Floats]:
    place, width = np.meshgrid(places, widths, indexing="ij")
    return place.ravel(), width.ravel()


def _ramp(x: Floats, place: Floats, width: Floats) -> Floats:
    """From 0 to 1 in a straight line, 10 % and 90 % of it `width` apart; (tried, points)."""
    return np.clip((x - place[:, None]) / (width[:, None] / INNER) + 0.5, 0.0, 1.0)


def _logistic(x: Floats, place: Floats, width: Floats) -> Floats:
    """From 0 to 1 as a logistic, 10 % and 90 % of it `width` apart; (tried, points)."""
    return 1 / (1 + np.exp(-np.clip((x - place[:, None]) * (2 * math.log(9) / width[:, None]), -500, 500)))


def _design(points: Points, place: Floats, shape: Floats) -> Floats:
    """Columns (tried, points, 4): the level before, the change, the slopes before and after; each row for what it counts."""
    away = points.x - place[:, None]
    return np.stack([np.ones_like(shape), shape, away * (1 - shape), away * shape], axis=-1) * points.root[:, None]


def _solved(points: Points, place: Floats, shape: Floats) -> tuple[Floats, Floats]:
    """Coefficients (tried, 4) and residuals (tried, points) of least squares, slopes and change held a little to nothing.

    A residual counts as its point does.
    """
    design, y = _design(points, place, shape), points.root * points.y
    normal = _normal(design, points.sloping)
    found = np.linalg.solve(normal, (y @ design)[..., None]).astype(np.float64)
    return found[..., 0], y - (design @ found)[..., 0]


def _normal(design: Floats, sloping: bool) -> Floats:
    """The matrices (tried, 4, 4) of the normal equations, with what holds slopes and change."""
    normal = design.transpose(0, 2, 1) @ design
    normal[:, 1, 1] += CHANGE_RIDGE
    normal[:, [2, 3], [2, 3]] += (SLOPE_RIDGE if sloping else LEVEL_RIDGE) * design.shape[1]
    return normal


def _change_error(points: Points, place: float, width: float, shape: Floats) -> float:
    """Standard error of the change between onset and end, for independent noise of 1; its place and width as they are."""
    counted = np.array([0.0, INNER, width / 2, width / 2])
    normal = _normal(_design(points, np.array([place]), shape[None]), points.sloping)[0]
    return math.sqrt(float(counted @ np.linalg.solve(normal, counted)))


def _costs(points: Points, place: Floats, width: Floats, shapes: Floats, at_once: int = 500) -> tuple[Floats, Floats]:
    """Squared residuals, and changes between onset and end, of every transition tried, (tried,) each."""
    costs, changes = np.empty(len(place)), np.empty(len(place))
    for start in range(0, len(place), at_once):
        part = slice(start, start + at_once)
        found, left = _solved(points, place[part], shapes[part])
        costs[part] = (left**2).sum(axis=1)
        changes[part] = INNER * found[:, 1] + width[part] / 2 * (found[:, 2] + found[:, 3])  # a tenth to nine tenths
    return costs, changes


def _noise(points: Points, place: float, shape: Floats) -> tuple[float, float]:
    """Standard deviation of the residuals of one transition, and how many independent values they are worth."""
    left = _solved(points, np.array([place]), shape[None])[1][0]
    count = len(left)
    noise = math.sqrt(float((left**2).sum()) / max(1, count - points.parameters))
    near = np.diff(points.x) < FAR
    alike = float((left[1:] * left[:-1])[near].sum() / max((left**2).sum(), 1e-300))
    alike += points.parameters * (1 + abs(alike)) / count  # the fit takes some of the likeness away
    alike = min(max(alike, 0.0), 0.95)
    n_effective = count - int(near.sum()) * (1 - (1 - alike) / (1 + alike))
    return max(noise, NOISE_FLOOR * points.range), max(float(points.parameters + FEWEST_DEGREES), n_effective)


def _bent_cost(points: Points) -> float:
    """Squared residuals of the best line with at most one bend: what changes without a transition."""
    x = (points.x - points.x[0]) / (points.x[-1] - points.x[0])  # a short record late in a training is as well known
    bends = np.maximum(x - x[:-1, None], 0.0)  # the first is no bend: a line
    design = np.stack([np.ones_like(bends), np.broadcast_to(x, bends.shape), bends], axis=-1) * points.root[:, None]
    y = points.root * points.y
    normal = design.transpose(0, 2, 1) @ design + 1e-9 * np.eye(3)
    found = np.linalg.solve(normal, (y @ design)[..., None]).astype(np.float64)
    return float(((y - (design @ found)[..., 0]) ** 2).sum(axis=1).min())
