"""Scores of rows whose distribution is known, judged as those of a model are: cases that are hard for intervals.

A `Shape` says what a row of a head has of prefix matching, given its period, and what a model gives the successor on it. What is
right follows from the means. Everything after the drawing is the verdict's own: rounds, tables of heads, the two thresholds.
Some shapes are those of real heads (`pretrained_rows`), moved until their mean lies at a threshold.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from pretrained_rows import HeadRows, stored
from pytest_induction import Verdict
from pytest_induction.attention.scores import SCORES
from pytest_induction.deciding import Judgement, Sampling
from pytest_induction.heads.copying import CopyRound
from pytest_induction.heads.criteria import MAX_PREFIX_MATCHING, MIN_PREFIX_MATCHING
from pytest_induction.heads.induction import searched
from pytest_induction.heads.search import COPY_ROWS, HeadSearch
from pytest_induction.heads.table import Thresholds
from pytest_induction.measuring.observing import PERIODS_AT_ONCE, Array
from pytest_induction.measuring.rounds import MAX_SEQUENCES, PLACES_OF_CHANCE, Round
from pytest_induction.probes.irregular import LENGTHS
from pytest_induction.probes.sequences import even_periods, fitting_shape
from pytest_induction.records import TokenSpace

SPACE = TokenSpace(d_vocab=1000, n_ctx=128, bos_id=0)
ERROR_RATE = 1e-3
CHANCE = 0.01
Draw = Callable[[np.random.Generator, np.ndarray], Array]


@dataclass(frozen=True)
class Shape:
    """`score` and `advantage` draw values for rows of given periods; `wanted` is the verdict that the means give.

    UNDETERMINED is wanted where the mean lies between "has one" and "has none", or at either threshold: any other answer is wrong
    then. With `always` it is wrong to give any other verdict than the one that is wanted, UNDETERMINED too.
    """

    name: str
    score: Draw
    advantage: Draw
    wanted: Verdict
    always: bool = False


def some(share: float, high: float, low: float) -> Draw:
    """`high` in a share of the rows, `low` in the others."""
    return lambda rng, periods: np.where(rng.random(len(periods)) < share, high, low)


def normal(mean: float, spread: float) -> Draw:
    return lambda rng, periods: rng.normal(mean, spread, len(periods))


def up_to(period: int) -> Draw:
    """1 in rows of periods up to this, 0 in others."""
    return lambda rng, periods: (periods <= period) * 1.0


def resampled(head: HeadRows, mean: float | None = None) -> Draw:
    """Rows of a real head, each of its own period; all moved by the same amount, so that their mean over periods is `mean`.

    What is moved beyond 0 or 1 stays there.
    """
    rows = {int(period): head.values[head.periods == period] for period in np.unique(head.periods)}
    shift = 0.0 if mean is None else _shift(rows, mean)

    def draw(rng: np.random.Generator, periods: np.ndarray) -> Array:
        values = np.zeros(len(periods))
        for period, of_period in rows.items():
            there = periods == period
            values[there] = rng.choice(of_period, int(there.sum()))
        return np.clip(values + shift, 0.0, 1.0)

    return draw


def _shift(rows: Mapping[int, Array], mean: float) -> float:
    """By how much to move rows so that the mean over periods is `mean`: bisection, as what is clipped does not move."""
    low, high = -1.0, 1.0
    for _ in range(50):
        middle = (low + high) / 2
        is_low = np.mean([np.clip(of_period + middle, 0.0, 1.0).mean() for of_period in rows.values()]) < mean
        low, high = (middle, high) if is_low else (low, middle)
    return low


def real_heads(mean: float) -> list[Draw]:
    """The rows of each real head that is kept, moved to a mean."""
    return [resampled(head, mean) for head in stored()]


COPIES = normal(6.0, 1.0)
AT_ABSENCE = MAX_PREFIX_MATCHING + CHANCE  # what is left of it without chance is the threshold for "none"
SHAPES = (
    Shape("1 in 35 % of rows, else 0 (mean 0.35)", some(0.35, 1.0, 0.0), COPIES, Verdict.SHOWN),
    Shape("0.33 in 90 % of rows, else 0 (mean 0.297)", some(0.9, 0.33, 0.0), COPIES, Verdict.UNDETERMINED),
    Shape("1 in 11 % of rows, else 0 (0.1 beyond chance)", some(0.11, 1.0, 0.0), normal(0.0, 0.2), Verdict.UNDETERMINED),
    Shape("advantage +6 in 85 % of rows, else -40", normal(0.9, 0.04), some(0.85, 6.0, -40.0), Verdict.REFUTED),
    Shape("1 up to period 17, else 0", up_to(17), COPIES, Verdict.SHOWN, always=True),
)


def at_the_edge() -> tuple[tuple[Shape, ...], ...]:
    """Shapes of real heads, each moved to the threshold of "has one", and each to that of "none"."""
    edges = ((MIN_PREFIX_MATCHING, COPIES), (AT_ABSENCE, normal(0.0, 0.2)))
    return tuple(
        tuple(Shape(f"real heads moved to {mean:g}", draw, advantage, Verdict.UNDETERMINED) for draw in real_heads(mean))
        for mean, advantage in edges
    )


class Rows(HeadSearch):
    """A search whose rows are drawn from a shape, in place of a model."""

    def __init__(self, shape: Shape, seed: int) -> None:
        self.begin(SPACE, Thresholds(), Sampling(MAX_SEQUENCES, ERROR_RATE, seed), complete=False)
        self._shape, self._rng = shape, np.random.default_rng([seed, 5])
        self._periods = even_periods(fitting_shape(SPACE)[0], PERIODS_AT_ONCE)

    def probed(self, size: int, n_irregular: int, depth: int | None) -> Round:
        periods = np.repeat(self._periods, size // len(self._periods))
        matching = np.clip(self._shape.score(self._rng, periods), 0.0, 1.0)[:, None, None]
        scores = {name: np.full((size, 1, 1), CHANCE) for name in (*SCORES, "wrong_shift", "other_periods", "control")}
        beside = matching[np.linspace(0, size - 1, n_irregular).round().astype(int)]
        irregular = {**dict.fromkeys(LENGTHS, beside), "after_breaks": np.full((n_irregular, 1, 1), CHANCE)}
        found = scores | {"prefix_matching": matching}
        return Round(periods, found, irregular, self._behaviour(periods), "4 copies", 1 / PLACES_OF_CHANCE)

    def _behaviour(self, periods: np.ndarray) -> dict[str, Array]:
        advantage = self._shape.advantage(self._rng, periods)
        names = ("first_loss", "repeat_loss", "first_accuracy", "repeat_accuracy")
        return {**{name: np.full(len(periods), 0.5) for name in names}, "advantage": advantage}

    def rule_out(self) -> None:
        """Nothing is known of what the head writes."""

    def look_at_copies(self) -> None:
        periods = np.repeat(self._periods, COPY_ROWS)
        self.copies.append(CopyRound(None, self._behaviour(periods)["advantage"]))


def judged(shape: Shape, seeds: range) -> Iterator[Judgement]:
    """The verdict of each seed."""
    for seed in seeds:
        yield searched(Rows(shape, seed), absent=lambda search: Judgement(Verdict.REFUTED, "no_head_matches", ""))
