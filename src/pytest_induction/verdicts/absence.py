"""Whether the looks beside the usual probes leave room for a head that matches, and what all heads of a layer sum up to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pytest_induction.absence import Look
from pytest_induction.betting import known_mean
from pytest_induction.observing import Array
from pytest_induction.records import Estimate, HeadEvidence, HeadId
from pytest_induction.statistics import mean_interval


@dataclass(frozen=True)
class Strongest:
    """The strongest head of a look, with intervals over its rows.

    `excess` is what is left of its prefix matching without chance, `positive` the same where a row that has less than by chance
    counts as 0, `highest_at_a_period` the highest mean of the excess over the rows of one period.
    """

    look: str
    reason: str
    n_positions: int
    head: HeadId
    prefix_matching: Estimate
    excess: Estimate
    positive: Estimate
    highest_at_a_period: float

    def is_below(self, threshold: float) -> bool:
        """True only if one of the two intervals lies wholly below, and every period's mean does; NaN is below nothing.

        The mean of `positive` is never lower than that of `excess`, so either will do: chance that varies widens one alone.
        """
        below = self.excess.is_below(threshold) or self.positive.is_below(threshold)
        return below and self.highest_at_a_period < threshold

    def is_above(self, threshold: float) -> bool:
        """True only if the interval of what is left lies wholly above."""
        return self.excess.is_above(threshold)


def highest(looks: Sequence[Look], error_rate: float) -> tuple[Strongest, ...]:
    """Of each look, in order, the head with the highest mean excess. `error_rate` is that of each interval.

    A claim of absence needs no correction for the number of heads or looks: all of them must be below.
    """
    return tuple(_heads_of(look, error_rate)[0] for look in looks)


def beyond(looks: Sequence[Look], max_prefix_matching: float, error_rate: float) -> tuple[Strongest, ...]:
    """The looks that do not show every head to be below, each with the strongest head that is not; the strongest first."""
    found = (
        next((head for head in _heads_of(look, error_rate) if not head.is_below(max_prefix_matching)), None) for look in looks
    )
    return tuple(sorted((each for each in found if each is not None), key=lambda each: -each.excess.value))


def summed_by_layer(excess: Array, without: Sequence[HeadEvidence] = ()) -> tuple[float, ...]:
    """Of each layer the sum over its heads of their mean excess, where that is positive, from (rows, n_layers, n_heads).

    Heads `without` which it is asked for count as nothing.
    """
    means = known_mean(excess)
    for head in without:
        means[head.layer, head.head] = 0.0
    return tuple(float(total) for total in np.where(means > 0, means, 0.0).sum(axis=1))


def _heads_of(look: Look, error_rate: float) -> list[Strongest]:
    """Every head of a look, the one with the highest mean excess first."""
    exists = ~np.isnan(look.scores).all(axis=0)  # a layer may have fewer heads than another
    scores, excess = look.scores[:, exists], look.excess[:, exists]
    by_period = np.stack([excess[look.periods == period].mean(axis=0) for period in np.unique(look.periods)])
    rate = error_rate * excess.shape[1]  # each head at the stated rate: all of them must be below
    measures = (
        mean_interval(scores, rate),
        mean_interval(excess, rate, "excess"),
        mean_interval(np.maximum(excess, 0.0), rate, "excess"),
        by_period.max(axis=0).tolist(),
    )
    found = [
        Strongest(look.name, look.reason, look.n_positions, HeadId(int(layer), int(head)), *estimates)
        for (layer, head), *estimates in zip(np.argwhere(exists), *measures, strict=True)
    ]
    return sorted(found, key=lambda each: -each.excess.value)
