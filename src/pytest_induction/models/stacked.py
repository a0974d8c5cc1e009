"""Readers of a layer over other rows and positions than one pass has: rows in several passes, and rows that were filled up."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from pytest_induction.models.attention import Reader


@dataclass
class CutReader:
    """Reads the first `positions` of a layer whose rows were filled up behind."""

    whole: Reader
    positions: int

    @property
    def n_heads(self) -> int:
        return self.whole.n_heads

    @property
    def device(self) -> torch.device:
        return self.whole.device

    @property
    def dtype(self) -> torch.dtype:
        """Of what the model computes in."""
        return self.whole.dtype

    def diagonals(self, offsets: Sequence[int], *, first: bool = False) -> Tensor:
        return self.whole.diagonals(offsets, first=first)[..., : self.positions]

    def columns(self, keys: Tensor) -> Tensor:
        return self.whole.columns(keys)[..., : self.positions]

    def pairs(self, rows: Tensor, queries: Tensor, keys: Tensor) -> Tensor:
        return self.whole.pairs(rows, queries, keys)

    def pattern_of(self, queries: range) -> Tensor:
        return self.whole.pattern_of(queries)[..., : self.positions]


class OfParts:
    """What is read part by part lies where its first part does, and is computed in the same type."""

    parts: Sequence[Reader]

    @property
    def device(self) -> torch.device:
        return self.parts[0].device

    @property
    def dtype(self) -> torch.dtype:
        """Of what the model computes in."""
        return self.parts[0].dtype


@dataclass
class StackedReader(OfParts):
    """Reads a layer whose rows went through the model in several passes, one part after the other."""

    parts: Sequence[Reader]
    counts: Sequence[int]  # of rows in each part

    @property
    def n_heads(self) -> int:
        return self.parts[0].n_heads

    def diagonals(self, offsets: Sequence[int], *, first: bool = False) -> Tensor:
        return torch.cat([part.diagonals(offsets, first=first) for part in self.parts])

    def columns(self, keys: Tensor) -> Tensor:
        return torch.cat([part.columns(some) for part, some in zip(self.parts, keys.split(list(self.counts)), strict=True)])

    def pairs(self, rows: Tensor, queries: Tensor, keys: Tensor) -> Tensor:
        found: Tensor | None = None
        start = 0
        for part, count in zip(self.parts, self.counts, strict=True):
            here = (rows >= start) & (rows < start + count)
            some = part.pairs(rows[here] - start, queries[here], keys[here])
            found = some.new_zeros(len(rows), some.shape[1]) if found is None else found
            found[here] = some
            start += count
        return torch.zeros(0) if found is None else found

    def pattern_of(self, queries: range) -> Tensor:
        return torch.cat([part.pattern_of(queries) for part in self.parts])


def kept(reader: Any) -> Any:
    """A reader that outlives its pass: of copies of all tensors."""
    return replace(reader, **{each.name: _copied(getattr(reader, each.name)) for each in fields(reader) if each.init})


def _copied(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.clone()
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*map(_copied, value))
    if isinstance(value, (list, tuple)):
        return type(value)(map(_copied, value))
    return kept(value) if is_dataclass(value) and hasattr(value, "diagonals") else value
