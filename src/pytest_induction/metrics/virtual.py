"""Prefix matching by two heads in turn: one gathers what comes after a token into a later position, another attends there.

With A1 the pattern of a head and A2 that of a head in a later layer, A2 A1 is the pattern of the virtual attention head that the
two make (Elhage et al. 2021). Each score is a mean over the queries q that have an earlier occurrence of their token, of

| score | sum over the successors k of q, the positions after those occurrences, and over all m |
|---|---|
| prefix matching | A2[q, m] A1[m, k] |
| composed | the same, but for those m that hold the token of q or that of k |

Where m holds the token of k, A2 matches a prefix by itself: if A1 stays where it is (m = k), or moves among positions of one
token, A2 A1 repeats what A2 does. Where m holds the token of q, A1 matches by itself, and A2 stays where it is (m = q) or moves
among positions of one token. What is left of the mass, reached by two steps neither of which goes from a token to its
successor, is composed. A pair that meets at such a position by chance, because of how far it counts back, loses that mass too:
no more than what the later head sends to copies of the two tokens, which varied periods keep small. Both scores lie in [0, 1]
and tell where information may come from, not whether the values carry it.

With `wrong_shift` the same two are given for the keys that far from the successors, where nothing draws a prefix matcher.

Where a block repeats, the successors of q are the earlier positions of one column of the block, so that the sum falls apart:
over columns c and positions m, (sum of A2[q, m] over the queries q that ask for c) x (sum of A1[m, k] over the keys k in c).
Two tables (positions, columns) of each head are all that is needed, and no pattern is kept.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from pytest_induction.metrics.attention import AttentionReader

BLOCK_ENTRIES = 1_000_000  # entries of the pattern held at a time
PAIR_SCORES = ("prefix_matching", "composed")  # then the same two at the wrong shift


@dataclass(frozen=True)
class Columns:
    """Which keys and queries of rows with a block of `period` tokens, from `start` to the end, belong to which column.

    The keys of column c are the positions of the c-th token of the block but for those of the first copy that no query counts:
    the first token follows no occurrence, and the `wrong_shift` tokens after it are no wrong places. These have a column each.
    A period of 2 leaves no position that holds neither the query's token nor the successor's: composed scores are 0 then.
    """

    period: int
    start: int
    n_positions: int
    wrong_shift: int = 0  # 0 for none; less than period - 1

    @property
    def count(self) -> int:
        """Of columns."""
        return self.period + self.wrong_shift

    @cached_property
    def keys(self) -> Tensor:
        """1 where a key is of a column: (positions, columns)."""
        place = self._places
        column = torch.where(place > self.wrong_shift, place % self.period, self.period + place - 1)
        found = torch.zeros(self.n_positions, self.count)
        found[place > 0, column[place > 0]] = 1
        return found

    @cached_property
    def queries(self) -> Tensor:
        """What a query counts in a column that it asks for: (shifts, columns, positions)."""
        place = self._places
        later = torch.nonzero(place >= self.period)[:, 0]
        found = torch.zeros(len(self._shifts), self.count, self.n_positions, dtype=torch.float64)
        for index, shift in enumerate(self._shifts):
            asked = (place[later] + 1 + shift) % self.period
            found[index, asked, later] = 1
        found[0, self.period :] = found[0, 1 : self.wrong_shift + 1]
        return found / len(later)

    @cached_property
    def composed(self) -> Tensor:
        """1 where a position holds neither the token of the column's keys nor that of the queries that ask for it.

        (shifts, columns, positions).
        """
        place = self._places
        wanted = torch.cat([torch.arange(self.period), torch.arange(1, self.wrong_shift + 1)])[:, None]
        asking = torch.tensor(self._shifts)[:, None, None]
        held = torch.where(place >= 0, place % self.period, -1)
        return ((held != wanted) & (held != (wanted - 1 - asking) % self.period)).float()

    @property
    def _places(self) -> Tensor:
        """Of every position, from the beginning of the first copy."""
        return torch.arange(self.n_positions) - self.start

    @property
    def _shifts(self) -> tuple[int, ...]:
        return (0, self.wrong_shift) if self.wrong_shift else (0,)


class VirtualHeads:
    """Is handed each layer's attention in order, and scores its heads alone and after every head of the layers before.

    `single` holds for each layer the prefix-matching scores of its heads, (batch, heads); `pairs` the scores of each with each
    head of the layers before, (batch, heads, scores, heads before), in the order of `PAIR_SCORES`, then those at the wrong
    shift. Of every head (columns, positions) numbers are held until the pass is over.
    """

    def __init__(self, columns: Columns, n_rows: int) -> None:
        self.single: list[Tensor] = []
        self.pairs: list[Tensor] = []
        self._columns = columns
        self._n_rows = n_rows
        self._gathered: list[Tensor] = []  # of each layer so far, (batch, heads, columns * positions)
        self._cast: dict[tuple[torch.dtype, torch.device], tuple[Tensor, Tensor, Tensor]] = {}

    def add(self, layer: int, attention: AttentionReader) -> None:
        """Score this layer's heads."""
        gathered, asked = self._tables(attention)
        _, queries, composed = self._weights(asked.dtype, asked.device)
        self.single.append(torch.einsum("bhcp,cp->bh", gathered, queries[0]))
        scores = torch.stack([asked, asked * composed], dim=3).flatten(2, 3)  # batch, heads, scores, columns, positions
        each = scores.flatten(3).flatten(1, 2)
        pairs = [each @ before.to(each).mT for before in self._gathered]
        self.pairs.append(torch.cat([each.new_empty(*each.shape[:2], 0), *pairs], dim=2).unflatten(1, scores.shape[1:3]))
        self._gathered.append(gathered.flatten(2))

    def _tables(self, attention: AttentionReader) -> tuple[Tensor, Tensor]:
        """What each position gathers of the keys of a column, and how much the queries that ask for a column take from it.

        The first (batch, heads, columns, positions), the second (batch, heads, shifts, columns, positions).
        """
        dtype = torch.promote_types(attention.dtype, torch.float32)
        keys, queries, _ = self._weights(dtype, attention.device)
        gathered, asked = [], keys.new_zeros(())
        for block in self._blocks(attention.n_heads):
            pattern = attention.pattern_of(block)
            gathered.append((pattern @ keys).mT)
            asked = asked + queries.flatten(0, 1)[:, block.start : block.stop] @ pattern
        return torch.cat(gathered, dim=3), asked.unflatten(2, queries.shape[:2])

    def _blocks(self, n_heads: int) -> Iterator[range]:
        """All queries, so many at a time that their pattern stays small."""
        positions = self._columns.n_positions
        at_once = max(1, BLOCK_ENTRIES // (self._n_rows * n_heads * positions))
        return (range(start, min(start + at_once, positions)) for start in range(0, positions, at_once))

    def _weights(self, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
        """Keys, queries and composed of the columns, as a layer needs them, kept for the next one."""
        if (dtype, device) not in self._cast:
            columns = self._columns
            keys, queries, composed = (part.to(device, dtype) for part in (columns.keys, columns.queries, columns.composed))
            self._cast[dtype, device] = keys, queries, composed
        return self._cast[dtype, device]
