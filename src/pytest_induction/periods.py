"""Prefix matching on rows of chosen periods, each held against the same heads' own chance. One pass for each period.

Own chance needs no passes of its own: it is the mass at a wrong shift of the same rows, or at the places of this period in rows
of another one, whichever is higher. A head that matches prefixes has neither, one that goes by position has both.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pytest_induction.metrics.attention import LongRowScores
from pytest_induction.models.protocol import ModelUnderTest
from pytest_induction.observing import Array, masses_of
from pytest_induction.probes.sequences import Probe

LONGEST_ROWS = 1024  # positions that rows have at most, unless more are asked for
LATE_SHARE = 4  # the last quarter of a row
HELD_ENTRIES = 2**25  # entries of patterns that one layer of a pass may hold, 128 MB; beyond, fewer rows share one


@dataclass(frozen=True)
class Matching:
    """Of the rows of one period, (rows, n_layers, n_heads) each: prefix matching and own chance, over all queries that have an
    earlier occurrence, and over those in the last quarter of the row (`late`).
    """

    period: int
    n_positions: int
    scores: Array
    chance: Array
    late_scores: Array
    late_chance: Array


def match_periods(subject: ModelUnderTest, probes: Sequence[Probe], rng: np.random.Generator) -> list[Matching]:
    """Prefix matching and own chance on the rows of each probe.

    The probes have different periods, two of them at least, as many rows each, and room for twice any other's period. Raises
    `UnsupportedModel` where attention cannot be read.
    """
    periods = [probe.period for probe in probes]
    partners = {probe.period: partner_of(probe.period, periods, probe.n_positions) for probe in probes}
    found: dict[int, Array] = {}
    elsewhere: dict[int, Array] = {}  # mass at the places of a period in rows of its partner
    for probe in probes:
        others = tuple(period for period, partner in partners.items() if partner == probe.period)
        shift = int(rng.integers(1, max(2, probe.period // 2)))
        late_from = probe.n_positions - probe.n_positions // LATE_SHARE
        scorer = LongRowScores(probe.period, probe.start, probe.n_positions, (shift,), late_from, others)
        values = _observed(subject, probe, scorer)
        found[probe.period] = values[:, [0, 4, scorer.n_own - 2, scorer.n_own - 1]]
        for index, other in enumerate(others):
            elsewhere[other] = values[:, scorer.n_own + 2 * index :][:, :2]
    return [
        Matching(
            probe.period,
            probe.n_positions,
            scores=own[:, 0],
            chance=np.maximum(own[:, 1], other[:, 0]),
            late_scores=own[:, 2],
            late_chance=np.maximum(own[:, 3], other[:, 1]),
        )
        for probe in probes
        for own, other in [(found[probe.period], elsewhere[probe.period])]
    ]


def partner_of(period: int, periods: Sequence[int], n_positions: int) -> int:
    """The other period in whose rows a matching head has least at this one's places."""
    return min((other for other in periods if other != period), key=lambda other: (overlap(period, other, n_positions), other))


def overlap(period: int, other: int, n_positions: int) -> float:
    """How much of what a head matches in rows of the period `other` stands at the places of `period`; 0 where nothing does.

    Counted are the successors of the copies, and the copies themselves, as some heads attend to both. Those of the nearest copy
    count most, as a head may match that one alone.
    """
    copies = range(1, n_positions // other + 1)
    return sum(1 / copy for copy in copies if (copy * other) % period == 0 or (copy * other) % period == period - 1)


def _observed(subject: ModelUnderTest, probe: Probe, scorer: LongRowScores) -> Array:
    """The scores of every row: (rows, scores, n_layers, n_heads)."""
    entries = (len(scorer.offsets) + 1) * probe.n_positions * subject.n_heads
    most = max(1, HELD_ENTRIES // entries)
    return masses_of(subject, probe.tokens, lambda _: scorer, most=most)
