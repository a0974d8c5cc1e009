"""Whether the looks beside the usual probes leave room for a head that matches, and what all heads of a layer sum up to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pytest_induction.absence import Look
from pytest_induction.measure import Array
from pytest_induction.records import Estimate, HeadId
from pytest_induction.statistics import mean_interval


@dataclass(frozen=True)
class Strongest:
    """The strongest head of a look: its excess over chance with an interval over rows, and the highest that any row has."""

    look: str
    n_positions: int
    head: HeadId
    prefix_matching: float
    excess: Estimate
    highest_row: float

    def is_below(self, threshold: float) -> bool:
        """True only if the whole interval lies below, and every row does; NaN is below nothing."""
        return self.excess.is_below(threshold) and self.highest_row < threshold


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


def summed_by_layer(excess: Array) -> tuple[float, ...]:
    """Of each layer the sum over its heads of their mean excess, where that is positive, from (rows, n_layers, n_heads)."""
    means = excess.mean(axis=0)
    return tuple(float(total) for total in np.where(means > 0, means, 0.0).sum(axis=1))


def _heads_of(look: Look, error_rate: float) -> list[Strongest]:
    """Every head of a look, the one with the highest mean excess first."""
    exists = ~np.isnan(look.scores).all(axis=0)  # a layer may have fewer heads than another
    excess = look.excess[:, exists]
    found = []
    for column, (layer, head) in enumerate(np.argwhere(exists)):
        [estimate] = mean_interval(excess[:, [column]], error_rate)
        mean, most = float(look.scores[:, layer, head].mean()), float(excess[:, column].max())
        found.append(Strongest(look.name, look.n_positions, HeadId(int(layer), int(head)), mean, estimate, most))
    return sorted(found, key=lambda each: -each.excess.value)
