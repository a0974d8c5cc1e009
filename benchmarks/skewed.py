"""Scores of rows whose distribution is known, judged as those of a model are: where an interval is tried that trusts to spread.

A `Shape` says what a row of a head has of prefix matching, given its period, and what a model gives the successor on it; what is
right follows from the means. Everything after the drawing is the verdict's own: rounds, tables of heads, the two thresholds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from pytest_induction import TokenSpace, Verdict
from pytest_induction.assertions.head_search import COPY_ROWS, Budget, HeadSearch
from pytest_induction.assertions.heads import MAX_SEQUENCES, searched
from pytest_induction.copying import CopyRound
from pytest_induction.measure import PERIODS_AT_ONCE, Array, Kind, Round
from pytest_induction.probes.sequences import even_periods, fitting_shape
from pytest_induction.verdicts.heads import Thresholds
from pytest_induction.verdicts.judgement import Judgement

SPACE = TokenSpace(d_vocab=1000, n_ctx=128, bos_id=0)
ERROR_RATE = 1e-3
CHANCE = 0.01
Draw = Callable[[np.random.Generator, np.ndarray], Array]


@dataclass(frozen=True)
class Shape:
    """`score` and `advantage` draw values for rows of given periods; `wrong` is the verdict that would be wrong."""

    name: str
    score: Draw
    advantage: Draw
    wrong: Verdict


def some(share: float, high: float, low: float) -> Draw:
    """`high` in a share of the rows, `low` in the others."""
    return lambda rng, periods: np.where(rng.random(len(periods)) < share, high, low)


def always(value: float, spread: float = 0.0) -> Draw:
    """Normal about a value."""
    return lambda rng, periods: rng.normal(value, spread, len(periods))


def up_to(period: int) -> Draw:
    """1 in rows of periods up to this, 0 in others."""
    return lambda rng, periods: (periods <= period) * 1.0


def resampled(rows: Array, mean: float) -> Draw:
    """Rows of a real head, moved so that their mean is `mean`."""
    return lambda rng, periods: np.clip(rng.choice(rows, len(periods)) + mean - rows.mean(), 0.0, 1.0)


SHAPES = (
    Shape("1 in 35 % of rows, else 0 (mean 0.35)", some(0.35, 1.0, 0.0), always(6.0, 1.0), Verdict.NOT_FORMED),
    Shape("0.33 in 90 % of rows, else 0 (mean 0.297)", some(0.9, 0.33, 0.0), always(6.0, 1.0), Verdict.FORMED),
    Shape("1 in 11 % of rows, else 0 (mean 0.11)", some(0.11, 1.0, 0.0), always(0.0, 0.2), Verdict.NOT_FORMED),
    Shape("advantage +6 in 85 % of rows, else -40", always(0.9, 0.04), some(0.85, 6.0, -40.0), Verdict.FORMED),
    Shape("advantage +3 in 95 % of rows, else -60", always(0.9, 0.04), some(0.95, 3.0, -60.0), Verdict.FORMED),
    Shape("1 up to period 17, 0 beyond", up_to(17), always(6.0, 1.0), Verdict.NOT_FORMED),
)


class Rows(HeadSearch):
    """A search whose rows are drawn from a shape, in place of a model."""

    def __init__(self, shape: Shape, seed: int) -> None:
        self.begin(SPACE, Thresholds(), Budget(MAX_SEQUENCES, ERROR_RATE, seed), complete=False)
        self._shape, self._rng = shape, np.random.default_rng([seed, 5])
        self._periods = even_periods(fitting_shape(SPACE)[0], PERIODS_AT_ONCE)

    def probed(self, size: int, kind: Kind) -> Round:
        periods = np.repeat(self._periods, size // len(self._periods))
        heads = np.full((size, 5, 1, 1), CHANCE)
        heads[:, 0, 0, 0] = np.clip(self._shape.score(self._rng, periods), 0.0, 1.0)
        control = np.full((size, 1, 1), CHANCE)
        irregular = np.concatenate([np.repeat(heads[:, :1], 3, axis=1), np.full((size, 1, 1, 1), CHANCE)], axis=1)
        return Round(periods, heads, control, np.ones(size, bool), irregular, self._behaviour(periods), "4 copies")

    def _behaviour(self, periods: np.ndarray) -> dict[str, Array]:
        advantage = self._shape.advantage(self._rng, periods)
        names = ("first_loss", "later_loss", "first_accuracy", "later_accuracy")
        return {**{name: np.full(len(periods), 0.5) for name in names}, "advantage": advantage}

    def rule_out(self) -> None:
        """Nothing is known of what the head writes."""

    def look_at_copies(self) -> None:
        periods = np.repeat(self._periods, COPY_ROWS)
        self.copies.append(CopyRound(None, self._behaviour(periods)))


def judged(shape: Shape, seeds: range) -> Iterator[tuple[Judgement, int]]:
    """The verdict of each seed, and how many rows it took."""
    for seed in seeds:
        search = Rows(shape, seed)
        yield searched(search, absent=lambda search: Judgement(Verdict.NOT_FORMED, "no_head_matches", "")), search.n_sequences
