"""Which control sets are ablated in which row: some new ones in each, and again those that do nearly as much as the heads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from pytest_induction.measuring.observing import Array

RANKED = {72: 0, 288: 1}  # of so many sets so many may do as much; heads drawn like them get there at any look in one of 50
SUSPECT = 0.5  # of what the heads do on the same rows: a set that does so much is looked at in more rows
MOST_SUSPECTS = 4  # in a row, of each kind


def may_do_as_much(n_sets: int) -> int:
    """How many of so many control sets may do as much as the heads."""
    return max((most for count, most in RANKED.items() if n_sets >= count), default=0)


class Dealer:
    """Deals sets to rows, by each kind of ablation, and goes by what was found in the rows before.

    By the first kind each row gets the next `per_row` of `n_sets` sets, from the beginning again once all were dealt,
    `afterwards` so many a row where that is given; by each other kind the first of these. A set that so far does half as much as
    the heads or more, in the rows where it was ablated, is dealt to the next row too, the four that do most.
    """

    def __init__(self, n_sets: int, kinds: Sequence[str], per_row: int, afterwards: int | None = None) -> None:
        self._n_sets, self._per_row, self._next = n_sets, min(per_row, n_sets), 0
        self._afterwards = self._per_row if afterwards is None else min(afterwards, n_sets)
        self._first = kinds[0]
        self._sums = {kind: np.zeros((2, n_sets)) for kind in kinds}  # without each set, and without the heads in the same rows

    def next_row(self) -> dict[str, tuple[list[int], list[int]]]:
        """Of each kind the numbers of the sets that are new in the next row, and of those that are looked at again."""
        count = self._per_row if self._next < self._n_sets else self._afterwards
        fresh = [(self._next + place) % self._n_sets for place in range(count)]
        self._next += count
        of_kind = {kind: fresh if kind == self._first else fresh[:1] for kind in self._sums}
        return {kind: (new, [each for each in self._suspects(kind) if each not in new]) for kind, new in of_kind.items()}

    def record(self, kind: str, effects: Mapping[int, float], of_heads: float) -> None:
        """What was lost in a row without some sets, and without the heads."""
        for number, effect in effects.items():
            self._sums[kind][:, number] += effect, of_heads

    def _suspects(self, kind: str) -> list[int]:
        own, of_heads = self._sums[kind]
        shares = np.divide(own, of_heads, out=np.zeros_like(own), where=of_heads > 0)
        numbers = np.flatnonzero(shares >= SUSPECT)
        return numbers[np.argsort(-shares[numbers], kind="stable")][:MOST_SUSPECTS].tolist()


def mean_differences(controls: Array, lost: Array) -> Array:
    """Of each set the mean of what is lost without it minus what is lost without the heads, over its rows, (n_sets,).

    `controls` is (n_sets, rows), NaN in rows where a set was not ablated, `lost` (rows,); NaN for a set that never was.
    """
    differences = controls - lost
    taken = np.isfinite(differences)
    sums, counts = np.where(taken, differences, 0.0).sum(axis=1), taken.sum(axis=1)
    return np.divide(sums, counts, out=np.full(len(sums), np.nan), where=counts > 0)
