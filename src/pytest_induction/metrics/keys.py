"""Attention mass on listed keys, for rows of which each has an answer key of its own."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pytest_induction.metrics.attention import AttentionReader

Pair = tuple[int, int]  # a query and a key


@dataclass(frozen=True)
class KeyScores:
    """Mean mass on listed keys: for each list and row, summed over the keys of a query and averaged over the queries.

    `pairs` are all rows, queries, keys, each (pairs,), and `shares` what each counts in which list: (lists, pairs). A row that
    has no pair in a list gets 0 there.
    """

    rows: Tensor
    queries: Tensor
    keys: Tensor
    shares: Tensor
    n_rows: int

    @classmethod
    def of(cls, lists: Sequence[Sequence[Iterable[Pair]]], device: torch.device) -> KeyScores:
        """From lists of pairs (query, key), one for each row, several such lists."""
        entries = [
            (number, row, query, key)
            for number, rows in enumerate(lists)
            for row, pairs in enumerate(rows)
            for query, key in pairs
        ]
        columns = torch.tensor(entries, dtype=torch.long).view(-1, 4).T
        number, rows, queries, keys = columns
        counts = torch.tensor([[len({query for query, _ in pairs}) for pairs in rows] for rows in lists], dtype=torch.float64)
        shares = torch.zeros(len(lists), len(entries), dtype=torch.float64)
        shares[number, torch.arange(len(entries))] = 1 / counts[number, rows]
        return cls(rows.to(device), queries.to(device), keys.to(device), shares, len(lists[0]))

    def __call__(self, attention: AttentionReader) -> Tensor:
        """One layer's means: (lists, batch, heads), in [0, 1]."""
        mass = attention.pairs(self.rows, self.queries, self.keys)  # pairs, heads
        weighed = mass * self.shares.to(mass)[:, :, None]
        return weighed.new_zeros(len(self.shares), self.n_rows, mass.shape[1]).index_add_(1, self.rows, weighed)
