"""Losses of rows with sets of heads ablated, other sets in each row, by several kinds, after one clean pass over a few rows."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from pytest_induction.errors import ArgumentError, ModelError
from pytest_induction.interventions.edits import Replacement
from pytest_induction.interventions.passes import Ablating, HeadSet, Kept, Passes, losses_at
from pytest_induction.measuring.observing import Array, numbers
from pytest_induction.model.batching import in_batches
from pytest_induction.model.protocol import ModelUnderTest

Sets = Mapping[Replacement, Sequence[HeadSet]]


@dataclass(frozen=True)
class RowLosses:
    """Losses (queries,) of a row as the model is, and (sets, queries) with each of some sets of heads ablated, by kinds."""

    clean: Array
    ablated: Mapping[Replacement, Array]


@dataclass(frozen=True)
class Rows:
    """Token ids `tokens` (rows, positions), two rows or more, whose losses at `queries`, ascending positions, are asked for.

    Two neighbours, or three where a row would be left over, are run together as the model is. A head is resampled from the other
    one of the two (of three the next), and the mean of what it finds is over both and all positions: neither takes passes of its
    own. `layers` are those with any head of the sets that are ablated by one of these. The losses of the first `counted` rows are
    measured, those of all where it is None. `means` are what heads of each layer give by "mean" where that is the mean over other
    tokens, as `mean_found` has it; then a row may be alone.
    """

    subject: ModelUnderTest
    tokens: Tensor
    queries: Tensor
    layers: Collection[int]
    counted: int | None = None
    pattern_preserving: bool = False
    means: Mapping[int, Tensor] | None = None

    def __post_init__(self) -> None:
        if len(self.tokens) < 2 and self.means is None:
            raise ArgumentError(f"heads are resampled from another row: two or more are needed, got {len(self.tokens)}")

    def losses(self, sets_of: Callable[[int], Sets]) -> Iterator[RowLosses]:
        """The losses of each row in order; which sets are ablated in a row is asked once all rows before it were given.

        Raises `ModelError` where losses are not finite.
        """
        passes = Passes(self.subject, self.tokens, self.queries, Ablating(pattern_preserving=self.pattern_preserving))
        counted = len(self.tokens) if self.counted is None else self.counted
        for group in _groups(len(self.tokens)):
            if group.start >= counted:
                return
            tokens = self.tokens[group]
            each = self._clean(passes, tokens)
            for place in range(min(group.stop, counted) - group.start):
                (kept, clean), (other, _) = each[place], each[(place + 1) % len(each)]
                instead = {"zero": {}, "mean": _mean(each) if self.means is None else dict(self.means), "resample": other.found}
                row, wanted = tokens[place : place + 1], sets_of(group.start + place)
                ablated = {
                    how: passes.ablated(row, replace(kept, values=instead[how]), sets)[:, 0]
                    for how, sets in wanted.items()
                    if sets
                }
                self._check(clean, ablated)
                yield RowLosses(clean, ablated)

    def _clean(self, passes: Passes, tokens: Tensor) -> list[tuple[Kept, Array]]:
        """What is kept of each row of a group, and its losses."""

        def measured(rows: Tensor, part: slice) -> list[tuple[Kept, Array]]:
            kept, logits = passes.clean(rows, part, self.layers)
            losses = numbers(losses_at(logits, rows, self.queries))
            return [(kept.of_row(row), losses[row]) for row in range(len(rows))]

        most = 1 if self.subject.mixes_rows else None
        return [row for part in in_batches(self.subject, tokens, measured, logits=True, most=most) for row in part]

    def _check(self, clean: Array, ablated: Mapping[Replacement, Array]) -> None:
        if not np.isfinite(clean).all():
            raise ModelError(f"the loss of {self.subject.name} is not finite")
        for how, losses in ablated.items():
            if not np.isfinite(losses).all():
                raise ModelError(f"the loss of {self.subject.name} is not finite with heads ablated {how!r}")


def _groups(count: int) -> list[slice]:
    """Two neighbours each, three where one would be left over; one where there is no other."""
    starts = list(range(0, max(1, count - 1), 2))
    return [slice(start, stop) for start, stop in zip(starts, [*starts[1:], count], strict=True)]


def _mean(each: Sequence[tuple[Kept, Array]]) -> dict[int, Tensor]:
    """The mean of what heads of each layer found, over rows and positions, (1, heads, 1, d_head)."""
    parts = {layer: [kept.found[layer].double().mean((0, 2), keepdim=True) for kept, _ in each] for layer in each[0][0].found}
    return {layer: torch.stack(means).mean(0) for layer, means in parts.items()}
